"""Transform: the linear map that computes an output skips, in its backward, entries whose gradient is 0."""

from __future__ import annotations

from collections.abc import Set

from torch.fx import Graph, Node

from lxt_fx.ops import products
from lxt_fx.ops.activations import POINTWISE_OPS
from lxt_fx.ops.active import active
from lxt_fx.ops.aten_kinds import MOVES, POINTWISE
from lxt_fx.ops.head import head

_THROUGH = POINTWISE | MOVES | POINTWISE_OPS | {active}
"""Ops that preserve zeros of the gradient (soft caps, casts, the choice of a position): a gradient with few entries that
are not 0 stays one."""


def fuse_head(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: each `lxt_fx.linear` that reaches an output through elementwise ops and moves only becomes
    `lxt_fx.head`. An output that other ops read too, such as a hidden state, is no end: what they pass back has no
    zeros."""
    ends = [node for node in graph.output_node().all_input_nodes if node in carrying and carrying.isdisjoint(node.users)]
    todo, seen = ends, set[Node]()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [operand for operand in node.all_input_nodes if node.target in _THROUGH and operand in carrying]
    heads = [node for node in seen if node.target is products.linear and node.args[0] in carrying]
    for node in heads:
        node.target = head
    return len(heads)
