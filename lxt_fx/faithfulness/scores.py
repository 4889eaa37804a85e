"""The score of every point of a grid of rule tables, and whether the best of them is more than chance."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lxt_fx.faithfulness.removal_curves import standard_error
from lxt_fx.rule_table.table import RuleTable

LEVEL = 0.05
"""A lead is more than noise if chance alone gives such a lead less often than this."""

ALL_FLIPS, SOME_FLIPS = 12, 4096
"""With at most `ALL_FLIPS` examples all sign flips are tried; with more, `SOME_FLIPS` of them, drawn from a fixed seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One point of the grid: its parameters, and the metric of each example, [examples] in float64."""

    parameters: Mapping[str, float]
    values: Tensor

    @property
    def mean(self) -> float:
        """The mean over the examples."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean over the examples; NaN for one example."""
        return standard_error(self.values)

    @property
    def said(self) -> str:
        """`conv=0.25, linear=0.05`."""
        return ", ".join(f"{name}={value:g}" for name, value in self.parameters.items())


@dataclass(frozen=True, slots=True, repr=False)
class ScoredTable(RuleTable):
    """The table of the best point of a grid. `scores` are all points, ordered by their parameters; `measured` says on which
    examples, `metric` names the score."""

    scores: tuple[Score, ...] = ()
    measured: str = ""
    metric: str = "area"

    @property
    def best(self) -> Score:
        """The point of this table: the one with the largest mean; if several are equal, the one with the smallest
        parameters."""
        return max(self.scores, key=lambda score: score.mean)

    @property
    def plain(self) -> Score:
        """The point with the smallest parameters, with which the others are compared: gamma 0 in the default grid."""
        return self.scores[0]

    def lead(self, score: Score) -> Tensor:
        """[examples]: by how much a point is better than the plain one, example by example."""
        return score.values - self.plain.values

    @property
    def chance(self) -> float:
        """The probability that some point leads the plain one as clearly as the best does, if all leads are noise."""
        return chance_of([self.lead(score) for score in self.scores], self.scores.index(self.best))

    @property
    def is_better(self) -> bool:
        """Whether the lead of the best point is more than noise (`chance` below 0.05)."""
        return self.chance < LEVEL


def chance_of(leads: Sequence[Tensor], chosen: int) -> float:
    """The probability that the largest t value of all `leads` [examples] reaches that of the chosen lead if the sign of
    each example is random: the single-step max-t test of Westfall and Young (1993) by sign flips, which corrects for the
    choice among many points. (A flip does not change the sum of squares, so the sum divided by its root ranks as t does.)

    1.0 if the mean of the chosen lead is not positive.
    """
    found = torch.stack(list(leads), dim=1)  # [examples, points]
    scaled = found / found.norm(dim=0).clamp(min=torch.finfo(found.dtype).tiny)
    reached = scaled[:, chosen].sum()
    if not reached > 0:
        return 1.0
    return float(((_signs(len(found)) @ scaled).amax(1) >= reached - 1e-9).double().mean())


@lru_cache(maxsize=4)
def _signs(examples: int) -> Tensor:
    """[flips, examples] of 1 and -1; the first flip changes no sign. A benchmark asks hundreds of times for the same."""
    if examples <= ALL_FLIPS:
        return torch.tensor(list(itertools.product((1.0, -1.0), repeat=examples)), dtype=torch.float64)
    random = torch.randint(0, 2, (SOME_FLIPS, examples), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    return torch.cat([torch.ones(1, examples, dtype=torch.float64), random])
