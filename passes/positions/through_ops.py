"""Analysis: how a selection of positions moves through an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

from lxt_fx.base.nodes import arguments, operands, shape
from lxt_fx.base.torch_internals import OpOverload, aten, aten_ops, schema_of
from lxt_fx.ops import norms
from lxt_fx.ops.aten_kinds import ALONG, POINTWISE, REDUCED
from lxt_fx.ops.packed import packed_linear
from lxt_fx.ops.sources import SOURCES
from lxt_fx.passes.positions.through_layout import move_through_layout
from lxt_fx.passes.positions.token_axis import Axis, Move, Selection, is_one, item_shape, same


def move_through_ops(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """Analysis: what the op needs in order to compute its output at the selected positions of `axis` only. A linear map
    needs its input there; an attention needs its queries there, and all keys and values. None where the op mixes tokens or
    is unknown."""
    op: Any = node.target
    if node.op != "call_function" or (isinstance(op, OpOverload) and schema_of(op).is_mutable):
        return None
    rule = _RULES.get(op)
    if rule is not None:
        return rule(node, axis, selection)
    if _is_pointwise(op):
        return _pointwise(node, axis, selection)
    return move_through_layout(node, axis, selection)


_POINTWISE = (POINTWISE - {aten.prelu.default}) | SOURCES | aten_ops(
    """
    __and__.Tensor __or__.Tensor __xor__.Tensor max.other min.other detach contiguous to.device floor_divide expand_as
    polar complex real zeros_like ones_like full_like empty_like
    """
)
"""Those that torch has not tagged as pointwise among them."""


def _is_pointwise(op: Any) -> bool:
    tags = getattr(op, "tags", ())
    return op in _POINTWISE or (torch.Tag.pointwise in tags and torch.Tag.nondeterministic_seeded not in tags)


def _pointwise(node: Node, axis: Axis, selection: Selection) -> Move | None:
    return _aligned(node, axis, [operand.name for operand in operands(node)])


def _aligned(node: Node, axis: Axis, names: list[str], behind: int = 0) -> Move | None:
    """Operands that are broadcast against each other: the selection goes to each one that has the tokens. The last
    `behind` dims of the output do not take part in broadcasting."""
    after = shape(node)
    if after is None or axis.dim >= len(after) - behind:
        return None
    asked: dict[str, Axis] = {}
    for operand in operands(node):
        sizes = shape(operand.node)
        if operand.name not in names or sizes is None:
            continue
        dim = axis.dim - (len(after) - len(sizes))
        if dim < 0 or is_one(sizes[dim]):
            continue
        if not same(sizes[dim], after[axis.dim]):
            return None
        asked[operand.name] = Axis(dim, axis.inner)
    return Move(asked) if asked else None


def _linear(node: Node, axis: Axis, selection: Selection) -> Move | None:
    return Move({"input": axis}) if axis.dim < len(shape(node) or ()) - 1 else None


def _addmm(node: Node, axis: Axis, selection: Selection) -> Move | None:
    if axis.dim != 0:
        return None
    bias = _aligned(node, axis, ["self"])
    return Move({"mat1": axis, **(bias.operands if bias else {})})


def _matmul(node: Node, axis: Axis, selection: Selection) -> Move | None:
    named, after = arguments(node), shape(node) or ()
    left, right = shape(named["self"]) or (), shape(named["other"]) or ()
    if min(len(left), len(right)) < 2:
        return None
    if axis.dim == len(after) - 2:
        return Move({"self": Axis(len(left) - 2, axis.inner)})
    if axis.dim == len(after) - 1:
        return Move({"other": Axis(len(right) - 1, axis.inner)})
    return _aligned(node, axis, ["self", "other"], behind=2)


def _attention(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """Queries are independent of each other; where a query sees the keys up to its own place, the mask must say which."""
    named, rank = arguments(node), len(shape(node) or ())
    queries, mask = shape(named["query"]) or (), named.get("attn_mask")
    if axis.dim == rank - 1:
        return None
    if axis.dim < rank - 2:
        return _aligned(node, axis, ["query", "key", "value", "attn_mask"], behind=2)
    asked = {"query": Axis(len(queries) - 2, axis.inner)}
    if isinstance(mask, Node):
        sizes = shape(mask) or ()
        if len(sizes) < 2 or not (is_one(sizes[-2]) or same(sizes[-2], queries[-2])):
            return None
        if not is_one(sizes[-2]):
            asked["attn_mask"] = Axis(len(sizes) - 2, axis.inner)
    if not named.get("is_causal", False):
        return Move(asked)
    square = same(queries[-2], (shape(named["key"]) or ())[-2]) and same(queries[-2], selection.tokens) and mask is None
    return Move(asked, {"is_causal": False}) if square else None


def _along_another(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """softmax, cumsum, sort and topk along another dim; the output has the dims of the input."""
    rank = len(item_shape(node) or (1,))
    dim = _argument(node, "dim")
    return None if not isinstance(dim, int) or dim % rank == axis.dim else Move({"self": axis})


def _reduced(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """Sum, mean and maximum along other dims, with or without `keepdim`."""
    before = shape(node.args[0]) if isinstance(node.args[0], Node) else None
    dims = _argument(node, "dim")
    if before is None or dims is None or dims == []:
        return None
    gone = {dim % len(before) for dim in ([dims] if isinstance(dims, int) else dims)}
    left = [dim for dim in range(len(before)) if _argument(node, "keepdim") or dim not in gone]
    found = left[axis.dim]
    return None if found in gone else Move({operands(node)[0].name: Axis(found, axis.inner)})


def _argument(node: Node, name: str) -> Any:
    """The argument of that name, or its default."""
    named, op = arguments(node), node.target
    if name in named or not isinstance(op, OpOverload):
        return named.get(name)
    return next((a.default_value for a in schema_of(op).arguments if a.name == name and a.has_default_value()), None)


def _normalised(node: Node, axis: Axis, selection: Selection) -> Move | None:
    """A norm over the last dims."""
    last = len(arguments(node)["normalized_shape"])
    return Move({"input": axis}) if axis.dim < len(shape(node) or ()) - last else None


def _einsum(node: Node, axis: Axis, selection: Selection) -> Move | None:
    equation = str(node.args[0]).replace(" ", "")
    if "->" not in equation or "." in equation:
        return None
    left, right = equation.split("->")
    letter = right[axis.dim]
    after = (shape(node) or ())[axis.dim]
    asked = {}
    for operand, letters in zip(operands(node), left.split(","), strict=True):
        if letter not in letters:
            continue
        dim = letters.index(letter)
        if letters.count(letter) > 1 or not same((shape(operand.node) or ())[dim], after):
            return None
        asked[operand.name] = Axis(dim, axis.inner)
    return Move(asked) if asked else None


_Rule = Callable[[Node, Axis, Selection], Move | None]

_RULES: dict[Any, _Rule] = {
    aten.linear.default: _linear,
    packed_linear: _linear,
    aten.addmm.default: _addmm,
    aten.matmul.default: _matmul,
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
    **dict.fromkeys(norms.LAST_DIMS, _normalised),
    **dict.fromkeys(ALONG, _along_another),
    **dict.fromkeys(REDUCED, _reduced),
}
