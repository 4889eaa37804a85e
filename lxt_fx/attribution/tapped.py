"""A module that also returns values inside of it, from the same forward, so that one backward reaches them all.

The places become outputs of the graph, and the graph is fused again. An output owes its gradient nothing and is a reader,
so no fused op hides a place, and no share of a product moves past one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

from torch.fx import Graph, Node

from lxt_fx.attribution.places import InsidePlace, node_at
from lxt_fx.attribution.split_head import SplitModel, logits_index, split_beside
from lxt_fx.base.torch_internals import io_of, pytree, set_io
from lxt_fx.compiler.explained import Explained

MOST = 16
"""So many tapped graphs of a module are kept."""


@dataclass(frozen=True, eq=False)
class Tapped:
    """`module` takes the bound inputs of the graph by name and returns the output and a list of `count` values inside, in
    the order in which they were asked for."""

    module: Explained
    count: int
    _logits: int | None
    _fused: Graph
    _shared: Mapping[str, Any]

    @cached_property
    def split(self) -> SplitModel | None:
        """Both parts of the module, the body with the places beside the hidden states; None if it cannot be split."""
        flat = pytree.tree_leaves(self.module.fused.output_node().args[0])
        return split_beside(self.module, self._logits, flat[len(flat) - self.count :])

    def is_of(self, explained: Explained) -> bool:
        """Whether the module still has its graph, and shares its tensors: those of a loaded module are others once it has
        moved."""
        same = all(attrgetter(name)(explained) is tensor for name, tensor in self._shared.items())
        return same and self._fused is explained.fused


_MADE: WeakKeyDictionary[Explained, dict[tuple[str, ...], Tapped]] = WeakKeyDictionary()
"""The last tapped modules by the module that they are of: to make one costs more than a short text. They hold its record
and its parameters, and never the module itself, so that both are freed with it."""


def tapped(explained: Explained, places: Mapping[str, InsidePlace]) -> Tapped:
    """The module with these places as further outputs. It shares all parameters."""
    key = tuple(place.node for place in places.values())
    return tapped_as(explained, key, lambda graph: [node_at(explained, place).name for place in places.values()])


def tapped_as(explained: Explained, key: tuple[str, ...], edit: Callable[[Graph], Sequence[str]]) -> Tapped:
    """The module with further outputs, as `edit` names them: the nodes of a copy of its graph, which `edit` may change. The
    same `key` is the same edit."""
    made = _MADE.setdefault(explained, {})
    found = made.pop(key, None)
    if found is None or not found.is_of(explained):
        found = _tapped(explained, edit)
    made[key] = found
    while len(made) > MOST:
        del made[next(iter(made))]
    return found


def _tapped(explained: Explained, edit: Callable[[Graph], Sequence[str]]) -> Tapped:
    taps: list[str] = []

    def edited(graph: Graph) -> None:
        taps.extend(edit(graph))
        _with_outputs(graph, taps)

    module = explained._edited(edited)
    names = {str(node.target) for node in module.fused.nodes if node.op == "get_attr"}
    shared = {name: attrgetter(name)(explained) for name in names}
    return Tapped(module, len(taps), logits_index(explained), explained.fused, shared)


def _with_outputs(graph: Graph, names: Iterable[str]) -> None:
    """Makes these nodes outputs, behind those that there are."""
    by_name = {node.name: node for node in graph.nodes}
    found: list[Node] = [by_name[name] for name in names]
    output, io = graph.output_node(), io_of(graph)
    flat = pytree.tree_leaves(output.args[0])
    output.args = ((*flat, *found),)
    whole = pytree.tree_unflatten([0] * io.out_spec.num_leaves, io.out_spec)
    set_io(graph, replace(io, out_spec=pytree.tree_structure((whole, [0] * len(found)))))
