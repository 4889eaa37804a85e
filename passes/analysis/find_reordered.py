"""Where a model puts examples or tokens in another order."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, is_float, written_shape
from lxt_fx.base.torch_internals import aten, aten_ops

_ALONG_DIMS = {aten.flip.default: "dims", aten.roll.default: "dims"}
_ALONG_DIM = aten_ops("index_select gather take_along_dim")
_SORTED = aten_ops("sort sort.stable topk")
_SAME_ORDER = aten_ops(
    "arange arange.start arange.start_step view reshape unsqueeze unsqueeze_ expand squeeze.dim _to_copy to.dtype clone "
    "contiguous alias detach lift_fresh_copy"
)
"""What leads from the numbers 0, 1, 2, ... to an index that takes every example in its place."""


def find_reordered(graph: Graph, sizes: Collection[str]) -> frozenset[Node]:
    """Analysis: the values whose examples (or tokens) may be in another order than in the inputs, because an op before them
    flips, rolls, sorts or gathers numbers along a dimension of one of these `sizes`, as text. Values behind an op that
    undoes it are among them: what an index undoes is known only when it runs. Not seen: slices that are joined in another
    order, and values that are written into others (scatter, index_put)."""
    found = set[Node]()
    for node in graph.nodes:
        if is_float(node) and (_reorders(node, sizes) or any(each in found for each in node.all_input_nodes)):
            found.add(node)
    return frozenset(found)


def _reorders(node: Node, sizes: Collection[str]) -> bool:
    op: Any = node.target
    if not (op in _ALONG_DIMS or op in _ALONG_DIM or op in _SORTED or op is aten.index.Tensor):
        return False
    given, source = arguments(node), node.args[0]
    assert isinstance(source, Node), "these ops take a tensor first"
    if op in _ALONG_DIMS:
        every = range(len(written_shape(source) or ()))  # without dims, the flattened tensor is rolled
        return any(_has_one(source, dim, sizes) for dim in given.get(_ALONG_DIMS[op]) or every)
    indices: list[tuple[int, Any]]
    if op is aten.index.Tensor:
        indices = [(dim, index) for dim, index in enumerate(given["indices"]) if isinstance(index, Node)]
    else:
        indices = [(given.get("dim", -1), given.get("index"))]
    return any(_has_one(source, dim, sizes) and not (isinstance(index, Node) and _counts(index)) for dim, index in indices)


def _has_one(node: Node, dim: int, sizes: Collection[str]) -> bool:
    own = written_shape(node) or ()
    return -len(own) <= dim < len(own) and own[dim] in sizes


def _counts(index: Node) -> bool:
    """Whether an index is 0, 1, 2, ..., in some shape."""
    while index.target in _SAME_ORDER:
        if arguments(index).get("start", 0) != 0 or arguments(index).get("step", 1) != 1:
            return False
        before = index.all_input_nodes
        tensors = [each for each in before if isinstance(each.meta.get("val"), torch.Tensor)]
        if not tensors:
            return True
        index = tensors[0]
    return False
