"""Transform: a rotary position embedding becomes one op."""

from __future__ import annotations

from collections.abc import Iterator, Set
from typing import Any

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, dtype, shape, written_shape
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import fused


def fuse_rotary(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: `x * cos + cat(-x[half:], x[:half]) * sin` becomes `lxt_fx.rotate`, where nothing else reads what lies
    between and cos and sin carry nothing."""
    edits = 0
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and node in carrying and len(node.args) == 2 and not node.kwargs:
            edits += _fuse(node, carrying)
    return edits


def _fuse(total: Node, carrying: Set[Node]) -> int:
    for straight, turned in (total.args, total.args[::-1]):
        for x, cos in _factors(straight, carrying):
            for swapped, sin in _factors(turned, carrying):
                if _is_half_turn(swapped, x) and _agree(total, x, cos, sin):
                    total.target, total.args = fused.rotate, (x, cos, sin)
                    return 1
    return 0


def _factors(product: Any, carrying: Set[Node]) -> Iterator[tuple[Node, Node]]:
    """(carrying factor, constant factor) of a product with one reader."""
    if not isinstance(product, Node) or product.target is not aten.mul.Tensor or len(product.users) != 1:
        return
    for x, table in (product.args, product.args[::-1]):
        if isinstance(x, Node) and isinstance(table, Node) and x in carrying and table not in carrying:
            yield x, table


def _is_half_turn(swapped: Node, x: Node) -> bool:
    """Whether this is cat((-x2, x1), -1) of the halves of x, read once."""
    size = shape(x)
    if swapped.target is not aten.cat.default or len(swapped.users) != 1 or not size or not isinstance(size[-1], int):
        return False
    parts, dim = arguments(swapped)["tensors"], arguments(swapped).get("dim", 0)
    if dim not in (-1, len(size) - 1) or len(parts) != 2 or parts[0].target is not aten.neg.default:
        return False
    half = size[-1] // 2
    negated = parts[0].args[0]
    return (
        size[-1] == 2 * half
        and len(parts[0].users) == 1
        and _is_slice(negated, x, half, size[-1])
        and _is_slice(parts[1], x, 0, half)
    )


def _is_slice(node: Node, x: Node, start: int, end: int) -> bool:
    if node.target is not aten.slice.Tensor or node.args[0] is not x or len(node.users) != 1:
        return False
    given = arguments(node)
    size = shape(x)
    assert size is not None
    bounds = (given.get("start") or 0, given.get("end"))
    if not all(isinstance(bound, int) for bound in bounds) or given.get("step", 1) != 1:
        return False
    last = given.get("dim", 0) in (-1, len(size) - 1)
    return last and bounds[0] == start and min(bounds[1], size[-1]) == end


def _agree(total: Node, x: Node, cos: Node, sin: Node) -> bool:
    dtypes = {dtype(node) for node in (total, x, cos, sin)}
    widths = {(written_shape(node) or ())[-1:] for node in (x, cos, sin)}
    return len(dtypes) == 1 and len(widths) == 1 and written_shape(total) == written_shape(x)
