"""Transform: what autocast does inside the model's own `torch.autocast` blocks is written into the graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.nodes import is_float, shape, value
from lxt_fx.base.torch_internals import (
    OpOverload,
    aten,
    autocast_region,
    autocast_switches,
    grad_mode_region,
    pytree,
)
from lxt_fx.ops.exempt import exempt

_REGION, _GRAD_REGION = autocast_region(), grad_mode_region()
_ENTER, _EXIT = autocast_switches()
_PRODUCTS = frozenset({aten.matmul.default, aten.mm.default, aten.bmm.default})


@dataclass(frozen=True, slots=True)
class _Block:
    """A `torch.autocast` block of the model."""

    device: str
    enabled: bool


def write_casts(gm: GraphModule) -> int:
    """Transform: inside a `torch.autocast` block, the operands that autocast casts are cast by nodes. The ops of a block
    that another autocast would touch read their operands through `lxt_fx.exempt`, so that a call under the caller's
    autocast computes them as the model does; in bfloat16, the position 257 is 256. The angles of a rotary embedding are
    products of matrices with one inner entry; they become elementwise products, which autocast does not touch.

    Which casts these are is not written down here: torch computes the dtype of each node with and without autocast.
    """
    return _written(gm, None)


def _written(gm: GraphModule, outer: _Block | None) -> int:
    edits, blocks = 0, [outer]
    for node in list(gm.graph.nodes):
        if node.target is _ENTER:
            device, _, enabled, *_ = node.args
            blocks.append(_Block(str(device), bool(enabled)))
        elif node.target is _EXIT:
            blocks.pop()
            entered = node.args[0]
            gm.graph.erase_node(node)
            gm.graph.erase_node(entered)
        elif node.target is _REGION:
            device, _, enabled, _, body, *_ = node.args
            edits += _written(_body(gm, body), _Block(str(device), bool(enabled)))
        elif node.target is _GRAD_REGION:
            edits += _written(_body(gm, node.args[1]), blocks[-1])
        elif (block := blocks[-1]) is not None and isinstance(node.target, OpOverload):
            edits += (_cast(node) if block.enabled else 0) + _exempted(node, block.device)
    return edits


def _body(gm: GraphModule, region: Any) -> GraphModule:
    body = gm.get_submodule(str(region.target))
    assert isinstance(body, GraphModule)
    return body


def _cast(node: Node) -> int:
    """The operands in the dtype of the result, where torch without autocast would give another one, or refuse them."""
    wanted = _first_float(node.meta.get("val"))
    if wanted is None or _dtype_of(node) is wanted:
        return 0
    edits = 0
    for operand in list(node.all_input_nodes):
        if is_float(operand) and value(operand).dtype not in (wanted, torch.float64):
            with node.graph.inserting_before(node):
                cast = node.graph.call_function(aten.to.dtype, (operand, wanted))
            cast.meta = {**node.meta, "val": value(operand).to(wanted)}
            node.replace_input_with(operand, cast)
            edits += 1
    return edits


def _exempted(node: Node, device: str) -> int:
    """The node, where autocast would touch it, in a form that it does not touch."""
    wanted = _first_float(node.meta.get("val"))
    if wanted is None or not isinstance(node.meta["val"], Tensor) or not _is_touched(node, device):
        return 0
    if node.target in _PRODUCTS and _has_one_inner_entry(node):
        node.target = aten.mul.Tensor
        return 1
    for operand in list(node.all_input_nodes):
        if is_float(operand):
            with node.graph.inserting_before(node):
                entering = node.graph.call_function(exempt, (operand,))
            entering.meta = {**node.meta, "val": value(operand)}
            node.replace_input_with(operand, entering)
    with node.graph.inserting_after(node):
        leaving = node.graph.call_function(exempt, (node, wanted))
    leaving.meta = dict(node.meta)
    node.replace_all_uses_with(leaving, delete_user_cb=lambda user: user is not leaving)
    return 1


def _is_touched(node: Node, device: str) -> bool:
    """Whether torch gives the node another dtype under any autocast of the device than without."""
    narrow = (torch.bfloat16, torch.float16)
    return any(_dtype_of(node, device, dtype) is not _dtype_of(node) for dtype in narrow)


def _has_one_inner_entry(node: Node) -> bool:
    sizes = [shape(operand) or () for operand in node.args[:2] if isinstance(operand, Node)]
    return len(sizes) == 2 and min(map(len, sizes)) >= 2 and sizes[0][-1] == 1 == sizes[1][-2]


def _dtype_of(node: Node, device: str = "", dtype: torch.dtype | None = None) -> torch.dtype | None:
    """The dtype of the result, under an autocast if one is given; None where torch refuses the operands."""
    op: Any = node.target
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda operand: operand.meta["val"])
    with autocast_off(), torch.no_grad(), torch.autocast(device or "cpu", dtype=dtype, enabled=dtype is not None):
        try:
            return _first_float(op(*args, **kwargs))
        except (RuntimeError, TypeError, NotImplementedError):  # mixed dtypes
            return None


def _first_float(result: Any) -> torch.dtype | None:
    found: Iterator[Tensor] = (t for t in pytree.tree_leaves(result) if isinstance(t, Tensor) and t.is_floating_point())
    return next((t.dtype for t in found), None)
