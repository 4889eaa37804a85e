"""A module whose values are changed at some places while it runs: the same rules on a graph with a few more nodes.

Behind the node of a place stand y = a x + c with constants a and c. These are ordinary ops with ordinary rules (scale,
sum), so both forms, the fused graph, the audit and `watch` treat them as they treat the model's own, and nothing is
captured or chosen again. All readers read y, and y takes over the name of x, by which places are found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import computed_from
from lxt_fx.base.one_capture import one_capture
from lxt_fx.base.torch_internals import OpOverload, aten, copied_graph, rename
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.pipeline import explained_of, in_form
from lxt_fx.compiler.snapshots import fused_stage, rule_stage
from lxt_fx.ops.sources import reconstruction_error
from lxt_fx.ops.steering import steered as steered_at
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.rewrite.rewrite import Rewritten
from lxt_fx.rule_table.basic_rules import SCALE, SUM
from lxt_fx.rule_table.rule import Match, Rule, kind_text

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """y = factor x + shift at one node, by its name; None stands for 1 and 0. Both broadcast to x. `tokens` is the dim of
    its positions, of which `at`, `span` or `mask` choose some (`lxt_fx::steered`). `place` is what the node is called in
    the ledger."""

    node: str
    place: str
    factor: Tensor | None
    shift: Tensor | None
    tokens: int = 0
    at: tuple[int, ...] | None = None
    span: tuple[int, int, int] | None = None
    mask: Tensor | None = None


def check_steerable(explained: Explained, function: str) -> Options:
    """The options that the module was made with. Raises InputError, in the name of `function`, for a module that was loaded
    from a file: it has no graph before its form."""
    if explained.record.table is None or explained._options is None:
        raise InputError(
            f"{function}: this module was loaded from a file, which does not hold the graph that changes are put into; "
            "give the model that it was made from"
        )
    return explained._options


@one_capture()
@torch.inference_mode(False)
def steered(explained: Explained, changes: Sequence[Change], function: str) -> Explained:
    """The module with these changes, one after another. Parameters are shared. Raises what `check_steerable` raises."""
    record, options = explained.record, check_steerable(explained, function)
    rules = record.stages["rules"]
    gm = GraphModule(explained, copied_graph(rules.graph, explained.graph))
    edit = _Edit(gm, dict(rules.rules), dict(record.matches))
    for change in changes:
        edit.apply(change)
    gm.graph.lint()
    flow = mark_flow(gm, relevance_leaves(gm.graph))
    rewritten = Rewritten(0, edit.rules, edit.matches, rules.inserted, record.renamed)
    relevance = rule_stage("rules", gm, flow, rewritten)
    rewritten = in_form(gm, flow, rewritten, options)
    lowered = rule_stage("lowered", gm, flow, rewritten)
    twin = explained_of(gm, options, {})
    stages = {stage.name: stage for stage in (relevance, lowered, fused_stage(twin.fused, lowered))}
    embedding = next(iter(explained._embedding), None)
    record = replace(record, stages={**record.stages, **stages}, matches=rewritten.matches)
    twin._attach(record, explained._fronts, embedding, explained.config, explained.generation_config)
    twin._model_state, twin._options = explained._model_state, options
    return twin


class _Edit:
    """The graph under edit, with the rules of its nodes by name."""

    def __init__(self, gm: GraphModule, rules: dict[str, Rule], matches: dict[str, Match]) -> None:
        self.gm, self.graph, self.rules, self.matches = gm, gm.graph, rules, matches
        self.constants = 0

    def apply(self, change: Change) -> None:
        """Puts the change behind its node."""
        x = next(node for node in self.graph.nodes if node.name == change.node)
        readers, now = list(x.users), x
        self._spare_errors(x)
        for name, op, rule, amount, nothing in (
            ("factor", aten.mul.Tensor, SCALE, change.factor, 1.0),
            ("shift", aten.add.Tensor, SUM, change.shift, 0.0),
        ):
            if amount is not None:
                constant = self._constant(x, f"{change.place} {name}", amount, nothing, change)
                now = self._then(now, x, op, rule, constant)
        for reader in readers:
            reader.replace_input_with(x, now)
        self._take_name(x, now)

    def _spare_errors(self, x: Node) -> None:
        """What a dictionary leaves is that of the features as the model has them: were it computed from changed ones, it
        would make up for the change. So it reads copies of the nodes between x and what is reconstructed, which read x."""
        for error in [node for node in self.graph.nodes if node.target is reconstruction_error]:
            value, reconstruction = error.all_input_nodes
            before = computed_from(reconstruction)
            if x in before and x not in computed_from(value) and x is not reconstruction:
                chain = [node for node in self.graph.nodes if node in before - {x} and x in computed_from(node)]
                error.replace_input_with(reconstruction, self._copied(chain, error)[reconstruction])

    def _copied(self, chain: Sequence[Node], reader: Node) -> dict[Node, Node]:
        """Copies of nodes that read one another, with their rules, before the node that will read them."""
        copies: dict[Node, Node] = {}
        for node in chain:
            with self.graph.inserting_before(reader):
                copies[node] = self.graph.node_copy(node, lambda operand: copies.get(operand, operand))
            if node.name in self.rules:
                self.rules[copies[node].name] = self.rules[node.name]
                self.matches[copies[node].name] = self.matches[node.name]
        return copies

    def _then(self, now: Node, x: Node, op: OpOverload, rule: Rule, constant: Node) -> Node:
        with self.graph.inserting_after(constant if now is x else now):
            made = self.graph.call_function(op, (now, constant))
        made.meta = {**x.meta}
        self.rules[made.name] = rule
        self.matches[made.name] = Match(kind_text(op), ("self",), (), "Put in by steer.")
        return made

    def _constant(self, x: Node, name: str, amount: Tensor, nothing: float, change: Change) -> Node:
        """What x is multiplied with, or what is added to it, directly behind x."""
        held = before = self._buffer(x, amount)
        settings: dict[str, Any] = {}
        if change.at is not None:
            settings["at"] = list(change.at)
        if change.span is not None:
            settings["span"] = list(change.span)
        if change.mask is not None:
            settings["mask"] = before = self._buffer(held, change.mask)
        with self.graph.inserting_after(before):
            args = (held, x, nothing, change.tokens)
            made = self.graph.create_node("call_function", steered_at, args, settings, name=_written(name))
        made.meta = {**x.meta}
        return made

    def _buffer(self, behind: Node, value: Tensor) -> Node:
        while hasattr(self.gm, name := f"steered_{self.constants}"):  # those of an outer block
            self.constants += 1
        self.gm.register_buffer(name, value)
        with self.graph.inserting_after(behind):
            node = self.graph.get_attr(name)
        node.meta = {"val": value}
        return node

    def _take_name(self, x: Node, now: Node) -> None:
        """The changed value is found by the name of the place."""
        name, made = x.name, now.name
        rename(x, f"{name}_before")
        now.name = name
        _renamed(self.rules, {name: x.name, made: name})
        _renamed(self.matches, {name: x.name, made: name})


def _renamed(known: dict[str, T], names: Mapping[str, str]) -> None:
    """Gives what is known of nodes to their new names."""
    found = {new: known.pop(old) for old, new in names.items() if old in known}
    known.update(found)


def _written(name: str) -> str:
    """The name of the node that has a constant, as the ledger shows it."""
    return f"steered_{re.sub(r'[^a-zA-Z0-9]+', '_', name).strip('_')}"
