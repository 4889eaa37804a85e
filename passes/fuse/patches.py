"""Transform: a convolution whose stride is its kernel becomes one op, whose backward is one product of matrices."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, fixed_size, shape
from lxt_fx.base.torch_internals import aten_ops
from lxt_fx.ops.patches import patches

_CONVOLUTIONS = aten_ops("conv1d conv2d conv3d")


def fuse_patches(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: a convolution of a carrying value with a held weight, whose windows neither overlap nor leave gaps,
    becomes `lxt_fx.patches`."""
    edits = 0
    for node in list(graph.nodes):
        if node.target in _CONVOLUTIONS and node in carrying and _is_patches(node, carrying):
            given = arguments(node)
            node.target, node.args, node.kwargs = patches, (given["input"], given["weight"], given.get("bias")), {}
            edits += 1
    return edits


def _is_patches(node: Node, carrying: Set[Node]) -> bool:
    given = arguments(node)
    image, weight, bias = (given.get(name) for name in ("input", "weight", "bias"))
    if not isinstance(image, Node) or image not in carrying or {weight, bias} & carrying or not isinstance(weight, Node):
        return False
    kernel = [fixed_size(size) for size in (shape(weight) or ())[2:]]
    if None in kernel or not kernel or len(shape(image) or ()) != len(kernel) + 2:
        return False
    wide = math.prod(size or 0 for size in kernel) > 1
    whole = _each(given.get("padding", 0), 0) and _each(given.get("dilation", 1), 1) and given.get("groups", 1) == 1
    stride = given.get("stride", 1)
    return wide and whole and (list(stride) if isinstance(stride, (list, tuple)) else [stride]) in (kernel, kernel[:1])


def _each(given: Any, wanted: int) -> bool:
    return all(size == wanted for size in (given if isinstance(given, (list, tuple)) else [given]))
