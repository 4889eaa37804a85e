"""Makes the record of a module from what the steps of `transform` found out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lxt_fx.compiler.captured_model import CapturedModel
from lxt_fx.compiler.compiled import Canonical, Compiled
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.hooks import hooks_sentence
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.record import Record
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.called_by_leaf import plain_leaves
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.refused_inputs import SAME, answer_or_error
from lxt_fx.passes.capture.settings import defaults_of, settings_to_repeat
from lxt_fx.passes.verify import forward_difference
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.version import __version__


def made_record(
    source: CapturedModel,
    table: RuleTable,
    options: Options,
    compiled: Compiled,
    seconds: Mapping[str, float],
    difference: float,
) -> Record:
    """The record of a compiled module. `difference` is that of its forward to the model's."""
    captured, chosen, begun = source.captured, compiled.chosen, compiled.begun
    before = source.model.record.written_out if isinstance(source.model, Explained) else ()
    hooks = () if isinstance(source.model, Explained) else hooks_sentence(source.model)
    written = chosen.written
    return Record(
        model_class=source.model_class,
        table=table,
        table_name=table.name,
        form=options.form,
        paper=table.paper,
        overrides=table.overrides,
        merged=chosen.merged,
        called_with=source.called_with,
        inputs=tuple(begun.example.kwargs),
        given_alone=_given_alone(source, begun.fronts, begun.example),
        leaves=tuple(str(leaf.target) for leaf in chosen.flow.leaves if leaf in chosen.flow.carrying),
        optional=begun.example.optional,
        constants=_constants(source, begun.example),
        method=captured.method,
        specialised=(*captured.specialised, *hooks, *written.fixed),
        guards=_guards(captured.guards, begun) + written.guards,
        written_out=(*before, *written.written.values()),
        copied_layers=captured.copied.layers,
        traced_layers=captured.copied.not_copied,
        not_kept=source.not_kept,
        sizes=compiled.sizes,
        forward_difference=difference,
        gradient_difference=compiled.proof.difference,
        gradient_note=compiled.proof.said,
        seconds=seconds,
        stages=compiled.stages,
        unknown={node.name: text for node, text in chosen.plan.unknown.items()},
        matches=compiled.matches,
        renamed=compiled.renamed,
        versions={"lxt_fx": __version__, "torch": torch.__version__},
        order=captured.example.order,
        to_repeat=_to_repeat(source, begun.example),
        no_tokens=begun.no_tokens,
        positions=options.positions or (source.model.record.positions if isinstance(source.model, Explained) else None),
    )


def _constants(source: CapturedModel, example: Example) -> dict[str, Any]:
    """The settings that are fixed in the graph by name, and the numbers inside of nested inputs."""
    inputs = source.captured.example.kwargs.keys() | example.kwargs.keys()
    defaults = {} if isinstance(source.model, Explained) else defaults_of(source.model, inputs)
    return defaults | example.constants | plain_leaves(example.kwargs)


def _to_repeat(source: CapturedModel, example: Example) -> tuple[str, ...]:
    if isinstance(source.model, Explained):
        return source.model.record.to_repeat
    return settings_to_repeat(source.model, example.constants)


def _given_alone(source: CapturedModel, fronts: Sequence[Front], example: Example) -> tuple[str, ...]:
    """The leaves that may be given without their tokens. The graph must not read these tokens elsewhere. If the model takes
    an input of that name itself, it must answer to it as it does to the tokens: some scale only what they look up."""
    if isinstance(source.model, Explained):
        return source.model.record.given_alone
    leaves = {front.leaf: front for front in fronts if not any(read in example.kwargs for read in front.reads)}
    own = [name for name in leaves if name in inspect.signature(source.model.forward).parameters]
    ours = tuple(name for name in leaves if name not in own)
    if not own or source.expected is None:
        return ours
    read = {name for leaf in own for name in leaves[leaf].reads}
    called = source.captured.example.kwargs
    given = {name: value for name, value in called.items() if name not in read} | {n: example.kwargs[n] for n in own}
    with torch_state_restored(), torch.no_grad():
        found = answer_or_error(source.model, replace(source.captured.example, kwargs=given))
    same = not isinstance(found, Exception) and forward_difference(source.expected, found) <= SAME
    return ours + tuple(own) if same else ours


def _guards(guards: tuple[str, ...], begun: Canonical) -> tuple[str, ...]:
    """The guards on the inputs of the cut graph."""
    for front in begun.fronts:
        guards = front.guards(guards, begun.example.kwargs)
    return guards
