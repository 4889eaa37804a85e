"""Transform: the graph that a plain call runs: several ops fused into one, and shares applied where they cost nothing."""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.torch_internals import copy_io
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.drop_dead import drop_dead_nodes
from lxt_fx.passes.fuse.activations import fuse_activations, fuse_active_linears
from lxt_fx.passes.fuse.attention import fuse_attention
from lxt_fx.passes.fuse.by_queries import run_by_queries
from lxt_fx.passes.fuse.dtypes import match_dtypes
from lxt_fx.passes.fuse.gates import fuse_gates
from lxt_fx.passes.fuse.head import fuse_head
from lxt_fx.passes.fuse.linears import fuse_linears, fuse_single_linears
from lxt_fx.passes.fuse.merge_shares import merge_shares
from lxt_fx.passes.fuse.norms import fuse_norms
from lxt_fx.passes.fuse.patches import fuse_patches
from lxt_fx.passes.fuse.rotary import fuse_rotary


def fuse(gm: GraphModule) -> Graph:
    """Transform: a copy of the graph with the same values and the same relevance, which reads memory less often and saves
    less for the backward. Nodes have the same names as in the graph of `gm`.

    The graph of `gm` itself does not change: the audit, `watch` and the certificate read it.
    """
    flow = mark_flow(gm, relevance_leaves(gm.graph))
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    copy_io(gm.graph, graph)
    carrying = {copies[node] for node in flow.carrying if node in copies}
    for step in (fuse_norms, fuse_gates, fuse_activations, fuse_attention, fuse_patches):
        step(graph, carrying)
    drop_dead_nodes(graph)
    shares = merge_shares(graph, carrying & set(graph.nodes))
    fuse_rotary(graph, carrying)  # a rotation that shares with its positions is linear by now
    drop_dead_nodes(graph)
    fuse_linears(graph, carrying, shares)
    fuse_head(graph, carrying)
    fuse_active_linears(graph, carrying, shares)
    fuse_single_linears(graph, carrying)
    match_dtypes(graph)
    drop_dead_nodes(graph)
    run_by_queries(graph, carrying & set(graph.nodes))
    drop_dead_nodes(graph)
    graph.lint()
    return graph
