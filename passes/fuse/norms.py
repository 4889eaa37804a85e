"""Transform: an RMS norm, its casts and its weight become one op."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

import torch
from torch.fx import Graph, Node

from lxt_fx.base.nodes import shape, value, written_shape
from lxt_fx.base.pattern import Found, Op, Part, any_of, match_alone
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import fused, norms, products

_rms_norm, _to = Op(norms.rms_norm), Op(aten.to.dtype)


def _weighted_norm(x: Part, weight: Part, dims: Part, eps: Part, inner: Part, middle: Part, outer: Part) -> Part:
    """`weight * norm(x.to(inner)).to(middle)`, cast to `outer`; each cast is optional."""
    norm = _rms_norm(_cast(x, inner), dims, eps)
    return _cast(_cast(norm, middle) * weight, outer)


def _cast(part: Part, dtype: Part) -> Part:
    return any_of(_to(part, dtype), part)


def fuse_norms(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: `weight * x.to(wide) rsqrt(...)`, with casts before and after, becomes `lxt_fx.weighted_rms_norm` where
    nothing else reads the values in between."""

    def constant(found: Any) -> str | None:
        return None if isinstance(found, Node) and found not in carrying and shape(found) else "a constant with dims"

    edits = 0
    for node in list(graph.nodes):
        if node.target is aten.mul.Tensor and node in carrying:
            cast_too = (match_alone(_weighted_norm, root, weight=constant) for root in (*node.users, node))
            edits += next((_fuse(found) for found in cast_too if isinstance(found, Found)), 0)
    return edits


def _fuse(found: Found) -> int:
    root, x, weight = found.nodes[0], found["x"], found["weight"]
    if written_shape(x) != written_shape(root):
        return 0
    root.target = fused.weighted_rms_norm
    root.args = (x, weight.args[0] if weight.target is products.hold else weight, found["dims"], found["eps"])
    root.kwargs = _changes(found)
    return 1


def _changes(found: Found) -> dict[str, Any]:
    """The dtypes that are not the op's defaults."""
    read, weight = value(found["x"]).dtype, value(found["weight"]).dtype
    inner = found.values.get("inner", read)
    middle = found.values.get("middle", inner)
    product = torch.promote_types(middle, weight)
    outer = found.values.get("outer", product)
    pairs = {"inner": (inner, read), "middle": (middle, inner), "outer": (outer, product)}
    return {name: dtype for name, (dtype, default) in pairs.items() if dtype != default}
