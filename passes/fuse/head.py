"""Transform: the linear map behind an output skips, in its backward, what nobody asked for."""

from __future__ import annotations

from collections.abc import Set

from torch.fx import Graph, Node

from lxt_fx.ops import products
from lxt_fx.ops.activations import POINTWISE_OPS
from lxt_fx.ops.aten_kinds import MOVES, POINTWISE
from lxt_fx.ops.head import head

_THROUGH = POINTWISE | MOVES | POINTWISE_OPS
"""Where no gradient comes out of these, none goes in: a gradient of few elements stays one (soft caps, casts, the choice of
a position)."""


def fuse_head(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: each `lxt_fx.linear` between which and an output stand only elementwise ops and moves becomes
    `lxt_fx.attribution.split_head`."""
    todo, seen = [node for node in graph.output_node().all_input_nodes if node in carrying], set[Node]()
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            todo += [operand for operand in node.all_input_nodes if node.target in _THROUGH and operand in carrying]
    heads = [node for node in seen if node.target is products.linear and node.args[0] in carrying]
    for node in heads:
        node.target = head
    return len(heads)
