"""The arguments of `transform`: the example inputs, the rule table, the other options."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.passes.capture.example import Example, given_example, made_example, own_features
from lxt_fx.passes.capture.settings import is_transformers
from lxt_fx.passes.segments.recompute import Checkpoint
from lxt_fx.rule_table.rule import Rule
from lxt_fx.rule_table.selectors import Selector
from lxt_fx.rule_table.table import RuleTable
from lxt_fx.rule_table.tables import TABLES, WITH_ARGUMENTS

Rules = str | RuleTable | Mapping[Selector, Rule]
"""The name of a table, a table, or rules by place."""


@dataclass(frozen=True, slots=True)
class Options:
    """How the relevance graph is lowered, and the positions of its logits (None: all)."""

    form: str = "gradient"
    epsilon: float = 0.0
    strict: bool = True
    positions: tuple[int, ...] | None = None
    checkpoint: Checkpoint = None


def table_named(rules: Rules, asked: str = "transform") -> RuleTable:
    """The table with this name, the table itself, or `attnlrp` with the rules of a composite before its own. Errors name
    what `asked` for it.

    Raises UnknownNameError, with the nearest name, for an unknown name and InputError for anything else.
    """
    if isinstance(rules, RuleTable):
        return rules
    if isinstance(rules, Mapping):
        return TABLES["attnlrp"].composite(rules)
    if not isinstance(rules, str):
        raise InputError(
            f"{asked}: rules must be a name, a RuleTable, or a dict of places and rules, got {type(rules).__name__}"
        )
    if rules in WITH_ARGUMENTS:
        raise InputError(f"{asked}: table {rules!r} needs arguments: {WITH_ARGUMENTS[rules]}")
    if rules not in TABLES:
        near = difflib.get_close_matches(rules, TABLES, n=1, cutoff=0.0)
        raise UnknownNameError(
            f"{asked}: there is no rule table {rules!r}; did you mean {near[0]!r}? Tables: {', '.join(TABLES)}"
        )
    return TABLES[rules]


def example_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> Example:
    """The inputs that the model is captured on: those given, else inputs made for a transformers model. Raises InputError
    for a module of another kind without inputs."""
    if not isinstance(args, tuple) or args or kwargs:
        return given_example(model, args, dict(kwargs or {}))
    if not is_transformers(model):
        if (features := own_features(model)) is not None:
            return given_example(model, (features,), {})
        raise InputError(
            f"transform: {type(model).__name__} is not a transformers model, so its inputs are unknown; give an example: "
            "transform(net, (x,))"
        )
    return made_example(model)
