"""Analysis: which dims of the operands of an op hold the queries, if one dim of its value does."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from lxt_fx.base.nodes import TensorType, arguments, operands, value
from lxt_fx.base.torch_internals import OpOverload, aten, aten_ops, schema_of
from lxt_fx.ops import active, fused, products
from lxt_fx.ops.activations import POINTWISE_OPS
from lxt_fx.ops.aten_kinds import POINTWISE, REDUCED
from lxt_fx.ops.sources import SOURCES

QUERIES = "number of queries"
"""Stands for a size in the arguments of an op."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an op needs to compute its value for some queries: `axes` names the operands (`tensors[1]` in a list) that are
    needed for these queries only, with the dim that holds them. `arguments` are arguments that change."""

    axes: Mapping[str, int]
    arguments: Mapping[str, Any] = field(default_factory=dict)


def needs_of(node: Node, axis: int) -> Needs | None:
    """Analysis: what the op needs in order to compute its value for some of the queries in dim `axis`. None where it mixes
    queries or is unknown."""
    op: Any = node.target
    if node.op != "call_function" or (isinstance(op, OpOverload) and schema_of(op).is_mutable):
        return None
    rule = _RULES.get(op)
    if rule is not None:
        return rule(node, axis)
    return _aligned(node, axis) if broadcasts(op) else None


def broadcasts(op: Any) -> bool:
    """Whether the op works entry by entry, on operands that are broadcast against each other."""
    return op in _POINTWISE or torch.Tag.pointwise in getattr(op, "tags", ())


_POINTWISE = (POINTWISE - {aten.prelu.default}) | POINTWISE_OPS | products.HALVED | SOURCES | {
    products.hold, products.epsilon, fused.share, active.active,
} | aten_ops(
    """
    __and__.Tensor __or__.Tensor __xor__.Tensor detach contiguous clone to.device floor_divide type_as min.other max.other
    zeros_like ones_like full_like
    """
)  # fmt: skip


def sizes_of(node: Any) -> tuple[str, ...] | None:
    """The shape of a value, of a tuple that of its first item, as text; None for what is no tensor."""
    found = value(node) if isinstance(node, Node) else None
    if isinstance(found, (list, tuple)) and found:
        found = found[0]
    return tuple(map(str, found.shape)) if isinstance(found, (torch.Tensor, TensorType)) else None


def _first(node: Node) -> tuple[str, tuple[str, ...]]:
    """The first operand that is a tensor: its name and shape."""
    return next((o.name, sizes) for o in operands(node) if (sizes := sizes_of(o.node)) is not None)


def _aligned(node: Node, axis: int) -> Needs | None:
    """Operands that are broadcast against each other."""
    after = sizes_of(node) or ()
    axes: dict[str, int] = {}
    for operand in operands(node):
        sizes = sizes_of(operand.node)
        dim = axis - len(after) + len(sizes or ())
        if sizes is None or dim < 0 or sizes[dim] == "1":
            continue
        if sizes[dim] != after[axis]:
            return None
        axes[operand.name] = dim
    return Needs(axes)


def _expanded(node: Node, axis: int) -> Needs | None:
    found = _aligned(node, axis)
    sizes = list(arguments(node)["size"])
    sizes[axis] = QUERIES
    return None if found is None else Needs(found.axes, {"size": sizes})


def _viewed(node: Node, axis: int) -> Needs | None:
    """A view under which all dims before the queries, or all dims behind, stay."""
    name, before = _first(node)
    after = sizes_of(node) or ()
    found = len(before) - len(after) + axis
    if not (0 <= found < len(before) and before[found:] == after[axis:]):
        found = axis
        if before[: axis + 1] != after[: axis + 1]:
            return None
    argument = "shape" if node.target is aten.reshape.default else "size"
    sizes = list(arguments(node)[argument])
    sizes[axis] = QUERIES
    return Needs({name: found}, {argument: sizes})


def _along(node: Node, axis: int) -> Needs | None:
    """Work along other dims, whose number stays."""
    name, before = _first(node)
    return None if arguments(node).get("dim", 0) % len(before) == axis else Needs({name: axis})


def _concatenated(node: Node, axis: int) -> Needs | None:
    rank = len(sizes_of(node) or ())
    along = arguments(node).get("dim", 0) % rank == axis
    return None if along else Needs({operand.name: axis for operand in operands(node) if sizes_of(operand.node)})


def _reduced(node: Node, axis: int) -> Needs | None:
    name, before = _first(node)
    given = arguments(node)
    dims = given.get("dim")
    if dims is None or dims == []:
        return None
    gone = {dim % len(before) for dim in ([dims] if isinstance(dims, int) else dims)}
    left = [dim for dim in range(len(before)) if given.get("keepdim") or dim not in gone]
    return None if left[axis] in gone else Needs({name: left[axis]})


def _unsqueezed(node: Node, axis: int) -> Needs | None:
    name, before = _first(node)
    new = arguments(node)["dim"] % (len(before) + 1)
    return None if axis == new else Needs({name: axis - (axis > new)})


def _squeezed(node: Node, axis: int) -> Needs | None:
    name, before = _first(node)
    dim = arguments(node)["dim"] % len(before)
    return Needs({name: axis + (before[dim] == "1" and dim <= axis)})


def _transposed(node: Node, axis: int) -> Needs | None:
    name, before = _first(node)
    given = arguments(node)
    a, b = (given[key] % len(before) for key in ("dim0", "dim1"))
    return Needs({name: {a: b, b: a}.get(axis, axis)})


def _permuted(node: Node, axis: int) -> Needs | None:
    name, before = _first(node)
    return Needs({name: arguments(node)["dims"][axis] % len(before)})


def _looked_up(node: Node, axis: int) -> Needs | None:
    places = sizes_of(arguments(node)["indices"]) or ()
    return Needs({"indices": axis}) if axis < len(places) else None


def _item(node: Node, axis: int) -> Needs | None:
    return Needs({"arg0": axis}) if sizes_of(node.args[0]) == sizes_of(node) else None


_Rule = Callable[[Node, int], Needs | None]

_RULES: dict[Any, _Rule] = {
    aten.expand.default: _expanded,
    aten.view.default: _viewed,
    aten.reshape.default: _viewed,
    aten.cat.default: _concatenated,
    aten.unsqueeze.default: _unsqueezed,
    aten.squeeze.dim: _squeezed,
    aten.transpose.int: _transposed,
    aten.permute.default: _permuted,
    aten.embedding.default: _looked_up,
    operator.getitem: _item,
    **dict.fromkeys((aten.slice.Tensor, aten.softmax.int, products.softmax), _along),
    **dict.fromkeys(REDUCED, _reduced),
}
