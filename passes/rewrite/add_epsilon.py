"""Transform: epsilon in gradient form."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import value
from lxt_fx.ops import products, recurrences
from lxt_fx.ops.contributions import BY_CONTRIBUTION
from lxt_fx.passes.analysis.find_cancelling import find_cancelling
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.passes.rewrite.explicit_form import is_linear_map, own_equation
from lxt_fx.rule_table.rule import Conserves, Rule


def add_epsilon(gm: GraphModule, flow: Flow, rules: Mapping[str, Rule], epsilon: float) -> dict[str, str]:
    """Transform: inserts `lxt_fx.epsilon` after each linear map and product whose rule has an epsilon. It multiplies the
    gradient by z / (z + epsilon sign(z)), without a second matmul.

    A fused attention has epsilon at its output and not at its scores. An op that divides by sums of its own, as a
    recurrence does, takes epsilon as an argument. An op whose rule gives its own explicit op gets none. `epsilon` is the
    default for rules without one.

    A sum that subtracts a held copy of one of its terms gets the op even if epsilon is 0. Where such a sum is 0, it
    receives no relevance by eq. 8, but from its gradient its terms, which are not 0, would get relevance of both signs. A
    sum of such terms alone (`soft - soft.detach()`) is treated as part of the sum that reads it.

    Returns the names of the new nodes, each with the name of the node before it.
    """
    made: dict[str, str] = {}
    cancelling = find_cancelling(gm, flow)
    for node in list(gm.graph.nodes):
        if node not in flow.carrying:
            continue
        rule = rules.get(node.name)
        own = epsilon if rule is None or rule.epsilon is None else rule.epsilon
        if node.target in recurrences.EQUATIONS:
            if own > 0:
                node.update_kwarg("epsilon", own)
            continue
        if not isinstance(value(node), Tensor):
            continue
        if node in cancelling.nothing or own_equation(node, rules) is not None or not is_linear_map(node):
            continue
        if own > 0 and node.target in BY_CONTRIBUTION:
            node.update_kwarg("epsilon", own)
        elif own > 0 or (node in cancelling.sums and rule is not None and rule.conserves is not Conserves.NATIVE):
            made[_insert(gm, node, own).name] = node.name
    return made


def _insert(gm: GraphModule, node: Node, epsilon: float) -> Node:
    with gm.graph.inserting_after(node):
        stable = gm.graph.create_node("call_function", products.epsilon, (node, epsilon), name="epsilon")
    stable.meta = dict(node.meta)
    node.replace_all_uses_with(stable, delete_user_cb=lambda user: user is not stable)
    return stable
