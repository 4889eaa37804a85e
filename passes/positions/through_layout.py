"""Analysis: how a selection of positions moves through an op that only rearranges elements."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from lxt_fx.base.nodes import arguments, operands, shape, value
from lxt_fx.base.torch_internals import aten
from lxt_fx.passes.positions.token_axis import (
    Axis,
    Move,
    Selection,
    expression,
    is_one,
    item_shape,
    product,
    quotient,
    same,
)


def move_through_layout(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """Analysis: what the op needs in order to compute its output at the selected positions of `axis` only. None where it
    mixes tokens or is unknown."""
    rule = _RULES.get(node.target)
    return None if rule is None else rule(node, axis, selection)


def _operand(node: Node) -> tuple[str, tuple[Any, ...]] | None:
    """The first tensor that the op reads, and its shape."""
    found = operands(node)
    sizes = item_shape(found[0].node) if found else None
    return None if sizes is None else (found[0].name, sizes)


def _number(node: Node, name: str, default: Any = None) -> Any:
    return arguments(node).get(name, default)


def _reshaped(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """A reshape does not reorder elements, so the tokens are found by the number of elements from one to the next."""
    before, after = _operand(node), shape(node)
    if before is None or after is None:
        return None
    found = _axis_in(before[1], axis.inner * product(after[axis.dim + 1 :]), selection)
    return None if found is None else Move({before[0]: found})


def _axis_in(sizes: tuple[Any, ...], step: Any, selection: Selection) -> Axis | None:
    """The axis along which one token and the next are `step` elements apart."""
    behind = expression(1)
    for dim in reversed(range(len(sizes))):
        inner = quotient(step, behind)
        size = expression(sizes[dim])
        if inner is not None and quotient(size, selection.tokens * inner) is not None:
            return Axis(dim, inner)
        behind = behind * size
    return None


def _view(node: Node, axis: Axis, selection: Selection) -> Move | None:
    move = _reshaped(node, axis, selection)
    name = "shape" if node.target is aten.reshape.default else "size"
    sizes = list(_number(node, name))
    new = _resized(sizes, axis.dim, shape(node) or (), selection)
    if move is None or new is None:
        return None
    # what is selected lies apart in memory, which a view may not be able to show
    return Move(move.operands, {name: new}, aten.reshape.default)


def _resized(sizes: list[Any], dim: int, found: tuple[Any, ...], selection: Selection) -> list[Any] | None:
    """The sizes that a view is asked for with fewer tokens in `dim`."""
    if sizes[dim] == -1:
        return sizes
    rest = quotient(expression(found[dim]), selection.tokens)
    if rest is not None and rest.is_Integer:
        return [*sizes[:dim], int(rest) * selection.count, *sizes[dim + 1 :]]
    free = [index for index, size in enumerate(sizes) if isinstance(size, int) and size == -1]
    if free and not isinstance(found[free[0]], int):
        return None
    sizes = [found[index] if index in free else size for index, size in enumerate(sizes)]
    return [*sizes[:dim], -1, *sizes[dim + 1 :]]


def _unflatten(node: Node, axis: Axis, selection: Selection) -> Move | None:
    move = _reshaped(node, axis, selection)
    first = _number(node, "dim") % len((_operand(node) or ("", (1,)))[1])
    sizes = list(_number(node, "sizes"))
    if move is None or not first <= axis.dim < first + len(sizes):
        return move
    parts = (shape(node) or ())[first : first + len(sizes)]
    new = _resized(sizes, axis.dim - first, parts, selection)
    return None if new is None else Move(move.operands, {"sizes": new})


def _squeeze(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """A single token would be squeezed away where many are not."""
    move = _reshaped(node, axis, selection)
    dims = _number(node, "dim")
    if move is None or dims is None:
        return None
    (found,) = move.operands.values()
    rank = len((_operand(node) or ("", ()))[1])
    return None if found.dim in {dim % rank for dim in ([dims] if isinstance(dims, int) else dims)} else move


def _expand(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """Where the op itself makes the tokens, it makes fewer."""
    before, after = _operand(node), shape(node)
    if before is None or after is None:
        return None
    sizes = list(_number(node, "size"))
    dim = axis.dim - (len(after) - len(before[1]))
    if dim >= 0 and same(before[1][dim], after[axis.dim]):
        return Move({before[0]: Axis(dim, axis.inner)}, {"size": [*sizes[: axis.dim], -1, *sizes[axis.dim + 1 :]]})
    if not same(after[axis.dim], selection.tokens):
        return None
    return Move({}, {"size": [*sizes[: axis.dim], selection.count, *sizes[axis.dim + 1 :]]})


def _permuted(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """The op is asked where it puts a dim, by a tensor whose sizes tell them apart."""
    before = _operand(node)
    if before is None:
        return None
    told_apart = torch.empty([dim + 2 for dim in range(len(before[1]))], device="meta")
    op: Any = node.target
    moved = op(told_apart, *node.args[1:], **node.kwargs)
    return Move({before[0]: Axis(moved.shape[axis.dim] - 2, axis.inner)})


def _cut(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """slice, narrow, index_select, flip along another dim."""
    before = _operand(node)
    if before is None:
        return None
    dims = _number(node, "dim", 0)
    dims = _number(node, "dims", dims)
    cut = {dim % len(before[1]) for dim in ([dims] if isinstance(dims, int) else dims)}
    return None if axis.dim in cut or not cut else Move({before[0]: axis})


def _select(node: Node, axis: Axis, selection: Selection) -> Move | None:
    before = _operand(node)
    if before is None:
        return None
    gone = _number(node, "dim", 0) % len(before[1])
    return Move({before[0]: Axis(axis.dim + (axis.dim >= gone), axis.inner)})


def _parts(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """split and chunk along another dim."""
    before = _operand(node)
    if before is None:
        return None
    return None if _number(node, "dim", 0) % len(before[1]) == axis.dim else Move({before[0]: axis})


def _item(node: Node, axis: Axis, selection: Selection) -> Move | None:
    return Move({"arg0": axis})


def _cat(node: Node, axis: Axis, selection: Selection) -> Move | None:
    after = shape(node) or ()
    found = operands(node)
    if _number(node, "dim", 0) % len(after) == axis.dim or any(len(shape(o.node) or ()) != len(after) for o in found):
        return None
    return Move({operand.name: axis for operand in found})


def _stack(node: Node, axis: Axis, selection: Selection) -> Move | None:
    new = _number(node, "dim", 0) % len(shape(node) or (1,))
    if new == axis.dim:
        return None
    inner = Axis(axis.dim - (axis.dim > new), axis.inner)
    return Move({operand.name: inner for operand in operands(node)})


def _repeat(node: Node, axis: Axis, selection: Selection) -> Move | None:
    before, after = _operand(node), shape(node)
    if before is None or after is None:
        return None
    repeats = list(_number(node, "repeats", _number(node, "dims")))
    dim = axis.dim - (len(after) - len(before[1]))
    if len(repeats) != len(after) or dim < 0 or repeats[axis.dim] != 1:
        return None
    return Move({before[0]: Axis(dim, axis.inner)})


def _repeat_interleave(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """k copies of each entry beside it: the step to the next token is k times as long."""
    before, dim, repeats = _operand(node), _number(node, "dim"), _number(node, "repeats")
    if before is None or not isinstance(dim, int) or not isinstance(repeats, int):
        return None
    if dim % len(before[1]) != axis.dim:
        return Move({before[0]: axis})
    inner = quotient(axis.inner, expression(repeats))
    if inner is None:
        return None
    whole = {"output_size": None} if "output_size" in arguments(node) else {}
    return Move({before[0]: Axis(axis.dim, inner)}, whole)


def _pad(node: Node, axis: Axis, selection: Selection) -> Move | None:
    before, pad = _operand(node), list(_number(node, "pad"))
    if before is None:
        return None
    place = 2 * (len(before[1]) - 1 - axis.dim)
    return Move({before[0]: axis}) if all(n == 0 for n in pad[place : place + 2]) else None


def _complex(node: Node, axis: Axis, selection: Selection) -> Move | None:
    before, after = _operand(node), shape(node)
    if before is None or after is None or axis.dim >= min(len(before[1]), len(after) - (len(after) > len(before[1]))):
        return None
    return Move({before[0]: axis})


def _looked_up(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """An embedding: one vector for each id."""
    after = shape(node) or ()
    return None if axis.dim == len(after) - 1 else Move({"indices": axis})


def _one_hot(node: Node, axis: Axis, selection: Selection) -> Move | None:
    after = shape(node) or ()
    return None if axis.dim == len(after) - 1 else Move({"self": axis})


def _index(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """x[i, j]: what i and j give lies in one block of dims, at the place of the first of them."""
    named, after = arguments(node), shape(node) or ()
    given = [(n, index) for n, index in enumerate(named["indices"]) if index is not None]
    if not given or any(value(index).dtype in (torch.bool, torch.uint8) for _, index in given):
        return None
    places = [n for n, _ in given]
    first = places[0] if places == list(range(places[0], places[-1] + 1)) else 0
    block = max(len(shape(index) or ()) for _, index in given)
    if first <= axis.dim < first + block:
        asked = {}
        for n, index in given:
            sizes = shape(index) or ()
            dim = axis.dim - first - (block - len(sizes))
            if dim < 0 or is_one(sizes[dim]):
                continue
            if not same(sizes[dim], after[axis.dim]):
                return None
            asked[f"indices[{n}]"] = Axis(dim, axis.inner)
        return Move(asked) if asked else None
    left = [dim for dim in range(len(shape(named["self"]) or ())) if dim not in places]
    return Move({"self": Axis(left[axis.dim if axis.dim < first else axis.dim - block], axis.inner)})


def _along(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """gather and scatter along another dim, where all operands have as many entries along the tokens."""
    after = shape(node) or ()
    named = [operand for operand in operands(node) if shape(operand.node)]
    if not isinstance(dim := _number(node, "dim"), int) or dim % len(after) == axis.dim:
        return None
    for operand in named:
        sizes = shape(operand.node) or ()
        if len(sizes) != len(after) or not same(sizes[axis.dim], after[axis.dim]):
            return None
    return Move({operand.name: axis for operand in named})


_Rule = Callable[[Node, Axis, Selection], Move | None]

_RULES: dict[Any, _Rule] = {
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), _view),
    **dict.fromkeys((aten.flatten.using_ints, aten.unsqueeze.default), _reshaped),
    **dict.fromkeys((aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default), _squeeze),
    **dict.fromkeys((aten.expand.default, aten.broadcast_to.default), _expand),
    **dict.fromkeys((aten.transpose.int, aten.permute.default, aten.movedim.int, aten.movedim.intlist), _permuted),
    **dict.fromkeys((aten.slice.Tensor, aten.narrow.default, aten.index_select.default, aten.flip.default), _cut),
    **dict.fromkeys((aten.split.Tensor, aten.split.sizes, aten.split_with_sizes.default, aten.chunk.default), _parts),
    aten.tensor_split.sections: _parts,
    **dict.fromkeys((aten.unbind.int, aten.select.int), _select),
    **dict.fromkeys((aten.repeat.default, aten.tile.default), _repeat),
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _pad),
    **dict.fromkeys((aten.view_as_complex.default, aten.view_as_real.default), _complex),
    **dict.fromkeys((aten.gather.default, aten.scatter.src, aten.scatter.value, aten.scatter_add.default), _along),
    aten.unflatten.int: _unflatten,
    aten.cat.default: _cat,
    aten.stack.default: _stack,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.embedding.default: _looked_up,
    aten.one_hot.default: _one_hot,
    aten.index.Tensor: _index,
    operator.getitem: _item,
}
