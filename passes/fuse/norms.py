"""Transform: an RMS norm, its casts and its weight become one op."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, shape, value, written_shape
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import fused, norms, products


def fuse_norms(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: `weight * x.to(wide) rsqrt(...)`, cast before and after, becomes `lxt_fx.weighted_rms_norm`, where nothing
    else reads what lies between."""
    edits = 0
    for node in list(graph.nodes):
        if node.target is aten.mul.Tensor and node in carrying and len(node.args) == 2:
            edits += _fuse(node, carrying)
    return edits


def _fuse(product: Node, carrying: Set[Node]) -> int:
    for side, weight in (product.args, product.args[::-1]):
        norm = uncast(side)
        if norm is None or norm.target is not norms.rms_norm or len(norm.users) != 1 or not isinstance(weight, Node):
            continue
        if weight in carrying or not shape(weight) or written_shape(norm) != written_shape(product):
            continue
        settings = arguments(norm)
        x = uncast(settings["self"]) or settings["self"]
        last = next(iter(product.users)) if len(product.users) == 1 else product
        root = last if _is_cast(last) else product
        root.target = fused.weighted_rms_norm
        held = weight.args[0] if weight.target is products.hold else weight
        root.args = (x, held, settings["dims"], settings["eps"])
        root.kwargs = _changes(x, weight, {"inner": norm, "middle": side, "outer": root})
        return 1
    return 0


def _changes(x: Node, weight: Node, after: dict[str, Any]) -> dict[str, Any]:
    """The dtypes that are not the op's defaults."""
    dtypes = {name: value(node).dtype for name, node in after.items()}
    product = torch.promote_types(dtypes["middle"], value(weight).dtype)
    defaults = {"inner": value(x).dtype, "middle": dtypes["inner"], "outer": product}
    return {name: dtype for name, dtype in dtypes.items() if dtype != defaults[name]}


def uncast(node: Any) -> Node | None:
    """What a cast that has one reader casts; the node itself where it is no cast; None where it is no node."""
    if not isinstance(node, Node):
        return None
    return node.args[0] if _is_cast(node) and len(node.users) == 1 else node  # type: ignore[return-value]


def _is_cast(node: Node) -> bool:
    return node.target is aten.to.dtype and len(node.args) == 2 and not node.kwargs
