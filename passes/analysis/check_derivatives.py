"""Analysis: does every op on the relevance path that keeps its own gradient have one?"""

from __future__ import annotations

from lxt_fx.base.errors import NoRuleError
from lxt_fx.base.nodes import module_path, source_line
from lxt_fx.base.torch_internals import OpOverload, has_derivative
from lxt_fx.passes.analysis.assign_rules import Plan


def check_derivatives(plan: Plan) -> None:
    """Raises NoRuleError that names each op without a derivative which the plan leaves its native gradient, by a rule or
    for want of one. Its kernel would pass nothing, or what the ops inside of it happen to leave (a rounding: 0)."""
    stays = dict.fromkeys(plan.unknown) | {
        node: assignment.rule.op(assignment.site) for node, assignment in plan.assignments.items()
    }
    lines = []
    why = "no autograd formula is registered for the op"
    for node, op in stays.items():
        called = node.target if op is None else op
        if isinstance(called, OpOverload) and not has_derivative(called):
            place = ", ".join(str(part) for part in (module_path(node), source_line(node)) if part)
            lines.append(f"no derivative for %{node.name} = {called}   ({place}): {why}")
    if lines:
        raise NoRuleError(
            "\n".join(list(dict.fromkeys(lines))[:5]) + "\n  its native gradient would be nothing, or by chance; to go on: "
            "torch.library.register_autograd for the op, or a rule that puts an op with a backward in its place "
            "(docs/adding_a_rule.md)"
        )
