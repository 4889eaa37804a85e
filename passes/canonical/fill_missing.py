"""Transform: arithmetic on missing values (NaN) passes no NaN back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node

from lxt_fx.base.nodes import is_float, value
from lxt_fx.base.torch_internals import aten, aten_ops, pytree
from lxt_fx.ops.aten_kinds import COMPARISONS, MASKS, POINTWISE

_ARITHMETIC = POINTWISE - MASKS - COMPARISONS
_LEFT_OUT = aten_ops("nansum")
"""Take missing values for 0."""


def fill_missing(gm: GraphModule, inputs: Mapping[str, Any]) -> int:
    """Transform: where the example has NaN, elementwise ops and sums that read it compute on 0 in its place, and the result
    of an elementwise op is set to NaN again. Values are the same. A model that leaves missing values out (nansum,
    nan_to_num, a mask) asks nothing of them, and the backward of a product would make NaN of that: 0 * NaN, summed over all
    elements. Without NaN in a float input of the example, nothing is done."""
    found, edits = nodes_with_missing(gm, inputs), 0
    for node in list(gm.graph.nodes) if found else ():
        operands = [operand for operand in node.all_input_nodes if operand in found and is_float(operand)]
        arithmetic = node.target in _ARITHMETIC and node in found
        if not operands or not (arithmetic or node.target in _LEFT_OUT):
            continue
        masks = [_filled(gm.graph, node, operand) for operand in operands]
        if arithmetic:
            found.add(_set_missing(gm.graph, node, masks))
        edits += 1
    return edits


def nodes_with_missing(gm: GraphModule, inputs: Mapping[str, Any]) -> set[Node]:
    """Analysis: the nodes whose value has NaN, if an input has."""
    if not has_missing(inputs):
        return set()
    flat, missing = pytree.tree_leaves(dict(inputs)), _Missing(gm)
    with torch.no_grad():
        missing.run(*(x.clone() if isinstance(x, Tensor) else x for x in flat), enable_io_processing=False)
    return missing.found


def has_missing(inputs: Mapping[str, Any]) -> bool:
    """Whether a float input has NaN."""
    return any(map(_misses, pytree.tree_leaves(dict(inputs))))


def _misses(found: Any) -> bool:
    floats = isinstance(found, Tensor) and found.is_floating_point() and found.device.type != "meta"
    return floats and bool(found.isnan().any())


class _Missing(Interpreter):
    """Finds the nodes whose value has NaN."""

    def __init__(self, gm: GraphModule) -> None:
        super().__init__(gm)
        self.found: set[Node] = set()

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if _misses(result):
            self.found.add(n)
        return result


def _filled(graph: Graph, node: Node, operand: Node) -> Node:
    """Makes the node read 0 for what is missing of the operand, and returns the mask of that."""
    with graph.inserting_before(node):
        mask = _like(graph.call_function(aten.isnan.default, (operand,)), node, torch.isnan(value(operand)))
        filled = graph.call_function(aten.masked_fill.Scalar, (operand, mask, 0.0))
    node.replace_input_with(operand, _like(filled, node, value(operand)))
    return mask


def _set_missing(graph: Graph, node: Node, masks: list[Node]) -> Node:
    """Sets the result to NaN where an operand had it; readers read that."""
    readers = list(node.users)
    with graph.inserting_before(node.next):
        mask = reduce(lambda a, b: _either(graph, node, a, b), masks)
        missing = _like(graph.call_function(aten.masked_fill.Scalar, (node, mask, math.nan)), node, value(node))
    for reader in readers:
        reader.replace_input_with(node, missing)
    return missing


def _either(graph: Graph, node: Node, a: Node, b: Node) -> Node:
    return _like(graph.call_function(aten.logical_or.default, (a, b)), node, torch.logical_or(value(a), value(b)))


def _like(made: Node, node: Node, found: Any) -> Node:
    made.meta = {**node.meta, "val": found}
    return made
