"""Analysis: which module of a model takes or returns the value of a place, read off the graph.

A hook that returns another output changes what is read outside of the module; one that returns another input changes what
is read inside. So a value is changed for all its readers at the output of a module that made it and does not read it, or at
the input of a module in which all its readers are. Heads are such an input of the output projection, merged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.attribution.places import InsidePlace, places
from lxt_fx.base.nodes import fixed_size, shape, value, written_shape
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.module_values import GraphValues
from lxt_fx.ops.aten_kinds import MOVES, SHAPE_READERS

MOST_STEPS = 4
"""Reshapes between a value and the module that takes it."""


@dataclass(frozen=True, slots=True)
class HookPoint:
    """Where the value of a place can be changed in a model: at an input or the output of the module at `path`. `key` is the
    number or name of the tensor there, None for the only output. `layout` is how it lies there (`LAYOUTS`), `dims` how many
    dims it has then. `continues` says whether its positions go on where those of a cache end."""

    path: str
    entering: bool
    key: int | str | None
    layout: str
    dims: int
    continues: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """How a value lies at a module: to the axes of the place, and back."""

    to_place: Callable[[Tensor, tuple[int, int]], Tensor]
    back: Callable[[Tensor], Tensor]


LAYOUTS = {
    "same": Layout(lambda x, heads: x, lambda y: y),
    "merged heads": Layout(
        lambda x, heads: x.reshape(*x.shape[:-1], *heads).transpose(-3, -2), lambda y: y.transpose(-3, -2).flatten(-2)
    ),
    "merged heads behind tokens": Layout(lambda x, heads: x.reshape(*x.shape[:-1], *heads), lambda y: y.flatten(-2)),
    "heads behind tokens": Layout(lambda x, heads: x.transpose(-3, -2), lambda y: y.transpose(-3, -2)),
    "examples and tokens in one": Layout(lambda x, heads: x, lambda y: y),
}
"""`heads` are the number and the size of the heads, where the place has them."""


def heads_of(place: InsidePlace) -> tuple[int, int]:
    """The number and size of the heads of a place that has both axes, of fixed sizes; zeros for any other."""
    sizes = dict(zip(place.axes, place.shape, strict=True))
    found = [sizes.get(axis, "") for axis in ("heads", "size")]
    return (int(found[0]), int(found[1])) if all(map(str.isdigit, found)) else (0, 0)


def lies_as(found: Tensor, wanted: Tensor, heads: tuple[int, int], close: Callable[[Tensor, Tensor], bool]) -> str | None:
    """The layout in which a tensor at a module is the value of a place; None if it is another value."""
    for name, layout in LAYOUTS.items():
        if name == "examples and tokens in one":
            fits = {found.dim(), wanted.dim()} == {2, 3} and found.shape[-1] == wanted.shape[-1]
            if fits and found.numel() == wanted.numel() and close(found.reshape(wanted.shape), wanted):
                return name
            continue
        merged = found.dim() == 3 and found.shape[-1] == heads[0] * heads[1] > 0
        if (name.startswith("merged heads") and not merged) or (name == "heads behind tokens" and found.dim() != 4):
            continue
        seen = layout.to_place(found, heads)
        if seen.shape == wanted.shape and close(seen, wanted):
            return name
    return None


def candidates(explained: Explained, place: InsidePlace) -> Iterator[tuple[str, bool]]:
    """The modules at which the value could be changed for all its readers: (path, whether at an input), the nearest
    first."""
    values = explained._values()
    node = next(node for node in explained.graph.nodes if node.name == place.node)
    called = {path: len(calls) for path, calls in values.calls.items()}
    seen = set()
    for one in _copies(values, node):
        for candidate in _at(values, one):
            if called.get(candidate[0], 1) == 1 and candidate not in seen:
                seen.add(candidate)
                yield candidate


def continues(explained: Explained, place: InsidePlace) -> bool:
    """Whether the positions of the place are those of the text that a cache of the model continues: not those of what is
    computed from the input of an encoder alone, or from a picture."""
    node = next(node for node in explained.graph.nodes if node.name == place.node)
    inputs = [n for n in explained.graph.nodes if n.op == "placeholder"]
    decoded = [n for n in inputs if str(n.target).startswith("decoder_")]
    text = decoded or [n for n in inputs if str(n.target) in ("input_ids", "inputs_embeds")]
    return not text or not _values_above(node).isdisjoint(text)


def apart(explained: Explained, place: InsidePlace) -> InsidePlace:
    """The same value with examples and tokens in two dims, for a place that has them in one: what it is reshaped to or
    from. The place itself if it has a dim for examples, or there is no such value."""
    if len(place.axes) != 2 or [axis for axis, _ in place.merged] != ["batch", "tokens"]:
        return place
    node = next(node for node in explained.graph.nodes if node.name == place.node)
    for copy in _copies(explained._values(), node):
        sizes = written_shape(copy) or ()
        if len(sizes) == 3 and sizes[-1] == place.shape[-1]:
            return replace(place, node=copy.name, shape=sizes, axes=("batch", *place.axes), merged=())
    return place


def _values_above(node: Node) -> set[Node]:
    """The tensors that a value is computed from; sizes (all have the batch's) do not count."""
    seen, todo = {node}, [node]
    while todo:
        found = [each for each in todo.pop().all_input_nodes if each not in seen and not _is_size(each)]
        seen.update(found)
        todo += found
    return seen


def hookable(explained: Explained) -> list[str]:
    """The standard places that some module takes or returns."""
    return [name for name, place in places(explained).items() if next(candidates(explained, place), None) is not None]


def _copies(values: GraphValues, node: Node) -> Iterator[Node]:
    """The value itself, then what it is reshaped to or from, as long as nothing else reads it on the way."""
    yield node
    now = node
    for _ in range(MOST_STEPS):
        readers = [reader for reader in dict.fromkeys(values.readers(now)) if not _reads_shape(reader)]
        if len(readers) != 1 or readers[0].target not in MOVES or not _same_elements(readers[0], now):
            break
        now = readers[0]
        yield now
    now = node
    for _ in range(MOST_STEPS):
        tensors = [each for each in now.all_input_nodes if shape(each) is not None]
        if now.target not in MOVES or len(tensors) != 1:
            break
        before = values.of(tensors[0])
        readers = [reader for reader in dict.fromkeys(values.readers(before)) if not _reads_shape(reader)]
        if not _same_elements(now, before) or readers != [now]:
            break
        now = before
        yield now


def _same_elements(one: Node, other: Node) -> bool:
    """Whether a move may be a reshape or a transpose of all elements; the values decide."""
    sizes = [[fixed_size(size) for size in shape(node) or ()] for node in (one, other)]
    products = []
    for found in sizes:
        product = 1
        for size in found:
            product *= size or 1
        products.append(product)
    return products[0] == products[1]


def _at(values: GraphValues, node: Node) -> Iterator[tuple[str, bool]]:
    readers = [reader for reader in values.readers(node) if not _reads_shape(reader)]
    inside = [_stack(reader) for reader in readers]
    made = _stack(node)
    shared: dict[Any, str] = dict(inside[0]) if inside else {}
    for other in inside[1:]:
        shared = {key: path for key, path in shared.items() if key in other}
    for key, path in reversed(list(made.items())):
        if not any(key in stack for stack in inside):
            yield path, False
    for key, path in reversed(list(shared.items())):
        if key not in made:
            yield path, True


def _reads_shape(reader: Node) -> bool:
    """Whether a reader takes nothing but sizes, which no edit changes."""
    return reader.target in SHAPE_READERS or _is_size(reader)


def _is_size(node: Node) -> bool:
    return isinstance(value(node), (int, float, torch.SymInt, torch.SymFloat, torch.SymBool))


def _stack(node: Node) -> dict[str, str]:
    """The module calls that a node is made in, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return {str(key): str(path).split("@")[0] for key, (path, _) in stack.items()}
