"""A module under a table that differs in numbers only: another gamma, another epsilon. Its graph is the same but for these
numbers, so nothing is captured, chosen or rewritten again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import FunctionType
from typing import Any

from torch import Tensor
from torch.fx import Graph, Node

from lxt_fx.base.torch_internals import OpOverload, copied_graph, schema_of
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.record import Record, Stage
from lxt_fx.compiler.snapshots import fused_stage
from lxt_fx.ops import products
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.table import RuleTable

_WITH_NUMBERS = ("rules", "lowered")
"""The stages whose graphs have the numbers."""


def under_numbers(explained: Explained, table: RuleTable) -> Explained | None:
    """The module under this table, if it differs from its own in the numbers of rules only, and these do not change what
    the graph is made of; else None. Parameters are shared."""
    record = explained.record
    others = None if record.table is None or record.merged else _other_rules(record.table, table)
    if others is None or record.form != "gradient":  # in explicit form an epsilon stands in many ops
        return None
    graph = copied_graph(explained.graph, explained.graph)
    if not _set_numbers(graph, record.stages["lowered"].rules, others):
        return None
    twin = Explained(explained, graph)
    embedding = next(iter(explained._embedding), None)
    under = _under(record, table, others, twin)
    twin._attach(under, explained._fronts, embedding, explained.config, explained.generation_config)
    twin._model_state, twin._options = explained._model_state, explained._options
    if explained.segments is not None:
        twin._cut(explained.segments)
    return twin


def _under(record: Record, table: RuleTable, others: Mapping[int, Rule], twin: Explained) -> Record:
    """The record of the module under another table."""
    stages = dict(record.stages)
    for name in _WITH_NUMBERS:
        stage = stages[name]
        graph = copied_graph(stage.graph)
        _set_numbers(graph, stage.rules, others)
        stages[name] = replace(stage, graph=graph, rules=_renewed(stage, others))
    stages["fused"] = fused_stage(twin.fused, stages["lowered"])
    return replace(
        record, table=table, table_name=table.name, paper=table.paper, overrides=table.overrides, stages=stages, seconds={}
    )


def _renewed(stage: Stage, others: Mapping[int, Rule]) -> dict[str, Rule]:
    return {name: others.get(id(rule), rule) for name, rule in stage.rules.items()}


def _set_numbers(graph: Graph, rules: Mapping[str, Rule], others: Mapping[int, Rule]) -> bool:
    """Gives the nodes of a graph the numbers of their new rules. Returns whether that is all that changes."""
    for node in graph.nodes:
        rule = rules.get(node.name)
        if rule is None or (new := others.get(id(rule))) is None:
            continue
        if isinstance(node.target, OpOverload):
            for name, number in new.numbers.items():
                _set(node, name, number)
        if new.epsilon != rule.epsilon and not _set_epsilon(node, rule, new):
            return False
    return True


def _set(node: Node, name: str, number: Any) -> None:
    """Sets an argument that the op has, by name; one that is the default of the op is left out, as `rewrite` does."""
    assert isinstance(node.target, OpOverload)
    known = {argument.name: (index, argument) for index, argument in enumerate(schema_of(node.target).arguments)}
    if name not in known:
        return
    index, argument = known[name]
    if not argument.kwarg_only and index < len(node.args):
        node.update_arg(index, number)
    elif number != argument.default_value:
        node.update_kwarg(name, number)
    elif name in node.kwargs:
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def _set_epsilon(node: Node, rule: Rule, new: Rule) -> bool:
    """Sets the epsilon of a node. It cannot be set where it was none or becomes none: an op stands for it, or no op."""
    if not rule.epsilon or not new.epsilon:
        return False
    if node.target is products.epsilon:
        node.update_arg(1, new.epsilon)
    elif "epsilon" in node.kwargs:
        node.update_kwarg("epsilon", new.epsilon)
    return True


def _other_rules(old: RuleTable, new: RuleTable) -> dict[int, Rule] | None:
    """The new rule in the place of each old one, by identity of the old one; None if they differ in more than numbers."""
    if len(old.rules) != len(new.rules):
        return None
    found: dict[int, Rule] = {}
    for one, other in zip(old.rules, new.rules, strict=True):
        if one is other:
            continue
        if not _is_alike(one, other) or found.setdefault(id(one), other) is not other:
            return None
    return found


def _is_alike(one: Rule, other: Rule) -> bool:
    """Whether two rules are the same but for their numbers, their epsilon and the text of their formula."""
    same = (one.name, one.ops, one.where, one.conserves, one.explicit, one.source)
    if same != (other.name, other.ops, other.where, other.conserves, other.explicit, other.source):
        return False
    functions = ((one.when, other.when), (one.settings, other.settings), (one.holds, other.holds))
    if not all(_is_same(*pair) for pair in functions) or one.numbers.keys() != other.numbers.keys():
        return False
    changed = [(a, other.numbers[name]) for name, a in one.numbers.items() if a is not other.numbers[name]]
    return not any(isinstance(number, Tensor) for pair in changed for number in pair)


def _is_same(one: Any, other: Any) -> bool:
    """Whether two conditions, or what they hold, are the same: made by the same code of the same parts."""
    if one is other:
        return True
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        if one.__code__ is not other.__code__ or one.__globals__ is not other.__globals__:
            return False
        return _is_same(_held(one), _held(other))
    if type(one) is not type(other) or isinstance(one, Tensor):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_is_same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_is_same(value, other[key]) for key, value in one.items())
    return isinstance(one, (bool, int, float, str, type(None))) and bool(one == other)


def _held(function: FunctionType) -> tuple[Any, ...]:
    """What a function reads beside its arguments and its module."""
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return (*cells, function.__defaults__, function.__kwdefaults__)
