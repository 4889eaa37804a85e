"""Transform: the relevance graph in explicit form, whose backward carries relevance itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.errors import NoRuleError
from lxt_fx.base.nodes import arguments, module_path, value
from lxt_fx.base.torch_internals import OpOverload, aten, base_name
from lxt_fx.ops import activations, expectations, explicit, norms, products, recurrences
from lxt_fx.ops.activations import POINTWISE_OPS
from lxt_fx.ops.aten_kinds import GROUPED_MATMULS, MOVES, WEIGHTED
from lxt_fx.ops.explicit_contributions import PARTS
from lxt_fx.ops.own_backward import OWN_BACKWARD, own_backward, own_backward_of_several
from lxt_fx.ops.packed import packed_linear
from lxt_fx.ops.sources import SOURCES
from lxt_fx.passes.analysis.find_cancelling import find_cancelling
from lxt_fx.passes.analysis.mark_flow import Flow, differentiable_operands
from lxt_fx.rule_table.rule import Conserves, Rule

FACTOR_HELD = frozenset(norm.op for norm in norms.NORMS if norm.equation is None)
"""Norms that hold their factor: an identity in relevance."""

PASS_ON = POINTWISE_OPS - {activations.identity}
BY_EQUATION: dict[Any, OpOverload] = {
    **{norm.op: norm.equation for norm in norms.NORMS if norm.equation is not None},
    **{op: explicit.EQUATIONS[op] for op in products.ATTENTIONS},
    **PARTS,
}
_WHOLE = frozenset(recurrences.EQUATIONS)
"""Ops whose equation takes an epsilon for the sums inside of it."""
SPECIAL = (
    FACTOR_HELD | POINTWISE_OPS | SOURCES | products.HALVED | frozenset(BY_EQUATION) | frozenset(explicit.EQUATIONS)
    | _WHOLE
)
_BY_WEIGHTS = WEIGHTED | {products.linear}
"""Sums of many terms, which are 0 by chance only; a matmul of two rounded values may well be 0."""
_KNOWN = SPECIAL | products.LINEAR_MAPS | MOVES | GROUPED_MATMULS | {own_backward, packed_linear}


def is_known(op: OpOverload) -> bool:
    """Whether it is known how relevance passes an op; of torch's and of users' a rule says it."""
    return op.namespace != "lxt_fx" or op in _KNOWN


STANDS_FOR: dict[Any, str] = {
    explicit.leave: "self",
    explicit.as_gradient: "self",
    explicit.pass_on: "value",
    explicit.share_out: "value",
    explicit.sdpa_steps: "value_of",
    explicit.sdpa_held_steps: "value_of",
    **{op: "value" for fast, op in BY_EQUATION.items() if fast not in products.ATTENTIONS},
}
"""Ops that `to_explicit_form` puts behind a node, with the argument that holds the node's value. They give the same value,
everyone who read the node reads it there, and what comes back to them is relevance, but for `as_gradient`; the node itself
may get a gradient."""


def is_linear_map(node: Node) -> bool:
    """Whether eq. 8 divides by the op's output: a linear map, a norm that subtracts a mean or adds a bias, or a product of
    carrying operands with a share each.

    Raises NoRuleError for an op of lxt_fx of which nothing is known here; ops of torch's and of users' count as linear.
    """
    if not isinstance(node.target, OpOverload) or node.target is own_backward_of_several:
        return False
    _require_known(node)
    return node.target not in (SPECIAL | MOVES) - frozenset(BY_EQUATION)


def _require_known(node: Node) -> None:
    op = node.target
    assert isinstance(op, OpOverload)
    if not is_known(op):
        raise NoRuleError(
            f"no equation for %{node.name} = {op}   ({module_path(node) or 'the model'}): how relevance passes this op of "
            "lxt_fx's is not known, and it is not taken for a linear map\n  to go on: give the rule that put it there its "
            f"equation, explicit={{torch.ops.{op}: ...}} (docs/adding_a_rule.md)"
        )


def own_equation(node: Node, rules: Mapping[str, Rule]) -> OpOverload | None:
    """The op that the node's rule gives for its explicit form; None where it gives none. `rules` are by node name."""
    rule = rules.get(node.name)
    return rule.explicit.get(node.target) if rule is not None and isinstance(node.target, OpOverload) else None


