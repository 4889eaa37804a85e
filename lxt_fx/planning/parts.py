"""Analysis: a graph as a row of parts, each a graph of its own: before the layers, the layers, behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Graph, Node

from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.passes.segments.by_segments import Segments, known_early, segment_of
from lxt_fx.passes.segments.stages import layer_weights

BEFORE, BEHIND = "before the layers", "behind the layers"


@dataclass(frozen=True, slots=True)
class GraphPart:
    """Consecutive nodes as a function: `graph` has an input for each node in `reads`, and returns those in `gives`.
    `weights` are the paths of the parameters and buffers that it and the
    shared values that it reads are computed from. `recomputes` says whether it may be run again in
    the backward, `draws` whether it may draw random numbers."""

    name: str
    graph: Graph
    reads: tuple[Node, ...]
    gives: tuple[Node, ...]
    weights: tuple[str, ...]
    recomputes: bool
    draws: bool


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts in the order in which they run. `shared` are the nodes that belong to none, because they depend on sizes,
    parameters and inputs without relevance only and several parts read them (masks, tables of positions): they run before
    the parts, in this order. `by_layer` are the paths of the weights by which layers are dealt to stages."""

    shared: tuple[Node, ...]
    parts: tuple[GraphPart, ...]
    by_layer: tuple[frozenset[str], ...]


def parts_of(graph: Graph, segments: Segments) -> Parts:
    """Analysis: the parts of a graph that is cut into these segments."""
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    found = segment_of(list(graph.nodes), segments)
    known = known_early(list(graph.nodes))
    names = dict(enumerate(segments.places))
    members: dict[str, list[Node]] = {}
    shared: list[Node] = []
    for node in nodes:
        if node in found:
            members.setdefault(names[found[node]], []).append(node)
        elif node in known:
            shared.append(node)
        else:
            members.setdefault(BEHIND if any(name in members for name in segments.places) else BEFORE, []).append(node)
    order = [name for name in (BEFORE, *segments.places, BEHIND) if name in members]
    shared_weights = _weights_of(shared)
    parts = tuple(_part(name, members[name], name in segments.places, shared_weights) for name in order)
    return Parts(tuple(shared), parts, tuple(map(frozenset, layer_weights(graph, segments))))


def _weights_of(shared: Sequence[Node]) -> dict[Node, frozenset[str]]:
    """The paths of the weights that each of these nodes is computed from."""
    found: dict[Node, frozenset[str]] = {}
    for node in shared:
        read = {str(each.target) for each in node.all_input_nodes if each.op == "get_attr"}
        found[node] = frozenset(read).union(*(found.get(each, frozenset()) for each in node.all_input_nodes))
    return found


def _part(
    name: str, members: Sequence[Node], recomputes: bool, shared_weights: Mapping[Node, frozenset[str]]
) -> GraphPart:
    inside = set(members)
    read = dict.fromkeys(node for member in members for node in member.all_input_nodes if node not in inside)
    given = tuple(member for member in members if any(user not in inside for user in member.users))
    graph = Graph()
    copies = {node: graph.placeholder(node.name) for node in read}
    for member in members:
        copies[member] = graph.node_copy(member, copies.__getitem__)
    graph.output(tuple(copies[node] for node in given))
    weights = {str(node.target) for node in read if node.op == "get_attr"}
    weights |= {path for node in read for path in shared_weights.get(node, ())}
    return GraphPart(name, graph, tuple(read), given, tuple(sorted(weights)), recomputes, any(map(_draws, members)))


def _draws(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags
