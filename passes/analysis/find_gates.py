"""Analysis: which values come out of an activation, so that they gate what they are multiplied with."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import arguments
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import GATES, MOVES, POINTWISE, PRODUCTS, SELECTIONS
from lxt_fx.passes.analysis.mark_flow import Flow

_PASS_GATES_ON = MOVES | POINTWISE | SELECTIONS
_CLAMPS = frozenset({aten.clamp.default, aten.clamp_min.default})


def find_gates(
    gm: GraphModule, flow: Flow, written_out: Collection[Node], scaled: Mapping[Node, Node], norms: Collection[Node]
) -> Mapping[Node, tuple[str, ...]]:
    """Analysis: for each product of carrying values, the operands that come out of an activation or a softmax.

    An activation is any function of one value other than a power, in one op or `written_out` (the roots of such regions).
    What is made of gates only, by moves, selections and elementwise ops, is a gate again: a multiple, a power, a product of
    two, the largest few; so is a gate that is divided by a statistic of itself (`scaled` gives what a region scales). The
    product of a value with its own statistic (the roots of `norms`) is no product with a gate, whatever the value is.
    """
    gates: set[Node] = set()
    found: dict[Node, tuple[str, ...]] = {}
    for node in gm.graph.nodes:
        if node.op != "call_function" or node not in flow.carrying:
            continue
        operands = flow.carrying_operands(node)
        if node.target in PRODUCTS and node not in norms and any(operand.node in gates for operand in operands):
            found[node] = tuple(operand.name for operand in operands if operand.node in gates)
        made_of_gates = node.target in _PASS_GATES_ON and all(operand.node in gates for operand in operands)
        if made_of_gates or node.target in GATES or node in written_out or scaled.get(node) in gates or _closes(node):
            gates.add(node)
    return found


def _closes(node: Node) -> bool:
    """Whether this is ReLU or ReLU6 by its other name, a clamp from 0 upwards. Other clamps only bound a value."""
    return node.target in _CLAMPS and arguments(node).get("min") == 0
