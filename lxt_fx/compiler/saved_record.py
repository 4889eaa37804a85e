"""The record of a module as JSON, and back: how it was made, its rules, why each matched."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from torch.fx import Graph

from lxt_fx.base.errors import InputError
from lxt_fx.base.saved_json import Saved
from lxt_fx.compiler.record import Record, Stage
from lxt_fx.compiler.size_guards import compiled_guard, inputs_read
from lxt_fx.ops.forms import Form
from lxt_fx.passes.capture.example import FILLS
from lxt_fx.rule_table.rule import Conserves, Match, Rule
from lxt_fx.rule_table.selectors import selector_text

T = TypeVar("T")

MOST_DIMS = 64
_FORMS: dict[str, Form] = {"gradient": "gradient", "explicit": "explicit"}
_CONSERVES = {found.name: found for found in Conserves}


def encoded_record(record: Record) -> dict[str, Any]:
    """The record as plain values. Constants that are no plain values are left out."""
    constants = {k: v for k, v in record.constants.items() if _is_plain(v)}
    return {
        "model_class": record.model_class,
        "table_name": record.table_name,
        "form": record.form,
        "paper": record.paper,
        "overrides": record.overrides,
        "merged": record.merged,
        "called_with": record.called_with,
        "inputs": record.inputs,
        "given_alone": record.given_alone,
        "leaves": record.leaves,
        "optional": record.optional,
        "constants": constants,
        "order": record.order,
        "to_repeat": record.to_repeat,
        "method": record.method,
        "specialised": record.specialised,
        "guards": record.guards,
        "sizes": dict(record.sizes),
        "forward_difference": record.forward_difference,
        "gradient_difference": record.gradient_difference,
        "gradient_note": record.gradient_note,
        "no_tokens": record.no_tokens,
        "padded_note": record.padded_note,
        "written_out": record.written_out,
        "copied_layers": record.copied_layers,
        "traced_layers": record.traced_layers,
        "unknown": dict(record.unknown),
        "versions": dict(record.versions),
        "positions": record.positions,
        "matches": _encoded_matches(record),
        "renamed": dict(record.renamed),
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))


def decoded_record(saved: Saved, names: tuple[str, ...], stages: Mapping[str, Stage]) -> Record:
    """The record that `encoded_record` wrote, of a graph whose inputs have these names. Raises InputError for anything
    else."""
    inputs = saved.item("inputs").names()
    if set(inputs) != set(names):
        saved.item("inputs").fail(f"names other inputs than the graph, which has {', '.join(names)}"[:300])
    positions = saved.maybe("positions")
    return Record(
        model_class=saved.item("model_class").text(1000),
        table_name=saved.item("table_name").text(1000),
        form=saved.item("form").one_of(_FORMS),
        paper=saved.item("paper").text(),
        overrides=saved.item("overrides").texts(),
        merged=saved.item("merged").texts(),
        called_with=saved.item("called_with").names(),
        inputs=inputs,
        given_alone=saved.item("given_alone").names(),
        leaves=_leaves(saved.item("leaves"), inputs),
        optional=_optional(saved.item("optional"), inputs),
        constants={name: value.plain() for name, value in saved.item("constants").entries().items()},
        order=saved.item("order").names(),
        to_repeat=saved.item("to_repeat").names(),
        method=saved.item("method").text(1000),
        specialised=saved.item("specialised").texts(),
        guards=tuple(_guard(part, inputs) for part in saved.item("guards").parts()),
        sizes=_sizes(saved.item("sizes")),
        forward_difference=saved.item("forward_difference").number(),
        gradient_difference=saved.item("gradient_difference").number(),
        gradient_note=saved.item("gradient_note").text(),
        no_tokens=saved.item("no_tokens").names(),
        padded_note=saved.item("padded_note").text(),
        written_out=saved.item("written_out").texts(),
        copied_layers=saved.item("copied_layers").whole(),
        traced_layers=saved.item("traced_layers").texts(),
        seconds={},
        stages=stages,
        unknown={name: text.text() for name, text in saved.item("unknown").entries().items()},
        matches=_decoded_matches(saved.item("matches")),
        renamed={name: text.text() for name, text in saved.item("renamed").entries().items()},
        versions={name: text.text(1000) for name, text in saved.item("versions").entries().items()},
        positions=None if positions is None else tuple(part.whole() for part in positions.parts()),
    )


def _leaves(saved: Saved, inputs: tuple[str, ...]) -> tuple[str, ...]:
    found = saved.names()
    if unknown := [name for name in found if not _is_part(name, inputs)]:
        saved.fail(f"holds {unknown[0]!r:.200}, which is no input")
    return found


def _optional(saved: Saved, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Inputs that a call may leave out: those whose values this version makes."""
    found = saved.names()
    for name in found:
        if name not in FILLS or name not in inputs:
            saved.fail(f"holds {name!r}, which is no input that can be left out")
    return found


