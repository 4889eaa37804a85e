"""Means, paired differences and their uncertainty: bootstrap intervals, sign-flip tests, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.faithfulness.removal_curves import standard_error
from lxt_fx.faithfulness.scores import LEVEL as LEVEL
from lxt_fx.faithfulness.scores import chance_of

RESAMPLES = 2000
"""How many times cases are drawn anew for an interval."""

COVERS = 0.95
"""The share of experiments in which an interval holds the true mean."""

SHARE = 0.05
"""The difference that a benchmark should see: this share of the reference's mean, as two standard errors."""

TIE = 1e-6
"""Two values that differ by less than this share of the larger one are the same: rounding is no win, however steady."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of some cases and where the true mean lies: `low` to `high` in 95 % of experiments (percentile bootstrap).
    `error` is the standard error. For one case `low`, `high` and `error` are NaN."""

    mean: float
    low: float
    high: float
    error: float
    cases: int


@dataclass(frozen=True, slots=True)
class Paired:
    """A method against the reference on the cases that both have. `difference` is that of the metric, method minus
    reference; a case is won where the method is better, whichever way the metric counts. `p` is that of a two-sided test by
    sign flips; `holm` is `p` corrected for all methods that are compared at once. `needed` is how many cases it takes until
    two standard errors of the difference are 5 % of the reference's mean; None where no number is enough."""

    difference: Interval
    wins: int
    losses: int
    ties: int
    p: float
    holm: float
    needed: int | None

    def verdict(self, better: str) -> str:
        """`better`, `worse` or `no evidence`, at the level 0.05 of the corrected test."""
        if not self.holm < LEVEL:
            return "no evidence"
        return "better" if (self.difference.mean > 0) == (better == "higher") else "worse"


def interval(values: Tensor, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of `values` [cases] with its percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13). Values of
    the same number of cases are resampled alike, so that intervals of two methods belong to the same draws.

    Raises InputError for no case, and for values that are not finite.
    """
    if values.dim() != 1 or not len(values) or not bool(values.isfinite().all()):
        raise InputError(f"bench: an interval needs one finite number a case, [cases]; got {list(values.shape)}: {values}")
    found, mean = values.double(), float(values.double().mean())
    if len(found) == 1:
        return Interval(mean, math.nan, math.nan, math.nan, 1)
    tail = (1 - COVERS) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64)
    low, high = torch.quantile(_draws(len(found), resamples, seed) @ found, ends).tolist()
    return Interval(mean, low, high, standard_error(found), len(found))


@lru_cache(maxsize=4)
def _draws(cases: int, resamples: int, seed: int) -> Tensor:
    """[resamples, cases] in float64: the share that each case has in each resample."""
    drawn = torch.randint(0, cases, (resamples, cases), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, cases, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(resamples, cases)) / cases


def sign_flip_p(differences: Tensor) -> float:
    """The probability of a mean as far from 0 as that of `differences` [cases], on either side, if the sign of each is
    random."""
    found = differences.double()
    return chance_of([found, -found], int(found.sum() < 0))


def holm(chances: Sequence[float]) -> tuple[float, ...]:
    """The p values of a family, each corrected for the others (Holm 1979): the chance of one false finding or more among
    all that are below a level is at most that level."""
    order = sorted(range(len(chances)), key=lambda at: chances[at])
    found, reached = [0.0] * len(chances), 0.0
    for place, at in enumerate(order):
        reached = max(reached, min(1.0, (len(chances) - place) * chances[at]))
        found[at] = reached
    return tuple(found)


def cases_needed(differences: Tensor, reference: float, share: float = SHARE) -> int | None:
    """For how many cases two standard errors of the mean of `differences` are `share` of the reference's mean, by the
    spread of those that are there. None where that mean is 0, or with one case only."""
    wanted = share * abs(reference)
    if len(differences) < 2 or not wanted > 0:
        return None
    return max(2, math.ceil((2 * float(differences.double().std()) / wanted) ** 2))


def compared(
    method: Mapping[str, float], reference: Mapping[str, float], better: str, resamples: int = RESAMPLES, seed: int = 0
) -> Paired | None:
    """Values by case of a method and of the reference, on their common cases; `holm` is `p` until `corrected`. None without
    a common case."""
    common = [case for case in reference if case in method]
    if not common:
        return None
    own, other = (torch.tensor([of[case] for case in common], dtype=torch.float64) for of in (method, reference))
    differences = own - other
    differences[differences.abs() <= TIE * torch.maximum(own.abs(), other.abs())] = 0
    good = differences if better == "higher" else -differences
    wins, losses = int((good > 0).sum()), int((good < 0).sum())
    p = sign_flip_p(differences)
    needed = cases_needed(differences, float(other.mean()))
    return Paired(interval(differences, resamples, seed), wins, losses, len(common) - wins - losses, p, p, needed)
