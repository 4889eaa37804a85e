"""Transform: the graph that a plain call runs, with several ops in one and shares where they cost nothing."""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import is_float
from lxt_fx.base.torch_internals import copy_io
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.drop_dead import drop_dead_nodes
from lxt_fx.passes.fuse.attention import fuse_attention
from lxt_fx.passes.fuse.gates import fuse_gates
from lxt_fx.passes.fuse.head import fuse_head
from lxt_fx.passes.fuse.linears import fuse_linears
from lxt_fx.passes.fuse.norms import fuse_norms
from lxt_fx.passes.fuse.rotary import fuse_rotary
from lxt_fx.passes.fuse.shares import merge_shares


def fuse(gm: GraphModule) -> Graph:
    """Transform: a copy of the graph with the same values and the same relevance, in fewer passes over memory and with less
    kept for the backward. Nodes keep their names, so each is found again in the graph that it was made from.

    The graph of `gm` stays as it is: the audit, `watch` and the certificate read that one.
    """
    flow = mark_flow(gm, [node for node in gm.graph.nodes if node.op == "placeholder" and is_float(node)])
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.output(graph.graph_copy(gm.graph, copies))
    copy_io(gm.graph, graph)
    carrying = {copies[node] for node in flow.carrying if node in copies}
    for step in (fuse_norms, fuse_rotary, fuse_gates, fuse_attention):
        step(graph, carrying)
    drop_dead_nodes(graph)
    shares = merge_shares(graph, carrying & set(graph.nodes))
    fuse_linears(graph, carrying, shares)
    fuse_head(graph, carrying)
    drop_dead_nodes(graph)
    graph.lint()
    return graph
