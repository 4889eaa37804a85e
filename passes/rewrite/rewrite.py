"""Transform: each node with a rule becomes the `lxt_fx::` op of that rule, and operands that a rule holds go through
`hold`."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import Operand, arguments, operands
from lxt_fx.base.torch_internals import OpOverload, base_name, schema_of
from lxt_fx.ops import products
from lxt_fx.ops.aten_kinds import STEPS
from lxt_fx.passes.analysis.assign_rules import Assignment, Plan
from lxt_fx.passes.analysis.find_groups import Group, Groups
from lxt_fx.passes.analysis.mark_flow import Flow, differentiable_operands
from lxt_fx.passes.drop_dead import drop_dead
from lxt_fx.rule_table.rule import GroupKind, Match, Rule


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What the rewrite did, by node name: the rule of each node, why it matched, and the nodes that were inserted.
    `renamed` are the nodes that were replaced by one of another name, with that name."""

    edits: int
    rules: Mapping[str, Rule]
    matches: Mapping[str, Match]
    inserted: frozenset[str]
    renamed: Mapping[str, str]

    def with_nodes(self, made: Mapping[str, str]) -> Rewritten:
        """The same with new nodes, each under the rule of the node that it stands for."""
        rules = {new: self.rules[old] for new, old in made.items() if old in self.rules}
        matches = {new: self.matches[old] for new, old in made.items() if old in self.matches}
        return replace(
            self,
            rules={**self.rules, **rules},
            matches={**self.matches, **matches},
            inserted=self.inserted | frozenset(made),
        )


def rewrite(gm: GraphModule, plan: Plan, groups: Groups) -> Rewritten:
    """Transform: replaces each node or group by the op of its rule. Where a carrying value enters nodes that carry nothing
    (attention weights in CP-LRP, the statistic of a norm), it inserts `lxt_fx.hold`, so that autograd neither
    differentiates these nodes nor saves tensors for them. Forward values do not change."""
    rewriter = _Rewriter(gm)
    assigned = (*plan.cuts.items(), *plan.assignments.items())
    settings = [{**a.rule.settings(a.site), **a.rule.numbers} for _, a in assigned]  # read from the graph as it is
    for (node, assignment), found in zip(assigned, settings, strict=True):
        rewriter.apply(node, assignment, groups.by_root.get(node), found)
    rewriter.hold_frontier(plan.flow)
    renamed = rewriter.take_names()
    drop_dead(gm)
    by_name = {node.name: rewriter.assigned[node] for node in gm.graph.nodes if node in rewriter.assigned}
    rules = {name: assignment.rule for name, assignment in by_name.items()}
    matches = {name: assignment.match() for name, assignment in by_name.items()}
    inserted = frozenset(node.name for node in gm.graph.nodes if node in rewriter.inserted)
    return Rewritten(rewriter.edits, rules, matches, inserted, renamed)


