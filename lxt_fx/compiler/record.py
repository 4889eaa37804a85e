"""The record of an explained module: how `transform` made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph

from lxt_fx.rule_table.rule import Match, Rule
from lxt_fx.rule_table.table import RuleTable


@dataclass(frozen=True, slots=True)
class Stage:
    """The graph after a step of `transform`, and what was known of its nodes, by node name."""

    name: str
    graph: Graph
    carrying: frozenset[str] = frozenset()
    rules: Mapping[str, Rule] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    inserted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Record:
    """How `transform` made a module.

    `inputs` are the names of the inputs of a call; those in `optional` may be left out. `leaves` are the float inputs at
    which relevance is read. `specialised` says what is fixed to the example. `forward_difference` is the largest difference
    to the model's own output on the example, relative to its largest value: 0.0 means bit-equal, NaN not compared (meta
    device). `unknown` names nodes with their native gradient, because no rule accepted them (always empty under
    strict=True). `matches` says why the rule of a node matched, by name of the node in the rewritten graph. `form` is
    `gradient` or `explicit`. `overrides` are the places where the table was overridden. `merged` names the batch norms that
    became part of the layer before them. `positions` are the positions of the logits, None for all of them. `table` is the
    rule table itself, None for a module that was loaded from a file, which holds its name only. `order` are the names of
    positional inputs of a call, constants included; if it is empty, those of `inputs`.
    """

    model_class: str
    table_name: str
    form: str
    paper: str
    overrides: tuple[str, ...]
    merged: tuple[str, ...]
    inputs: tuple[str, ...]
    leaves: tuple[str, ...]
    optional: tuple[str, ...]
    constants: Mapping[str, Any]
    method: str
    specialised: tuple[str, ...]
    guards: tuple[str, ...]
    sizes: Mapping[str, tuple[int | None, ...]]
    forward_difference: float
    seconds: Mapping[str, float]
    stages: Mapping[str, Stage]
    unknown: Mapping[str, str]
    matches: Mapping[str, Match]
    versions: Mapping[str, str]
    positions: tuple[int, ...] | None = None
    table: RuleTable | None = None
    order: tuple[str, ...] = ()
