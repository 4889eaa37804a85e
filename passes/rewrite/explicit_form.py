"""Transform: the relevance graph in explicit form, whose backward carries relevance itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import arguments, value
from lxt_fx.base.torch_internals import OpOverload, aten, base_name
from lxt_fx.ops import activations, explicit, norms, products
from lxt_fx.ops.aten_kinds import ACTIVATIONS, MOVES
from lxt_fx.ops.explicit_contributions import PARTS
from lxt_fx.passes.analysis.mark_flow import Flow, differentiable_operands
from lxt_fx.rule_table.rule import Keep, Rule

PASSES = frozenset({norms.rms_norm, norms.rms_norm_fused, norms.normalize_mul, norms.normalize_div})
"""Norms that hold their factor: an identity in relevance."""

CURVED = ACTIVATIONS - {activations.identity}
HALVED = frozenset({products.mul, products.div})
STEPS: dict[Any, OpOverload] = {
    norms.layer_norm: explicit.layer_norm_linear,
    norms.group_norm: explicit.group_norm_linear,
    products.sdpa: explicit.sdpa_steps,
    products.sdpa_held: explicit.sdpa_held_steps,
    **PARTS,
}


SPECIAL = PASSES | CURVED | HALVED | frozenset(STEPS) | {products.softmax, activations.identity}


def is_linear_map(node: Node) -> bool:
    """Whether eq. 8 divides by the op's output: a linear map, a norm that subtracts a mean or adds a bias, or a product of
    carrying operands with a share each."""
    return isinstance(node.target, OpOverload) and node.target not in (SPECIAL | MOVES) - frozenset(STEPS)


def own_equation(node: Node, rules: Mapping[str, Rule]) -> OpOverload | None:
    """The op that the node's row gives for its explicit form; None where it gives none. `rules` are by node name."""
    rule = rules.get(node.name)
    return rule.explicit.get(node.target) if rule is not None and isinstance(node.target, OpOverload) else None


def lower_explicit(gm: GraphModule, flow: Flow, rules: Mapping[str, Rule], epsilon: float) -> dict[str, str]:
    """Transform: each op on the relevance path becomes the equation of its row; returns for each new node the one that it
    stands for, by name. `epsilon` is that of rows without one of their own. Forward values stay as they are; `flow` is that
    of this graph, `rules` are by node name."""
    lowering = _Lowering(gm, flow, rules, epsilon)
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node in flow.carrying:
            lowering.apply(node)
    return {new.name: old.name for new, old in lowering.made.items()}


class _Lowering:
    """The graph under edit."""

    def __init__(self, gm: GraphModule, flow: Flow, rules: Mapping[str, Rule], epsilon: float) -> None:
        self.graph, self.rules, self.epsilon = gm.graph, rules, epsilon
        self.carrying = set(flow.carrying)
        self.made: dict[Node, Node] = {}

    def apply(self, node: Node) -> None:
        if not isinstance(node.target, OpOverload) or not isinstance(value(node), Tensor):
            return
        own = own_equation(node, self.rules)
        if own is not None:
            node.target = own
        elif node.target in MOVES:
            return  # relevance follows its element, as a gradient does
        elif node.target is products.softmax:
            node.target = explicit.softmax_taylor
        elif node.target in HALVED:
            operands = list(node.args)
            self._replace(node, lambda held: (explicit.share_out, (operands, held), {}))
        elif node.target in PASSES | CURVED:
            operand, intercept = node.args[0], self._intercept(node)
            self._replace(node, lambda held: (explicit.pass_on, (operand, held, *self._constant(node, intercept)), {}))
        elif node.target is activations.identity:
            operand, written, at_zero, _ = node.args
            assert isinstance(at_zero, float)
            node.target, node.args = explicit.pass_on, (operand, written, *self._constant(node, at_zero))
        elif node.target in STEPS:
            self._by_steps(node)
        else:
            self._linear(node)

    def _epsilon(self, node: Node) -> float:
        rule = self.rules.get(node.name)
        return self.epsilon if rule is None or rule.epsilon is None else rule.epsilon

    def _constant(self, node: Node, intercept: float) -> tuple[float, ...]:
        return (intercept, self._epsilon(node)) if intercept else ()

    def _intercept(self, node: Node) -> float:
        """f(0) where the row says that it takes a share."""
        rule = self.rules.get(node.name)
        if node.target in PASSES or rule is None or rule.keeps is not Keep.ALL_BUT_CONSTANTS:
            return 0.0
        op: Any = node.target
        return float(op(torch.zeros((), dtype=torch.float64), *node.args[1:], **node.kwargs))

    def _replace(self, node: Node, call: Callable[[Node], tuple[OpOverload, tuple[Any, ...], dict[str, Any]]]) -> None:
        """The node's value is computed from held operands; a second op passes relevance on from it."""
        with self.graph.inserting_after(node):
            op, args, kwargs = call(node)
            passing = self.graph.create_node("call_function", op, args, kwargs, name=base_name(op))
        self._stands_for(passing, node)
        node.replace_all_uses_with(passing, delete_user_cb=lambda user: user is not passing)
        for operand in node.all_input_nodes:
            if operand in self.carrying:
                node.replace_input_with(operand, self._insert(node, products.hold, operand))

    def _by_steps(self, node: Node) -> None:
        step, operands, kwargs = STEPS[node.target], tuple(node.args), dict(node.kwargs)
        name = "value_of" if node.target in (products.sdpa, products.sdpa_held) else "value"
        own = {"epsilon": self._epsilon(node)}
        self._replace(node, lambda held: (step, operands, {**kwargs, name: held, **own}))

    def _linear(self, node: Node) -> None:
        """enter, the op, leave; a product of carrying operands gives a share to each."""
        carrying = [operand.node for operand in differentiable_operands(node) if operand.node in self.carrying]
        share = 1.0
        if node.target is products.matmul:
            node.target, share = aten.matmul.default, 0.5
        elif node.target is products.einsum:
            node.target, share = aten.einsum.default, 1.0 / len(arguments(node)["tensors"])
        for operand in dict.fromkeys(carrying):
            settings = () if share == 1.0 else (share,)
            node.replace_input_with(operand, self._insert(node, explicit.enter, operand, *settings))
        with self.graph.inserting_after(node):
            left = self.graph.create_node("call_function", explicit.leave, (node, self._epsilon(node)), name="leave")
        self._stands_for(left, node)
        node.replace_all_uses_with(left, delete_user_cb=lambda user: user is not left)

    def _insert(self, before: Node, op: OpOverload, operand: Node, *settings: float) -> Node:
        with self.graph.inserting_before(before):
            name = base_name(op)
            inserted = self.graph.create_node("call_function", op, (operand, *settings), name=name)
        inserted.meta = dict(operand.meta)
        self.made[inserted] = before
        return inserted

    def _stands_for(self, new: Node, node: Node) -> None:
        new.meta = dict(node.meta)
        self.made[new] = node
        self.carrying.add(new)
