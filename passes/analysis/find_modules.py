"""Analysis: modules that a rule treats as a whole (`Identity`, `Stop`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import module_stack, shape
from lxt_fx.passes.analysis.find_groups import Group, Groups
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.rule_table.rule import GroupKind
from lxt_fx.rule_table.selectors import selects
from lxt_fx.rule_table.table import RuleTable


def find_modules(gm: GraphModule, flow: Flow, groups: Groups, table: RuleTable) -> Groups:
    """Analysis: `groups`, and a further group for each module that a rule for whole modules names, where the module maps
    one carrying value to one of the same shape."""
    wanted = [rule.where for rule in table.rules if GroupKind.MODULE in rule.ops and rule.where is not None]
    if not wanted:
        return groups
    inside: dict[str, list[Node]] = defaultdict(list)
    for node in gm.graph.nodes:
        if node in flow.carrying and any(selects(where, node) for where in wanted):
            for path, _ in module_stack(node):
                inside[path].append(node)
    found = {group.root: group for path, nodes in inside.items() for group in _group(flow, nodes)}
    return replace(groups, by_root={**groups.by_root, **found})


def _group(flow: Flow, nodes: list[Node]) -> Iterator[Group]:
    members = frozenset(nodes)
    entering = {operand.node for node in nodes for operand in flow.carrying_operands(node)} - members
    leaving = [node for node in nodes if any(user not in members for user in node.users)]
    if len(entering) != 1 or len(leaving) != 1:
        return
    (origin,), (root,) = entering, leaving
    if shape(root) == shape(origin):
        arguments = {"self": origin, "value": root, "intercept": 0.0, "slope": 0.0}
        yield Group(GroupKind.MODULE, root, origin, members, arguments)