def to_explicit_form(gm: GraphModule, flow: Flow, rules: Mapping[str, Rule], epsilon: float) -> dict[str, str]:
    """Transform: each op on the relevance path becomes the equation of its rule; returns for each new node the one that it
    stands for, by name. `epsilon` is that of rules without one of their own. Forward values stay as they are; `flow` is
    that of this graph, `rules` are by node name.

    A Function with a backward of its own may give 0 where its gradient is not 0 (rounding does), and R = 0 does not say
    which gradient that is. So from it to the next linear layers gradients flow, by the ops of the fast form; a call is
    refused where the value of such a layer, or an output, is 0."""
    lowering = _Lowering(gm, flow, rules, epsilon)
    for node in list(gm.graph.nodes):
        if node.op == "call_function" and node in flow.carrying:
            lowering.apply(node)
    return {new.name: old.name for new, old in lowering.made.items()}


def _with_gradients(gm: GraphModule, flow: Flow, rules: Mapping[str, Rule]) -> set[Node]:
    """The nodes to whose values gradients flow back: Functions with a backward of their own, and what is computed from them
    up to linear layers."""
    found: set[Node] = set()
    for node in gm.graph.nodes:
        if node.op != "call_function" or node not in flow.carrying:
            continue
        reads = any(operand.node in found for operand in differentiable_operands(node))
        ends = node.target in _BY_WEIGHTS and own_equation(node, rules) is None
        if node.target in OWN_BACKWARD or (reads and not ends):
            found.add(node)
    return found


_OF_TWO = {products.matmul: aten.matmul.default, products.mul: aten.mul.Tensor}


def _turns_pairs(node: Node) -> bool:
    """Whether this is a product of complex numbers, which mixes the two parts of each."""
    found = value(node)
    return node.target is products.mul and isinstance(found, Tensor) and found.is_complex()


def _shares(node: Node) -> tuple[list[float], ...]:
    """The shares of a product of two values where they are not half each; as arguments of `share_out`."""
    found = [float(node.kwargs.get(f"{name}_share", 0.5)) for name in ("self", "other")]  # type: ignore[arg-type]
    return () if found == [0.5, 0.5] else (found,)


