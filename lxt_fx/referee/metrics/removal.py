"""Metrics that remove units in the order of their relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lxt_fx.faithfulness.removal_curves import orders
from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import seed_of
from lxt_fx.referee.contest import Judged, NotForThisError

FLOOR = 0.1
"""What the explained number (a logit, say) must lose when all is removed, for shares of that loss to be taken. They divide
by it: where it is near 0, the draw of replacing tokens and rounding decide the share, and a few such cases decide the mean.
A share of the mean number of all cases would know the scale, but one case does not know the others."""


@dataclass(frozen=True, slots=True)
class Area:
    """The mean height of the curve with the least relevant units removed first (LeRF) above the one with the most relevant
    first (MoRF), in units of the explained number (AttnLRP, Achtibat et al. 2024, sec. 4). A random order gives 0."""

    name: str = "area"
    replacement: str = "token"
    steps: int = 8
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        """The area between the two curves, by the trapezoidal rule, divided by its width."""
        morf, lerf = curves(judged, replacement_of(judged.answers, self.replacement), self.steps)
        return float(torch.trapezoid(lerf - morf)) / self.steps


def curves(judged: Judged, replacement: str, steps: int) -> tuple[Tensor, Tensor]:
    """The numbers [steps + 1] under MoRF and under LeRF, from nothing removed to all."""
    found = judged.answers.numbers(present_in(judged, steps).flatten(0, 1), replacement).view(2, steps + 1)
    return found[0], found[1]


def present_in(judged: Judged, steps: int) -> Tensor:
    """[2, steps + 1, units]: the units that are present under MoRF and under LeRF. Equally relevant units go in a random
    order, the same one for all methods of a case: in the order of positions, a constant relevance would have one."""
    chance = torch.Generator().manual_seed(seed_of(f"{judged.case.key} ties"))
    shuffled = torch.randperm(len(judged.relevance), generator=chance)
    _, present = orders(judged.relevance[None, shuffled], judged.answers.removable[None, shuffled], steps)
    return present[0][..., shuffled.argsort()]


def replacement_of(answers: Answers, wanted: str) -> str:
    """The replacement of this name. Raises NotForThisError where the task has none."""
    if wanted not in answers.draws:
        raise NotForThisError(f"the task replaces units by {', '.join(answers.draws)}, not by {wanted}")
    return wanted


@dataclass(frozen=True, slots=True)
class LeaveOneOutCorrelation:
    """Spearman's correlation of relevance with what the number loses when each unit alone is replaced. Cases with fewer
    than three units that may be removed cannot be judged."""

    name: str = "leave_one_out_spearman"
    replacement: str = "token"
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        """The correlation; 0 where all relevances, or all losses, are equal."""
        answers = judged.answers
        removable = ranked_units(answers, self.name)
        present = torch.ones(len(removable), len(answers.removable), dtype=torch.bool)
        present[torch.arange(len(removable)), removable] = False
        loss = answers.whole() - answers.numbers(present, replacement_of(answers, self.replacement))
        return spearman(judged.relevance[removable], loss)


def ranked_units(answers: Answers, name: str) -> Tensor:
    """The places of the units that may be removed. Raises NotForThisError where there are fewer than three to rank."""
    removable = answers.removable.nonzero().flatten()
    if len(removable) < 3:
        raise NotForThisError(f"{name}: a case has fewer than three units that may be removed")
    return removable


def spearman(a: Tensor, b: Tensor) -> float:
    """The rank correlation of two tensors [n], equal numbers sharing their mean rank; 0 where one of them is constant."""
    x, y = mean_ranks(a), mean_ranks(b)
    x, y = x - x.mean(), y - y.mean()
    size = float((x.square().sum() * y.square().sum()).sqrt())
    return 0.0 if size == 0 else float((x * y).sum()) / size


def mean_ranks(values: Tensor) -> Tensor:
    """Ranks [n] from 0, the smallest first, in float64; equal numbers share the mean of their ranks."""
    _, place, count = torch.unique(values, sorted=True, return_inverse=True, return_counts=True)
    last = count.cumsum(0)
    ranks: Tensor = (last - (count + 1) / 2).to(torch.float64)
    return ranks[place]


@dataclass(frozen=True, slots=True)
class Deletion:
    """RISE's deletion score (Petsiuk et al. 2018) of a scaled number: the area under its course from 1 (whole input) to 0
    (all removed) when the most relevant units are removed first, one step after the other, cut to [0, 1].
    There the course is a class's probability as it is; a logit has no such scale, and is scaled as MAS scales."""

    name: str = "rise"
    replacement: str = "token"
    steps: int = 8
    better: Literal["higher", "lower"] = "lower"
    floor: float = FLOOR

    def of(self, judged: Judged) -> float:
        """The area, in [0, 1]. Raises NotForThisError where the number loses less than `floor` in all."""
        course = response(judged, self.replacement, self.steps, self.floor, self.name)
        return float(torch.trapezoid(course)) / self.steps


@dataclass(frozen=True, slots=True)
class MagnitudeAligned:
    """MAS for deletion (Walker et al. 2024): RISE's course plus a penalty, |course - share of positive relevance left|, so
    that not only the order but the sizes of relevances are judged. Cut to [0, 1]; the normalised course is made
    non-increasing, as there. There the course is that of a class's probability, and relevance is absolute: here what speaks
    against the number is none that its removal could take away."""

    name: str = "mas"
    replacement: str = "token"
    steps: int = 8
    better: Literal["higher", "lower"] = "lower"
    floor: float = FLOOR

    def of(self, judged: Judged) -> float:
        """The area under course plus penalty, in [0, 1]. Raises NotForThisError where the number loses less than `floor` in
        all."""
        course = response(judged, self.replacement, self.steps, self.floor, self.name).cummin(0).values
        removable = judged.answers.removable
        positive = judged.relevance.clamp(min=0) * removable
        whole, left = float(positive.sum()), torch.linspace(1, 0, self.steps + 1).double()
        if whole > 0:
            left = (present_in(judged, self.steps)[0] * positive).sum(1) / whole
        return float(torch.trapezoid((course + (course - left).abs()).clamp(0, 1))) / self.steps


def response(judged: Judged, replacement: str, steps: int, floor: float, name: str) -> Tensor:
    """The course [steps + 1] under MoRF, from 1 for the whole input to 0 for all removed, cut to [0, 1]. Raises as
    `height_of`."""
    morf, _ = curves(judged, replacement_of(judged.answers, replacement), steps)
    height = height_of(float(morf[0]), float(morf[-1]), floor, name)
    return ((morf - morf[-1]) / height).clamp(0, 1)


def height_of(whole: float, none: float, floor: float, name: str) -> float:
    """What the number loses from the whole input to none of it. Raises NotForThisError where that is less than `floor`, or
    not more than 0."""
    height = whole - none
    if not (height > 0 and height >= floor):
        raise NotForThisError(
            f"{name}: the number of a case is not larger for the whole input than with all removed, by at least {floor:g}, "
            "so that a share of the difference would be noise"
        )
    return height
