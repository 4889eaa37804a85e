"""Means, paired differences and their uncertainty: bootstrap intervals, sign-flip tests, Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.faithfulness.scores import LEVEL as LEVEL
from lxt_fx.faithfulness.scores import chance_of

RESAMPLES = 2000
"""How many times groups of cases are drawn anew for an interval."""

COVERS = 0.95
"""The share of experiments in which an interval holds the true mean."""

SHARE = 0.05
"""The difference that a benchmark should see: this share of the reference's mean, as two standard errors."""

TIE = 1e-6
"""Two values that differ by less than this share of the larger one are the same: rounding is no win, however steady."""


@dataclass(frozen=True, slots=True)
class Interval:
    """The mean of some cases and where the true mean lies: `low` to `high` in 95 % of experiments (percentile bootstrap).
    `error` is the standard error. Both go by the `groups` of cases that share what they ask about; without any, each case
    is a group. For one group `low`, `high` and `error` are NaN."""

    mean: float
    low: float
    high: float
    error: float
    cases: int
    groups: int


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


def interval(values: Tensor, groups: Sequence[str] = (), resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """The mean of `values` [cases] with its percentile bootstrap interval (Efron and Tibshirani 1993, ch. 13). `groups` has
    the group of each case, empty for a case alone. Whole groups are drawn, each with all its cases, and the standard error
    is that of a mean over clusters (Cameron and Miller 2015, sec. II, with the factor G / (G - 1) for G groups): cases of
    one group are not independent. Values of the same groups are resampled alike, so that intervals of two methods belong
    to the same draws.

    Raises InputError for no case, and for values that are not finite.
    """
    if values.dim() != 1 or not len(values) or not bool(values.isfinite().all()):
        raise InputError(f"bench: an interval needs one finite number a case, [cases]; got {list(values.shape)}: {values}")
    found, mean = values.double(), float(values.double().mean())
    place = _places(groups or ("",) * len(found))
    sizes = _by_group(torch.ones_like(found), place)
    if len(sizes) == 1:
        return Interval(mean, math.nan, math.nan, math.nan, len(found), 1)
    drawn = _draws(len(sizes), resamples, seed)
    low, high = ends((drawn @ _by_group(found, place)) / (drawn @ sizes))
    return Interval(mean, low, high, _error(found, place), len(found), len(sizes))


def ends(drawn: Tensor) -> tuple[float, float]:
    """Between which two of its resampled values [resamples] a number lies in 95 % of experiments."""
    tail = (1 - COVERS) / 2
    low, high = torch.quantile(drawn, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def resampled(groups: Sequence[str]) -> Tensor:
    """[resamples, cases] in float64: how often each case is in each resample of `interval`, for numbers that are no mean
    over cases. `groups` are as there."""
    place = _places(groups)
    return _draws(int(place.max()) + 1, RESAMPLES, 0)[:, place]


def _places(groups: Sequence[str]) -> Tensor:
    """[cases]: the number of each case's group, in the order in which groups come; a case without one has its own."""
    known: dict[str | int, int] = {}
    return torch.tensor([known.setdefault(group or case, len(known)) for case, group in enumerate(groups)])


def _by_group(values: Tensor, place: Tensor) -> Tensor:
    """[groups]: the sums of `values` [cases] by group."""
    return values.new_zeros(int(place.max()) + 1).index_add_(0, place, values)


def _error(values: Tensor, place: Tensor) -> float:
    """The standard error of the mean of `values` [cases]; NaN for one group."""
    sums = _by_group(values - values.mean(), place)
    count = len(sums)
    return float((sums.square().sum() * count / (count - 1)).sqrt()) / len(values) if count > 1 else math.nan


@lru_cache(maxsize=4)
def _draws(groups: int, resamples: int, seed: int) -> Tensor:
    """[resamples, groups] in float64: how often each group is in each resample."""
    drawn = torch.randint(0, groups, (resamples, groups), generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(resamples, groups, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones((), dtype=torch.float64).expand(resamples, groups))


def sign_flip_p(differences: Tensor, groups: Sequence[str] = ()) -> float:
    """The probability of a mean as far from 0 as that of `differences` [cases], on either side, if the sign of each is
    random; cases of one of the `groups` flip together."""
    found = differences.double()
    found = _by_group(found, _places(groups)) if groups else found
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


def cases_needed(differences: Tensor, reference: float, share: float = SHARE, groups: Sequence[str] = ()) -> int | None:
    """For how many cases two standard errors of the mean of `differences` are `share` of the reference's mean, by the
    spread of those that are there, with as many cases in a group as now. None where that mean is 0, or with one group
    only."""
    wanted = share * abs(reference)
    error = _error(differences.double(), _places(groups or ("",) * len(differences))) if len(differences) else math.nan
    if math.isnan(error) or not wanted > 0:
        return None
    return max(2, math.ceil(len(differences) * (2 * error / wanted) ** 2 - 1e-9))


def compared(
    method: Mapping[str, float],
    reference: Mapping[str, float],
    better: str,
    groups: Mapping[str, str] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Paired | None:
    """Values by case of a method and of the reference, on their common cases; `groups` has the group of a case that is not
    alone; `holm` is `p` until `corrected`. None without a common case."""
    common = [case for case in reference if case in method]
    if not common:
        return None
    own, other = (torch.tensor([of[case] for case in common], dtype=torch.float64) for of in (method, reference))
    differences = own - other
    differences[differences.abs() <= TIE * torch.maximum(own.abs(), other.abs())] = 0
    good = differences if better == "higher" else -differences
    wins, losses = int((good > 0).sum()), int((good < 0).sum())
    own_groups = [(groups or {}).get(case, "") for case in common]
    p = sign_flip_p(differences, own_groups)
    needed = cases_needed(differences, float(other.mean()), groups=own_groups)
    mean = interval(differences, own_groups, resamples, seed)
    return Paired(mean, wins, losses, len(common) - wins - losses, p, p, needed)
