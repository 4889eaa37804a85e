"""Analysis: what each dimension of a value inside a model holds. It is read from sizes and from how the graph moves them,
since models put examples and tokens in any order, or both in one dimension."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch.fx import Graph, Node

from lxt_fx.attribution.standard_axes import standard_axes
from lxt_fx.attribution.standard_places import kind_of, standard_places
from lxt_fx.base.nodes import operands, shape, written_shape
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.analysis.find_reordered import find_reordered
from lxt_fx.passes.positions.through_ops import move_through_ops
from lxt_fx.passes.positions.token_axis import Axis, Selection, expression, is_one, quotient

BATCH, TOKENS = "batch", "tokens"
HEADS = ("batch", "heads", "tokens", "size")
_REORDERED: WeakKeyDictionary[Graph, tuple[Set[str], Set[str]]] = WeakKeyDictionary()
TOKEN_AXES = (TOKENS, "queries", "positions")
"""The names of an axis of tokens: of a pattern of attention it is that of the queries."""


@dataclass(frozen=True, slots=True)
class Axes:
    """One name for each dimension of a value. `merged` are the two that its first dimension holds, the outer one first,
    with their sizes as text; empty if it holds one, or if the graph does not say in which order."""

    names: tuple[str, ...]
    merged: tuple[tuple[str, str], ...] = ()


def unit_axis(axes: Sequence[str]) -> int:
    """The axis whose indices are the units of a place with these axes: that of its heads, else the last."""
    return axes.index("heads") if "heads" in axes else len(axes) - 1


def token_axis(axes: Sequence[str]) -> int | None:
    """The axis of tokens; None if there is none."""
    return next((axes.index(name) for name in TOKEN_AXES if name in axes), None)


def axes_of(explained: Explained, name: str, node: Node) -> Axes:
    """What the dimensions of the value at a node hold, which is asked for by this name.

    The dimension of the examples is the one with their size, where that is free. Where it is a fixed number, the order is
    that of the kind of place: examples come first. Where the model may have put examples or tokens in another order, the
    name of their dimension is `dim` with its number: no part of the value is known to belong to an example, or to a token.
    """
    found = _axes_of(explained, name, node)
    examples, tokens = (node.name in names for names in _reordered(explained))
    lost = (BATCH,) * examples + TOKEN_AXES * tokens
    if not lost or not {*found.names, *(name for name, _ in found.merged)}.intersection(lost):
        return found
    return Axes(tuple(f"dim{at}" if each in lost else each for at, each in enumerate(found.names)))


def _axes_of(explained: Explained, name: str, node: Node) -> Axes:
    sizes, batches = written_shape(node) or (), _batch_sizes(explained)
    known = _of_standard_place(explained, name, node, sizes)
    if known:
        both = known[0].split("*")
        return Axes(known) if len(both) == 1 else _merged(explained, (both[1], *known[1:]), node, batches)
    names = _names(name, len(sizes))
    if not batches or any(size in batches for size in sizes[:1]) or names[:1] in ((), ("units",)):
        return Axes(_with_tokens(explained, names, sizes) if sizes[:1] and sizes[0] in batches else names)
    at = [index for index, size in enumerate(sizes) if size in batches]
    if at:
        rest = [each for each in names if each != BATCH] if BATCH in names else list(names[1:])
        moved = (*rest[: at[0]], BATCH, *rest[at[0] :])
        return Axes(_with_tokens(explained, moved, sizes))
    return _merged(explained, names, node, batches)


def _names(name: str, dims: int) -> tuple[str, ...]:
    """Names for the dimensions where their sizes do not say what they are: by the kind of a place of heads, if it has as
    many, else those of a value [batch, tokens, units]; any others are numbered."""
    if dims == len(HEADS) and not name.startswith("%") and kind_of(name) in ("heads", "queries", "keys", "values"):
        return HEADS
    names = {1: ("units",), 2: (BATCH, "units"), 3: (BATCH, TOKENS, "units")}
    return names.get(dims, (BATCH, *(f"dim{index}" for index in range(1, dims - 1)), "units") if dims else ())


def _of_standard_place(explained: Explained, name: str, node: Node, sizes: Sequence[str]) -> tuple[str, ...]:
    """The names of the dimensions of a standard place; empty for another value, and where its sizes do not say them."""
    standard = standard_places(explained)
    if standard.get(name) != node.name:
        return ()
    by_name = explained._values().by_name
    layer = re.match(r"(.*?)(?:cross_)?(?:residual|attention|mlp|experts|mixer)\.(\d+)\.", name)
    before = standard.get(f"{layer[1]}residual.{layer[2]}", "") if layer else ""
    around = written_shape(by_name[before]) if before in by_name else None
    inputs = explained.graph.find_nodes(op="placeholder")
    leaves = [written_shape(each) for each in inputs if each.target == explained.record.leaves[0]]
    found = standard_axes(kind_of(name), sizes, around, leaves[0] if leaves else None)
    return () if any(each.startswith("dim") for each in found) else found


def _batch_sizes(explained: Explained) -> dict[str, Any]:
    """The free sizes of the first dimension of the leaves, as text and as expressions."""
    found = {}
    for node in explained.graph.find_nodes(op="placeholder"):
        sizes = shape(node) if str(node.target) in explained.record.leaves else None
        if sizes and not expression(sizes[0]).is_number:
            found[str(sizes[0])] = expression(sizes[0])
    return found


def _with_tokens(explained: Explained, names: tuple[str, ...], sizes: Sequence[str]) -> tuple[str, ...]:
    """The names of a value by heads, with the tokens where their size stands: some models have them before the heads."""
    if sorted(names) != sorted(HEADS):
        return names
    tokens = {size for size in _token_sizes(explained) if list(sizes).count(size) == 1}
    at = [index for index, size in enumerate(sizes) if size in tokens and names[index] != BATCH]
    if len(at) != 1:
        return names
    others = iter(("heads", "size"))
    return tuple(TOKENS if index == at[0] else BATCH if each == BATCH else next(others) for index, each in enumerate(names))


def _token_sizes(explained: Explained) -> set[str]:
    """The sizes of the axis of tokens in the residual streams."""
    by_name, batches = explained._values().by_name, _batch_sizes(explained)
    found = set()
    for place, name in standard_places(explained).items():
        sizes = written_shape(by_name[name]) if name in by_name and kind_of(place) == "residual" else None
        found |= {size for size in (sizes or ())[:-1] if size not in batches}
    return found


def _merged(explained: Explained, names: tuple[str, ...], node: Node, batches: Mapping[str, Any]) -> Axes:
    """Examples and something else in the first dimension: in the order in which a reshape joined them."""
    first = expression((shape(node) or (1,))[0])
    for text, batch in batches.items():
        rest = quotient(first, batch)
        if rest is None:
            continue
        other = names[0] if names[0] != BATCH else TOKENS if str(rest) in _token_sizes(explained) else "dim1"
        names = (other, *names[1:])
        start = canonical_node(explained, node)
        by_batch = start is not None and _comes_apart(start, Axis(0, rest), batch)
        by_other = start is not None and _comes_apart(start, Axis(0), batch)
        if by_batch == by_other:
            return Axes(names)
        pair = ((BATCH, text), (other, str(rest)))
        return Axes(names, pair if by_batch else pair[::-1])
    return Axes(names)


def _reordered(explained: Explained) -> tuple[Set[str], Set[str]]:
    """The names of the values whose examples, and of those whose tokens, the model may have put in another order. They are
    found once for each graph."""
    canonical = explained.record.stages["canonical"].graph
    if canonical not in _REORDERED:
        renamed = explained.record.renamed
        found = (node for node in canonical.find_nodes(op="placeholder") if node.target in explained.record.leaves)
        leaves = [written_shape(node) or () for node in found]  # a size of an export may be a fixed number
        batches = {sizes[0] for sizes in leaves if sizes} - {"1"}
        tokens_of_leaves = {sizes[1] for sizes in leaves if len(sizes) == 3} - {"1"}
        wanted = (batches, _token_sizes(explained) | tokens_of_leaves)
        both = (find_reordered(canonical, sizes) for sizes in wanted)
        examples, tokens = (frozenset(renamed.get(each.name, each.name) for each in found) for found in both)
        _REORDERED[canonical] = examples, tokens
    return _REORDERED[canonical]


def canonical_node(explained: Explained, node: Node) -> Node | None:
    """The node of the canonical graph that has this value, whose ops are those of the model."""
    back = {new: old for old, new in explained.record.renamed.items()}
    name = back.get(node.name, node.name)
    found = (each for each in explained.record.stages["canonical"].graph.nodes if each.name == name)
    return next(found, None)


def _comes_apart(node: Node, axis: Axis, batch: Any) -> bool:
    """Whether the examples of a value, if they lie along this axis, come from a dimension of examples alone."""
    selection = Selection(batch, 1)
    while True:
        sizes = shape(node) or (1,)
        if expression(sizes[axis.dim]) == batch:
            return is_one(axis.inner)
        move = move_through_ops(node, axis, selection)
        found = {operand.name: operand.node for operand in operands(node)}
        following = [(found[name], at) for name, at in move.operands.items() if name in found] if move is not None else []
        if not following:
            return False
        node, axis = following[0]
