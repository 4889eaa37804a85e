"""Transform: parameters and masks ask for no gradient, and holds that hold nothing back are dropped."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import is_float, operands
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import contributions, norms, packed, products, recurrences
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.passes.drop_dead import drop_dead

# Ops that give no gradient to these arguments, so they need no hold.
_HOLDS_WEIGHTS: dict[Any, frozenset[str]] = {
    **contributions.HOLDS, **products.HOLDS, **packed.HOLDS, **{norm.op: norm.holds for norm in norms.NORMS}
}  # fmt: skip


def freeze_constants(gm: GraphModule, flow: Flow) -> int:
    """Transform: freezes what carries no relevance. Parameters, and float inputs at which no relevance is read (masks), go
    through a `hold` where an op would differentiate them. Holds of values that no gradient reaches are dropped. `flow` is
    that of the captured graph."""
    edits = _drop_idle_holds(gm, flow)
    last_input = [node for node in gm.graph.nodes if node.op == "placeholder"][-1]
    for node in list(gm.graph.nodes):
        given = node.op == "get_attr" or (node.op == "placeholder" and node not in flow.leaves)
        if given and is_float(node):
            edits += _freeze(gm, node, behind=last_input if node.op == "placeholder" else node)
    drop_dead(gm)
    return edits


def _drop_idle_holds(gm: GraphModule, flow: Flow) -> int:
    """Removes holds of values that no gradient would reach anyway."""
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


def _holds(reader: Node, name: str) -> bool:
    """Whether the op gives no gradient to this operand."""
    if reader.target in recurrences.EQUATIONS or reader.target in recurrences.EQUATIONS.values():
        return name.split("[")[0] not in recurrences.VALUES
    return name in _HOLDS_WEIGHTS.get(reader.target, ())


def _freeze(gm: GraphModule, weight: Node, behind: Node) -> int:
    readers = [
        user
        for user in weight.users
        if any(not _holds(user, o.name) for o in operands(user) if o.node is weight)
        and user.target is not products.hold
    ]
    if not readers:
        return 0
    with gm.graph.inserting_after(behind):
        frozen = gm.graph.call_function(products.hold, (weight,))
    frozen.meta = dict(weight.meta)
    for user in readers:
        user.replace_input_with(weight, frozen)
    return 1
