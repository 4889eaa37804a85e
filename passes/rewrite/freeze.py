"""Transform: the relevance graph in gradient form, ready to run."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import is_float, operands
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import norms, products
from lxt_fx.ops.contributions import BY_CONTRIBUTION
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.passes.drop_dead import drop_dead

# Ops that give no gradient to their weights, so these need no hold.
_HOLDS_WEIGHTS: dict[Any, frozenset[str]] = {
    **dict.fromkeys(BY_CONTRIBUTION, frozenset({"weight", "bias", "self", "other", "low", "high"})),
    products.linear: frozenset({"weight", "bias"}),
    norms.rms_norm_fused: frozenset({"weight"}),
    norms.layer_norm: frozenset({"weight", "bias"}),
    norms.group_norm: frozenset({"weight", "bias"}),
}


def lower(gm: GraphModule, flow: Flow) -> int:
    """Transform: freezes what relevance does not flow through. Parameters ask no gradient (a `hold` where an op would
    differentiate them), and holds on values that carry nothing are dropped. `flow` is that of the graph as captured."""
    edits = _drop_idle_holds(gm, flow)
    for node in list(gm.graph.nodes):
        if node.op == "get_attr" and is_float(node):
            edits += _freeze(gm, node)
    drop_dead(gm)
    return edits


def _drop_idle_holds(gm: GraphModule, flow: Flow) -> int:
    """A hold of a value that no gradient would reach only clutters the graph."""
    reached = set(flow.leaves)
    edits = 0
    for node in list(gm.graph.nodes):
        holds = node.op == "call_function" and node.target in (aten.detach.default, products.hold)
        if any(operand in reached for operand in node.all_input_nodes):
            reached |= set() if holds else {node}
        elif holds:
            node.replace_all_uses_with(node.args[0])
            gm.graph.erase_node(node)
            edits += 1
    return edits


def _freeze(gm: GraphModule, weight: Node) -> int:
    readers = [
        user
        for user in weight.users
        if any(o.name not in _HOLDS_WEIGHTS.get(user.target, ()) for o in operands(user) if o.node is weight)
        and user.target is not products.hold
    ]
    if not readers:
        return 0
    with gm.graph.inserting_after(weight):
        frozen = gm.graph.call_function(products.hold, (weight,))
    frozen.meta = dict(weight.meta)
    for user in readers:
        user.replace_input_with(weight, frozen)
    return 1