class _Lowering:
    """The graph under edit."""

    def __init__(self, gm: GraphModule, flow: Flow, rules: Mapping[str, Rule], epsilon: float) -> None:
        self.graph, self.rules, self.epsilon = gm.graph, rules, epsilon
        self.inner = find_cancelling(gm, flow).nothing  # terms of a sum, since eq. 8 of their own would divide by 0
        self.carrying = set(flow.carrying)
        self.gradients = _with_gradients(gm, flow, rules)
        self.made: dict[Node, Node] = {}

    def apply(self, node: Node) -> None:
        if node in self.gradients:
            return self._by_gradients(node)
        if not isinstance(node.target, OpOverload):
            return
        if node.target in recurrences.EQUATIONS:
            node.target = recurrences.EQUATIONS[node.target]
            return node.update_kwarg("epsilon", self._epsilon(node))
        if not isinstance(value(node), Tensor):
            return
        own = own_equation(node, self.rules)
        if own is not None:
            node.target = own
        elif node.target in MOVES | SOURCES:
            return  # relevance follows its element, as a gradient does; at a source it ends
        elif node.target is products.softmax:
            node.target = explicit.EQUATIONS[products.softmax]
        elif node.target in products.HALVED and not _turns_pairs(node):
            operands, shares = list(node.args), _shares(node)
            self._replace(node, lambda held: (explicit.share_out, (operands, held, *shares), {}))
        elif node.target in FACTOR_HELD | PASS_ON:
            operand, intercept = node.args[0], self._intercept(node)
            self._replace(node, lambda held: (explicit.pass_on, (operand, held, *self._constant(node, intercept)), {}))
        elif node.target is activations.identity:
            operand, written, at_zero, _ = node.args
            assert isinstance(at_zero, float)
            node.target, node.args = explicit.pass_on, (operand, written, *self._constant(node, at_zero))
        elif node.target in BY_EQUATION:
            self._by_steps(node)
        else:
            _require_known(node)
            self._linear(node)

    def _by_gradients(self, node: Node) -> None:
        """The op of the fast form: its operands get their relevance from the gradient, and an output of the graph gives it
        one."""
        self._enter(node)
        if not isinstance(value(node), Tensor):
            return
        with self.graph.inserting_after(node):
            passing = self.graph.create_node("call_function", explicit.as_gradient, (node,), name="as_gradient")
        self._stands_for(passing, node)
        self.gradients.add(passing)
        node.replace_all_uses_with(passing, delete_user_cb=lambda user: user is not passing)
        if any(user.op == "output" for user in passing.users):
            self._leave(passing, lambda user: user.op == "output")
            self._expect_nonzero(node)

    def _enter(self, node: Node) -> None:
        """Before each carrying operand to which relevance flows back."""
        for operand in dict.fromkeys(operand.node for operand in differentiable_operands(node)):
            if self._receives(operand):
                node.replace_input_with(operand, self._insert(node, explicit.enter, operand))

    def _entered(self, node: Node, operand: Any, share: float) -> Any:
        """The operand of a product, entered with its share."""
        return self._insert(node, explicit.enter, operand, share) if self._receives(operand) else operand

    def _receives(self, operand: Any) -> bool:
        return operand in self.carrying and operand not in self.inner | self.gradients

    def _leave(self, node: Node, reads: Callable[[Node], bool]) -> None:
        """Behind the node, for these of its readers."""
        with self.graph.inserting_after(node):
            left = self.graph.create_node("call_function", explicit.leave, (node, self._epsilon(node)), name="leave")
        self._stands_for(left, node)
        node.replace_all_uses_with(left, delete_user_cb=lambda user: user is not left and reads(user))

    def _expect_nonzero(self, node: Node) -> None:
        """A call is refused where the value is 0: R / z does not say which gradient the Function before it gets."""
        with self.graph.inserting_after(node):
            said = f"%{node.name} in {module_path(node) or 'the model'}"
            self.graph.create_node("call_function", expectations.expect_nonzero, (node, said), name="expect_nonzero")

    def _epsilon(self, node: Node) -> float:
        rule = self.rules.get(node.name)
        return self.epsilon if rule is None or rule.epsilon is None else rule.epsilon

    def _constant(self, node: Node, intercept: float) -> tuple[float, ...]:
        return (intercept, self._epsilon(node)) if intercept else ()

    def _intercept(self, node: Node) -> float:
        """f(0) where the rule says that it takes a share."""
        rule = self.rules.get(node.name)
        if node.target in FACTOR_HELD or rule is None or rule.conserves is not Conserves.ALL_BUT_CONSTANTS:
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
        step, operands, kwargs = BY_EQUATION[node.target], tuple(node.args), dict(node.kwargs)
        own = {"epsilon": self._epsilon(node)}
        self._replace(node, lambda held: (step, operands, {**kwargs, STANDS_FOR[step]: held, **own}))

    def _linear(self, node: Node) -> None:
        """enter, the op, leave; a product of carrying operands gives a share to each."""
        if any(operand.node in self.gradients for operand in differentiable_operands(node)):
            self._expect_nonzero(node)
        if node.target in _OF_TWO:
            (shares,) = _shares(node) or ([0.5, 0.5],)
            node.target, node.kwargs = _OF_TWO[node.target], {}
            node.args = tuple(self._entered(node, *pair) for pair in zip(node.args, shares, strict=True))
        elif node.target is products.einsum:
            tensors = arguments(node)["tensors"]
            shares = arguments(node).get("shares") or products.equal_shares(tensors)
            entered = [self._entered(node, *pair) for pair in zip(tensors, shares, strict=True)]
            node.target, node.args, node.kwargs = aten.einsum.default, (node.args[0], entered), {}
        else:
            self._enter(node)
        if node not in self.inner:
            self._leave(node, lambda user: user.target is not expectations.expect_nonzero)

    def _insert(self, before: Node, op: OpOverload, operand: Node, *settings: float) -> Node:
        with self.graph.inserting_before(before):
            name = base_name(op)
            inserted = self.graph.create_node("call_function", op, (operand, *settings), name=name)
        inserted.meta = dict(operand.meta)
        self.made[inserted] = before
        return inserted

    def _stands_for(self, new: Node, node: Node) -> None:
        assert arguments(new)[STANDS_FOR[new.target]] is node, f"%{new.name} must hold the value of %{node.name}"
        new.meta = dict(node.meta)
        self.made[new] = node
        self.carrying.add(new)