class _Rewriter:
    """The graph while it is edited: which node replaced which, which values are held, what was inserted."""

    def __init__(self, gm: GraphModule) -> None:
        self.gm, self.graph = gm, gm.graph
        self.replaced: dict[Node, Node] = {}
        self.held: dict[Node, Node] = {}
        self.inserted: set[Node] = set()
        self.assigned: dict[Node, Assignment] = {}
        self.constants: dict[int, str] = {}
        self.edits = 0

    def apply(self, node: Node, assignment: Assignment, group: Group | None, given: Mapping[str, Any]) -> None:
        rule, site = assignment.rule, assignment.site
        op = rule.op(site)
        if op is None:
            self.assigned |= dict.fromkeys(site.members, assignment)
            return
        values = arguments(node)
        if isinstance(site.kind, GroupKind):
            assert group is not None
            values = self._group_arguments(group)
        settings = {name: self._setting(node, op, name, found) for name, found in given.items()}
        new = self._replace(node, op, values | _unusual(op, settings))
        self.assigned[new] = assignment
        self.edits += 1

    def _setting(self, before: Node, op: OpOverload, name: str, found: Any) -> Any:
        """A setting of a rule, as an argument of its op; a tensor becomes a buffer of the module."""
        if not isinstance(found, Tensor):
            return found
        if id(found) not in self.constants:
            path = f"{base_name(op)}_{name}_{len(self.constants)}"
            self.gm.register_buffer(path, found)
            self.constants[id(found)] = path
        with self.graph.inserting_before(before):
            constant = self.graph.get_attr(self.constants[id(found)])
        constant.meta = {"val": found}
        return constant

    def _now(self, node: Node) -> Node:
        """The node that has replaced a node, or the node itself."""
        return self.replaced.get(node, node)

    def take_names(self) -> dict[str, str]:
        """Erases the replaced nodes. A new node takes over the old name where both ops have the same name (`%linear_3`).
        Returns the names of the others, with their new ones."""
        for node in reversed(self.replaced):
            self.graph.erase_node(node)
        for node, new in self.replaced.items():
            if re.fullmatch(rf"{base_name(new.target)}(_\d+)?", node.name):
                new.name = node.name
        return {node.name: new.name for node, new in self.replaced.items() if node.name != new.name}

    def hold_frontier(self, flow: Flow) -> None:
        """Holds the operands that rules hold, and every carrying value where it enters a node that carries nothing. A step
        function counts as such a node, although torch gives it a gradient (of zeros)."""
        inside = {self._now(node) for node in flow.carrying}
        inside |= {part for node in inside for part in node.users if part.target is operator.getitem}  # of a tuple
        held = {(self._now(node), name) for node, name in flow.held}
        for node in list(self.graph.nodes):
            if node.op != "call_function" or node in self.inserted:
                continue
            for operand in operands(node) if node.target in STEPS else differentiable_operands(node):
                enters = operand.node in inside and node not in inside
                if enters or ((node, operand.name) in held and operand.node.op != "get_attr"):
                    self._read_held(node, operand)

    def _read_held(self, node: Node, operand: Operand) -> None:
        if [o.node for o in operands(node)].count(operand.node) == 1:
            node.replace_input_with(operand.node, self._hold(operand.node))
        else:  # one value as two operands, as in x * x: only this operand is held
            _set_argument(node, operand.name, self._hold(operand.node))
        self.edits += 1

    def _hold(self, value: Node) -> Node:
        """The hold of a value. There is one for all its readers, directly after the value."""
        if value.target is products.hold:
            return value
        if value not in self.held:
            with self.graph.inserting_after(value):
                held = self.graph.create_node("call_function", products.hold, (value,), name="hold")
            held.meta = dict(value.meta)
            self.held[value] = held
            self.inserted.add(held)
        return self.held[value]

    def _replace(self, node: Node, op: OpOverload, values: Mapping[str, Any]) -> Node:
        args, kwargs = _call_arguments(op, values)
        with self.graph.inserting_before(node):
            new = self.graph.create_node("call_function", op, args, kwargs, name=base_name(op))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.replaced[node] = new
        return new

    def _group_arguments(self, group: Group) -> dict[str, Any]:
        """Arguments of a group's op. The value of an elementwise group is computed from the held origin."""
        values = dict(torch.fx.map_arg(dict(group.arguments), self._now))
        if group.kind in (GroupKind.ELEMENTWISE, GroupKind.MODULE):
            values["value"] = self._held_copy(group, group.root)
        return values

    def _held_copy(self, group: Group, value: Node) -> Node:
        """A copy of the nodes between the group's origin and `value` that reads the held origin."""
        origin = self._now(group.origin)
        members = {self._now(member) for member in group.members}
        mapping: dict[Node, Node] = {origin: self._hold(origin)}

        def copied(node: Node) -> Node:
            if node in mapping or node not in members:
                return mapping.get(node, node)
            for operand in node.all_input_nodes:
                copied(operand)
            with self.graph.inserting_before(group.root):
                copy = self.graph.node_copy(node, lambda n: mapping.get(n, n))
            mapping[node] = copy
            self.inserted.add(copy)
            return copy

        return copied(self._now(value))


def _unusual(op: OpOverload, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from the op's defaults."""
    defaults = {argument.name: argument.default_value for argument in schema_of(op).arguments}
    return {name: value for name, value in settings.items() if defaults[name] != value}


def _set_argument(node: Node, name: str, value: Node) -> None:
    assert isinstance(node.target, OpOverload)
    names = [argument.name for argument in schema_of(node.target).arguments]
    if name.endswith("]"):  # an item of a list
        name, index = name[:-1].split("[")
        items = list(arguments(node)[name])
        items[int(index)] = value
        value = items  # type: ignore[assignment]
    if name in node.kwargs:
        node.update_kwarg(name, value)
    else:
        node.update_arg(names.index(name), value)


def _call_arguments(op: OpOverload, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional arguments up to the last one given, and keyword-only ones; arguments that the op does not have are
    dropped."""
    schema = schema_of(op).arguments
    kwargs = {a.name: values[a.name] for a in schema if a.kwarg_only and a.name in values}
    positional = [a for a in schema if not a.kwarg_only]
    while positional and positional[-1].name not in values:
        positional.pop()
    return tuple(values.get(a.name, a.default_value) for a in positional), kwargs
