"""Which numbers were explained, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lxt_fx.base.one_line import one_line

ABSOLUTE, SOME = ", absolute relevance", ", for some of the places"
"""Stands behind what is said of a number whose relevance was made absolute, or is that of some places only: it does not sum
to what reached the inputs."""


@dataclass(frozen=True, slots=True)
class ExplainedNumber:
    """One explained number: `said` is the phrase that says which (`logit of ' Paris' (rank 1) at position 4, after ' is'`),
    `value` the number, `label` a short name for the axis of a picture (` Paris`)."""

    said: str
    value: float
    label: str

    def __repr__(self) -> str:
        return f"ExplainedNumber({one_line(self.said, 90)} = {self.value:.4g})"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an explanation comes from: rule table, class of the model, its checkpoint ("" if it has none), versions of
    lxt_fx, torch and transformers, and the seconds of the forward and backward pass, without capture."""

    table_name: str
    model_class: str
    checkpoint: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    def __repr__(self) -> str:
        return f"Origin({one_line(self.model_class, 70)}, rules {one_line(self.table_name, 70)})"


def joined(a: Origin, b: Origin) -> Origin:
    """The origin of a difference or sum; what differs is named from both."""
    names = dict.fromkeys([*a.versions, *b.versions])
    versions = {name: both(a.versions.get(name, ""), b.versions.get(name, "")) for name in names}
    return Origin(
        both(a.table_name, b.table_name),
        both(a.model_class, b.model_class),
        both(a.checkpoint, b.checkpoint),
        versions,
        a.seconds + b.seconds,
    )


def both(one: str, other: str) -> str:
    """One text where both say the same, else both."""
    return one if one == other else f"{one} and {other}"
