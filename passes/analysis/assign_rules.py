"""Analysis: which rule of the table each carrying node gets."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby

from torch.fx import GraphModule, Node

from lxt_fx.base.errors import InputError, NoRuleError
from lxt_fx.base.nodes import arguments, module_path, module_stack, source_line
from lxt_fx.base.warn_user import warn_user
from lxt_fx.passes.analysis.find_groups import Groups
from lxt_fx.passes.analysis.mark_flow import Flow, HeldOperand, mark_flow
from lxt_fx.rule_table.rule import NOT_LISTED, GroupKind, Match, Rule, Site, kind_text
from lxt_fx.rule_table.selectors import Selector, selector_text, selects
from lxt_fx.rule_table.table import RuleTable


@dataclass(frozen=True, slots=True)
class Assignment:
    """The rule of a site, and (rule, reason) of each earlier rule that lists the op and refused it."""

    site: Site
    rule: Rule
    refusals: tuple[tuple[str, str], ...] = ()

    @property
    def leaves_group(self) -> bool:
        """Whether the rule leaves a group of nodes as they are, each with its native gradient."""
        return isinstance(self.site.kind, GroupKind) and self.rule.op(self.site) is None

    def match(self) -> Match:
        """The same as text, which can be saved without the graph."""
        held = self.rule.holds(self.site)
        leaving = tuple(name for name in self.site.carrying if name not in held)
        return Match(kind_text(self.site.kind), leaving, held, self.rule.why(self.site), self.refusals)


@dataclass(frozen=True, slots=True)
class Plan:
    """The rule of each node, in graph order, and the flow that they were chosen on. `cuts` are rules that stop relevance,
    at nodes that therefore carry none; `unknown` are carrying nodes that no rule accepts, each with the reasons."""

    assignments: Mapping[Node, Assignment]
    flow: Flow
    cuts: Mapping[Node, Assignment]
    unknown: Mapping[Node, str]

    def with_reasons(self, not_written: Mapping[Node, str]) -> Plan:
        """The same, where unknown nodes say why they were not written out in other ops."""
        said = {node: f"\n  not written out: {reason}" for node, reason in not_written.items() if reason}
        return replace(self, unknown={node: text + said.get(node, "") for node, text in self.unknown.items()})


def assign_rules(gm: GraphModule, flow: Flow, groups: Groups, table: RuleTable) -> Plan:
    """Analysis: for every carrying node, the first rule of the table that does not refuse it.

    Rules that hold an operand constant are chosen first, on the flow as given. The flow is then marked again without the
    held operands, and all other nodes get their rules on the new flow: a product with held attention weights is linear.
    """
    first, _ = _choose(gm, flow, groups, table, {})
    holding = {node: a for node, a in first.items() if a.rule.holds(a.site) or isinstance(a.site.kind, GroupKind)}
    held: set[HeldOperand] = set(flow.held)
    for node, assignment in holding.items():
        held |= _held_operands(node, assignment, groups)
    flow = mark_flow(gm, flow.leaves, frozenset(held))
    settled = {node: a for node, a in holding.items() if node in flow.carrying}
    cuts = {node: a for node, a in holding.items() if node not in flow.carrying and a.rule.holds(a.site)}
    chosen, unknown = _choose(gm, flow, groups, table, settled)
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    in_order = dict(sorted(chosen.items(), key=lambda item: order[item[0]]))
    return Plan(in_order, flow, cuts, unknown)


def check_complete(plan: Plan) -> None:
    """Raises NoRuleError that names every kind of node without a rule, with the rules that came closest."""
    if not plan.unknown:
        return
    shown = "\n".join(list(dict.fromkeys(plan.unknown.values()))[:5])
    more = f"\n  and {len(plan.unknown) - 5} more nodes" if len(plan.unknown) > 5 else ""
    raise NoRuleError(
        f"{shown}{more}\n  to go on: add a rule (docs/adding_a_rule.md), or leave the op its native gradient: "
        "transform(..., strict=False)"
    )


def check_overrides(gm: GraphModule, flow: Flow, plan: Plan, groups: Groups, table: RuleTable) -> None:
    """Raises InputError for rules that an override puts at a place where none of them fits any node that carries relevance.

    A place without carrying nodes is no error, since one table serves several models. A place without any node gives a
    warning.
    """
    carrying = [node for node in gm.graph.nodes if node in flow.carrying and node.op == "call_function"]
    for where, rules in groupby(table.rules, key=lambda rule: rule.where):
        if where is None:
            continue
        if not any(selects(where, node) for node in gm.graph.nodes):
            warn_user(_nowhere_text(gm, where))
        chosen = [node for node in carrying if selects(where, node)]
        useless = {}
        for rule in rules:
            reasons = {node: _refusals(node, rule, (flow, plan.flow), groups) for node in chosen}
            if not all(reasons.values()):
                break
            useless[rule] = reasons
        else:
            if chosen:
                raise InputError(_no_use_text(*next(iter(useless.items()))))


def _nowhere_text(gm: GraphModule, where: Selector) -> str:
    paths = sorted({path for node in gm.graph.nodes for path, _ in module_stack(node) if path})
    near = difflib.get_close_matches(selector_text(where), paths, n=1, cutoff=0.0)
    hint = f"; nearest: {near[0]}" if near and isinstance(where, str) else ""
    return f"override: no node of the model is at {selector_text(where)!r}, so the rules put there do nothing{hint}"


def _refusals(node: Node, rule: Rule, flows: tuple[Flow, ...], groups: Groups) -> str:
    """Why the rule refuses the node, alone and as a group; empty where it accepts it."""
    reasons = [rule.refuses(site) for flow in flows for site in _sites(node, flow, groups)]
    return "" if None in reasons else "; ".join(dict.fromkeys(str(reason) for reason in reversed(reasons)))


def _no_use_text(rule: Rule, reasons: Mapping[Node, str]) -> str:
    lines = [f"override: rule {rule.name} fits no node at {selector_text(rule.where)}"]
    for node, reason in list(reasons.items())[:5]:
        place = ", ".join(str(part) for part in (module_path(node), source_line(node)) if part)
        lines.append(f"  %{node.name} = {kind_text(node.target)}   ({place}): {reason}")  # type: ignore[arg-type]
    if len(reasons) > 5:
        lines.append(f"  and {len(reasons) - 5} more nodes")
    lines.append(f"  the rule lists {', '.join(map(kind_text, rule.ops))}; override a place that has one of these")
    return "\n".join(lines)


def _held_operands(node: Node, assignment: Assignment, groups: Groups) -> set[HeldOperand]:
    """Operands through which no relevance flows: those that the rule holds and, for a norm, its statistic."""
    edges = {(node, name) for name in assignment.rule.holds(assignment.site)}
    group = groups.by_root.get(node)
    if group is None or assignment.site.kind is not group.kind:
        return edges
    if group.statistic is not None:
        return edges | {(node, name) for name, value in arguments(node).items() if value is group.statistic}
    return edges


def _choose(
    gm: GraphModule, flow: Flow, groups: Groups, table: RuleTable, settled: Mapping[Node, Assignment]
) -> tuple[dict[Node, Assignment], dict[Node, str]]:
    chosen: dict[Node, Assignment] = {}
    unknown: dict[Node, str] = {}
    inside: set[Node] = set()
    left: set[Node] = set()
    for node in reversed(gm.graph.nodes):
        if node not in flow.carrying or node.op != "call_function":
            continue
        if node in left or node in inside and all(user in inside or user not in flow.carrying for user in node.users):
            continue
        assignment = settled.get(node) or _first_rule(list(_sites(node, flow, groups)), table)
        if assignment is None:
            unknown[node] = _no_rule_text(node, flow, groups, table)
            continue
        chosen[node] = assignment
        others = assignment.site.members - {node}
        inside |= others
        left |= others if assignment.leaves_group else set()
    return chosen, unknown


def _first_rule(sites: list[Site], table: RuleTable) -> Assignment | None:
    refusals: dict[tuple[str, str], None] = {}
    for rule in table.rules:
        for site in sites:
            reason = rule.refuses(site)
            if reason is None:
                return Assignment(site, rule, tuple(refusals))
            if reason not in NOT_LISTED:
                refusals[rule.name, reason] = None
    return None


def _sites(node: Node, flow: Flow, groups: Groups) -> Iterator[Site]:
    """The group whose root is the node, then the node alone."""
    roles = groups.roles.get(node, frozenset())
    group = groups.by_root.get(node)
    if group is not None:
        yield Site(node, group.kind, group.arguments, ("self",), group.members, roles)
    carrying = tuple(operand.name for operand in flow.carrying_operands(node))
    kind = node.target
    parameters, gates = groups.parameters.get(node, ()), groups.gates.get(node, ())
    alone = frozenset({node})
    yield Site(node, kind, arguments(node), carrying, alone, roles, parameters, gates, group is not None)  # type: ignore[arg-type]


def _no_rule_text(node: Node, flow: Flow, groups: Groups, table: RuleTable) -> str:
    sites = list(_sites(node, flow, groups))
    place = ", ".join(str(part) for part in (module_path(node), source_line(node)) if part)
    lines = [f"no rule for %{node.name} = {node.target}   ({place})"]
    for site in sites:
        for rule in table.rules:
            reason = rule.refuses(site)
            if reason is not None and reason not in NOT_LISTED:
                lines.append(f"  closest rule: {rule.name}: {reason}")
    if str(node.target).startswith("quantized"):
        lines.append("  quantised kernels have no gradient: load the model unquantised, or dequantise its weights first")
    elif str(node.target).startswith("lxt_fx."):
        lines.append(
            "  it has a rule of its own already, which the model was written with (lxt_fx.nn, lxt_fx.functional): "
            "transform(..., strict=False) leaves it that"
        )
    elif len(lines) == 1:
        lines.append(f"  closest rules: none of table {table.name} lists this op")
    return "\n".join(lines)
