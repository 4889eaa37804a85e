"""Transform: a rotary position embedding becomes one op."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from torch.fx import Graph, Node

from lxt_fx.base.nodes import dtype, shape, written_shape
from lxt_fx.base.pattern import Found, Op, Part, any_of, match_alone, number
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import fused

_cat, _slice = Op(aten.cat.default), Op(aten.slice.Tensor)


def _rotary(x: Part, cos: Part, sin: Part, half: Part, end: Part) -> Part:
    """`x * cos + cat(-x[half:], x[:half]) * sin`."""
    first, second = _slice(x, -1, any_of(None, 0), half), _slice(x, -1, half, end)
    return x * cos + _cat([-second, first], -1) * sin


def fuse_rotary(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: `x * cos + cat(-x[half:], x[:half]) * sin` becomes `lxt_fx.rotate` where nothing else reads the values in
    between, and cos and sin carry no relevance."""

    def carries(found: Any) -> str | None:
        return None if found in carrying else "a value that carries relevance"

    def constant(found: Any) -> str | None:
        return None if isinstance(found, Node) and found not in carrying else "a value that carries no relevance"

    edits = 0
    for node in list(graph.nodes):
        if node in carrying:
            edits += _fuse(node, match_alone(_rotary, node, x=carries, cos=constant, sin=constant, half=number, end=number))
    return edits


def _fuse(total: Node, found: Any) -> int:
    if not isinstance(found, Found):
        return 0
    x, cos, sin, half, end = (found[name] for name in ("x", "cos", "sin", "half", "end"))
    width = (shape(x) or (None,))[-1]
    halves = isinstance(width, int) and width == 2 * half and end >= width
    agree = len({dtype(node) for node in (total, x, cos, sin)}) == 1 and written_shape(total) == written_shape(x)
    if not halves or not agree or len({(written_shape(node) or ())[-1:] for node in (x, cos, sin)}) != 1:
        return 0
    total.target, total.args = fused.rotate, (x, cos, sin)
    return 1
