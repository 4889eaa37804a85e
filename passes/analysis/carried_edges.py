"""Analysis: the edges along which the residual stream runs through a network, without those that pass by its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import networkx as nx
from torch.fx import Graph, Node

from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import CONTRACTIONS, LINEAR_MAPS
from lxt_fx.passes.analysis.find_attention_parts import RESHAPES, find_attention_parts, projected
from lxt_fx.passes.analysis.find_block_parts import TOKENS, Reader, joined_axis
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.rule_table.rule import Role


def carried_edges(reader: Reader, graph: Graph) -> nx.DiGraph:
    """Analysis: the edges producer -> consumer along which relevance flows. A value of the stream whose features are
    joined with those of what became of it (the embeddings, which each shared layer of Zamba reads beside its input) passes
    by, and so do keys and values that an attention has from an earlier layer (Gemma 4), and scores that it has from another
    stream (LiLT)."""
    flow, order = reader.flow, reader.order
    found: nx.DiGraph = nx.DiGraph()
    for node in graph.nodes:
        if node in flow.carrying and node.op != "output":
            found.add_node(node)
            read = [operand.node for operand in flow.carrying_operands(node)]
            if node.target is aten.cat.default and len(read) > 1 and joined_axis(node) != TOKENS:
                read = [one for one in read if not any(_became(flow, order, one, two) for two in read if two is not one)]
            if node.target is aten.scaled_dot_product_attention.default and len(read) == 3:
                queries, keys = (projected(flow, one) for one in read[:2])
                if queries is not keys and _became(flow, order, keys, queries):
                    read = read[:1]
            found.add_edges_from((one, node) for one in read)
    found.remove_edges_from([edge for node in graph.nodes for edge in _scores_of_others(reader, node)])
    return found


def _scores_of_others(reader: Reader, heads: Node) -> Iterator[tuple[Node, Node]]:
    """The edges by which scores of other queries and keys are added to those of an attention: its own are computed of the
    value that its values are computed of."""
    flow, roles = reader.flow, reader.groups.roles
    parts = find_attention_parts(flow, heads, roles) if Role.OUTPUT in roles.get(heads, ()) else None
    if parts is None or parts.pattern is None:
        return
    own, node = projected(flow, parts.values), parts.pattern
    while node.target not in LINEAR_MAPS and (read := [operand.node for operand in flow.carrying_operands(node)]):
        others = [one for one in read if own not in (sources := _scored(flow, one)) and sources]
        if node.target is aten.add.Tensor and len(others) < len(read):
            yield from ((one, node) for one in others)
            read = [one for one in read if one not in others]
        node = read[0]


def _scored(flow: Flow, scores: Node) -> list[Node]:
    """What the queries and keys are computed of whose products these are; none where both do not carry."""
    while scores.target not in LINEAR_MAPS and len(found := flow.carrying_operands(scores)) == 1:
        scores = found[0].node
    read = flow.carrying_operands(scores) if scores.target in CONTRACTIONS else ()
    return [projected(flow, operand.node) for operand in read] if len(read) == 2 else []


def _became(flow: Flow, order: Mapping[Node, int], origin: Node, node: Node) -> bool:
    """Whether a value is computed from what another one is a copy of."""
    while origin.target in RESHAPES and (read := flow.carrying_operands(origin)):
        origin = read[0].node
    seen, todo = {node}, [node]
    while todo:
        for operand in flow.carrying_operands(todo.pop()):
            one = operand.node
            if one is origin:
                return True
            if one not in seen and order[one] > order[origin]:
                seen.add(one)
                todo.append(one)
    return False
