"""What is asked of each sample of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lxt_fx.attribution.target import TargetLike

TOKENS = 2048
"""The most tokens of a batch, padding included."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The target, the names of classes, the places whose `top` strongest units are written, and how many tokens a batch may
    have."""

    target: TargetLike = None
    labels: Sequence[str] | None = None
    places: tuple[str, ...] = ()
    top: int = 10
    batch_tokens: int = TOKENS
