"""The result of `explain` and of every call like it: the relevance of each input for the numbers that were explained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lxt_fx.results.account import Account
from lxt_fx.results.part import Part


@dataclass(frozen=True, slots=True)
class ExplainedNumber:
    """One explained number: `said` is the phrase that says which (`logit of ' Paris' (rank 1) at position 4, after ' is'`),
    `value` the number, `label` a short name for the axis of a picture (` Paris`)."""

    said: str
    value: float
    label: str


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an explanation comes from: rule table, class of the model, its checkpoint ("" if it has none), versions of
    lxt_fx, torch and transformers, and the seconds of the forward and backward pass, without capture."""

    table_name: str
    model_class: str
    checkpoint: str
    versions: Mapping[str, str]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """How much each place of the inputs of one example moved the explained numbers up (positive) or down (negative).

    `parts` are the inputs, the one that a person asks about first. `numbers` are the explained numbers: one, unless several
    targets were asked for; then `axes` of every part starts with "target". `account` is None until it was computed.
    """

    parts: tuple[Part, ...]
    numbers: tuple[ExplainedNumber, ...]
    origin: Origin
    account: Account | None = None
