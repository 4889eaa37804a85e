"""Analysis: which values reach the outputs position by position, so that a gradient of few positions stays one."""

from __future__ import annotations

import operator
from collections.abc import Set

from torch.fx import Graph, Node

from lxt_fx.ops import active, fused, norms, products
from lxt_fx.ops.activations import POINTWISE_OPS
from lxt_fx.ops.aten_kinds import MOVES, POINTWISE
from lxt_fx.ops.head import head
from lxt_fx.ops.sources import SOURCES

_OURS = {fused.linears, fused.gated, fused.rotate, fused.share, active.active, active.linear_active, products.mul}
_NORMS = {norm.op for norm in norms.NORMS if norm.last_dims} | {norms.rms_norm, fused.weighted_rms_norm}
_BY_POSITION = POINTWISE | MOVES | POINTWISE_OPS | _NORMS | _OURS | SOURCES | {products.linear, head, operator.getitem}
"""Ops that pass a gradient of 0 at a position on as 0 at this position. What comes of an op that is listed wrongly is slow
and not wrong: a gradient is looked at before a position of it is skipped."""

_MADE = frozenset({fused.linears, fused.share})
"""Ops of nodes that the fusing put in, which carry relevance."""


def unmixed(graph: Graph, carrying: Set[Node]) -> set[Node]:
    """Analysis: the nodes from which all ways to the outputs lead through ops that do not mix positions."""
    found: set[Node] = set()
    for node in reversed(list(graph.nodes)):
        readers = [user for user in node.users if user in carrying or user.op == "output" or user.target in _MADE]
        if all(user.op == "output" or (user in found and user.target in _BY_POSITION) for user in readers):
            found.add(node)
    return found
