"""A graph that runs segment by segment: consecutive nodes become a function of what they read, weights included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from lxt_fx.base.nodes import shape
from lxt_fx.base.torch_internals import OpOverload, copy_io, schema_of
from lxt_fx.ops.by_queries import LazyMask, LazySimplestMask
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves


@dataclass(frozen=True, slots=True)
class Segments:
    """Where a graph is cut: the name of the first node of each segment, and of the first node after the last segment.
    `places` names the layers of each segment."""

    starts: tuple[str, ...]
    end: str
    places: tuple[str, ...]

    def __str__(self) -> str:
        return f"{len(self.starts)} segments: {', '.join(self.places)}"


@dataclass(frozen=True, slots=True)
class Segment:
    """A segment as a graph of its own, whose inputs are all that it reads. The last of them are the `weights`, which its
    function gets by itself: they are named as in the module. `draws` says whether it may draw random numbers."""

    graph: Graph
    index: int
    draws: bool
    weights: tuple[str, ...] = ()


Called = Callable[[Segment], Callable[..., Any]]
"""Makes the function that a segment is called by."""


def forward_by_segments(
    graph: Graph, segments: Segments, called: Called, own: frozenset[str] = frozenset()
) -> Callable[..., Any]:
    """The forward of a GraphModule of this graph in which each segment is the function that `called` makes of it, in the
    order of their calls.

    It reads every parameter from the module that it is called on and holds none itself. Nodes before the first segment are
    outside of all segments, and so are values that depend on sizes and constants only and are read by several segments.
    The weights of the module that `own` names are not read: a segment gets its own ones. A node that reads one of them
    outside of all segments is a segment alone.
    """
    nodes = list(graph.nodes)
    missing = {*segments.starts} - {node.name for node in nodes}
    assert not missing, f"the graph is cut at nodes that it does not have: {missing}"
    weights = {node for node in nodes if node.op == "get_attr" and node.target in own}
    places = segment_of(nodes, segments)
    alone = [node for node in nodes if node not in places and not weights.isdisjoint(node.all_input_nodes)]
    places.update((node, len(nodes) + index) for index, node in enumerate(alone) if node.op == "call_function")
    members: dict[int, list[Node]] = {}
    for node, index in places.items():
        members.setdefault(index, []).append(node)
    outer = Graph()
    copy_io(graph, outer)
    outer_of: dict[Node, Node] = {}
    for node in nodes:
        if node not in places and node not in weights:
            outer_of[node] = outer.node_copy(node, outer_of.__getitem__)
        elif node in places and node is members[places[node]][-1]:
            outer_of.update(_call(outer, outer_of, places[node], members[places[node]], called, weights))
    outer.lint()
    return forward_of(outer)


def segment_of(nodes: list[Node], segments: Segments) -> dict[Node, int]:
    """The segment of each node that belongs to one."""
    starts = {name: index for index, name in enumerate(segments.starts)}
    found: dict[Node, int] = {}
    current = None
    for node in nodes:
        current = None if node.name == segments.end else starts.get(node.name, current)
        if node.op == "call_function" and current is not None:
            found[node] = current
    known = known_early(nodes)
    for node in reversed(nodes):
        if node in known and node in found and any(found.get(user) != found[node] for user in node.users):
            del found[node]  # computed once for all its readers
    return found


def known_early(nodes: list[Node]) -> set[Node]:
    """Nodes that depend on sizes, parameters and inputs without relevance only: masks, rotary tables, position biases."""
    known: set[Node] = set()
    leaves = set(relevance_leaves(nodes[0].graph))
    for node in nodes:
        if node.op in ("placeholder", "get_attr"):
            known.add(node)
        elif node.op == "call_function" and _is_pure(node) and known.issuperset(node.all_input_nodes):
            reads_leaf = not leaves.isdisjoint(node.all_input_nodes)
            if not reads_leaf or shape(node) is None:  # the size of a leaf may be read, its values may not
                known.add(node)
    return known


def _is_pure(node: Node) -> bool:
    if isinstance(node.target, OpOverload):
        return not schema_of(node.target).is_mutable and not _draws(node)
    if isinstance(node.target, (LazyMask, LazySimplestMask)):
        return True
    return getattr(node.target, "__module__", "") in ("_operator", "torch")


def _draws(node: Node) -> bool:
    """Whether the node may draw random numbers."""
    return isinstance(node.target, OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def _call(
    outer: Graph, outer_of: dict[Node, Node], index: int, members: list[Node], called: Called, weights: set[Node]
) -> Iterator[tuple[Node, Node]]:
    """Inserts a call of the segment into the outer graph. Yields each node that others read, with its new node."""
    inside = set(members)
    outside = dict.fromkeys(node for member in members for node in member.all_input_nodes if node not in inside)
    read, own = ([node for node in outside if (node in weights) is is_own] for is_own in (False, True))
    given = [member for member in members if any(user not in inside for user in member.users)]
    inner = Graph()
    inner_of = {node: inner.placeholder(node.name) for node in (*read, *own)}
    for member in members:
        inner_of[member] = inner.node_copy(member, inner_of.__getitem__)
    inner.output(tuple(inner_of[node] for node in given))
    inner.lint()
    names = tuple(str(node.target) for node in own)
    segment = called(Segment(inner, index, draws=any(map(_draws, members)), weights=names))
    values = outer.call_function(segment, tuple(outer_of[node] for node in read))
    for position, node in enumerate(given):
        item = outer.call_function(_item, (values, position))
        item.meta = dict(node.meta)
        yield node, item


def _item(values: tuple[Any, ...], position: int) -> Any:
    return values[position]


def forward_of(graph: Graph) -> Callable[..., Any]:
    """The graph as a function `forward(self, ...)`."""
    code = graph.python_code(root_module="self")
    scope = dict(code.globals)
    exec(code.src, scope)
    forward: Callable[..., Any] = scope["forward"]
    return forward