def _guard(saved: Saved, inputs: tuple[str, ...]) -> str:
    guard = saved.text()
    try:
        compiled_guard(guard)
    except InputError as error:
        saved.fail(f"cannot be used: {error}")
    if unknown := sorted(name for name in inputs_read(guard) if not _is_part(name, inputs)):
        saved.fail(f"reads {unknown[0][:200]!r}, which is no input")
    return guard


def _is_part(name: str, inputs: tuple[str, ...]) -> bool:
    """Whether this is an input, or a part of a nested one (`images_0`)."""
    return name in inputs or name.startswith(tuple(f"{outer}_" for outer in inputs))


def _sizes(saved: Saved) -> dict[str, tuple[int | None, ...]]:
    return {
        name: tuple(None if part.value is None else part.whole(0) for part in sizes.parts(MOST_DIMS))
        for name, sizes in saved.entries().items()
    }


def _encoded_matches(record: Record) -> dict[str, Any]:
    """Each match once, and its index by node: the layers of a model have the same matches."""
    indices: dict[Match, int] = {}
    by_node = {node: indices.setdefault(match, len(indices)) for node, match in record.matches.items()}
    return {"matches": [[m.kind, m.carrying, m.held, m.why, m.refusals] for m in indices], "nodes": by_node}


def _decoded_matches(saved: Saved) -> dict[str, Match]:
    matches = [_match(part) for part in saved.item("matches").parts()]
    return _by_node(saved.item("nodes"), matches)


def _match(saved: Saved) -> Match:
    parts = _fields(saved, 5)
    refusals = tuple((rule.text(), reason.text()) for rule, reason in (_fields(part, 2) for part in parts[4].parts()))
    return Match(parts[0].text(), parts[1].texts(), parts[2].texts(), parts[3].text(), refusals)


def _fields(saved: Saved, count: int) -> list[Saved]:
    found = saved.parts(count)
    if len(found) != count:
        saved.fail(f"must have {count} items")
    return found


def _by_node(saved: Saved, found: list[T]) -> dict[str, T]:
    return {name: found[index.whole(0, len(found) - 1)] for name, index in saved.entries().items()}


def encoded_stages(stages: Mapping[str, Stage]) -> dict[str, Any]:
    """Rules, each once, and for each stage what is known of its nodes by name."""
    indices: dict[Rule, int] = {}
    written = {
        name: {
            "nodes": {node: indices.setdefault(rule, len(indices)) for node, rule in stage.rules.items()},
            "carrying": sorted(stage.carrying),
            "inserted": sorted(stage.inserted),
            "labels": dict(stage.labels),
        }
        for name, stage in stages.items()
    }
    rules = [
        [rule.name, rule.formula, rule.source, rule.conserves.name, rule.where and selector_text(rule.where)]
        for rule in indices
    ]
    return {"rules": rules, "stages": written}


def decoded_stages(saved: Saved, graphs: Mapping[str, Graph]) -> dict[str, Stage]:
    """The stages that `encoded_stages` wrote, each with its graph."""
    rules = [_rule(part) for part in saved.item("rules").parts()]
    written = saved.item("stages")
    return {name: _stage(written.item(name), name, graph, rules) for name, graph in graphs.items()}


def _stage(saved: Saved, name: str, graph: Graph, rules: list[Rule]) -> Stage:
    return Stage(
        name,
        graph,
        frozenset(saved.item("carrying").texts()),
        _by_node(saved.item("nodes"), rules),
        {node: text.text() for node, text in saved.item("labels").entries().items()},
        frozenset(saved.item("inserted").texts()),
    )


def _rule(saved: Saved) -> Rule:
    name, formula, source, conserves, where = _fields(saved, 5)
    return Rule(
        name=name.text(),
        ops={},
        formula=formula.text(),
        source=source.text(),
        conserves=conserves.one_of(_CONSERVES),
        where=None if where.value is None else where.text(),
    )
