"""The rule table that `tune` found, with the score of every point of its grid and what chance would have found."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lxt_fx.faithfulness.removal_curves import standard_error
from lxt_fx.rule_table.rule import RuleTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import RenderableType

LEVEL = 0.05
"""A lead that chance alone gives more rarely than this is more than noise."""

ALL_FLIPS, SOME_FLIPS = 12, 4096
"""Up to so many rows all sign flips are tried; with more rows, so many of them, drawn from a fixed seed."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """One point of the grid: its parameters, and the metric of each row, [rows] in float64."""

    parameters: Mapping[str, float]
    values: Tensor

    @property
    def mean(self) -> float:
        """The mean over rows."""
        return float(self.values.mean())

    @property
    def error(self) -> float:
        """The standard error of the mean over rows; NaN for one row."""
        return standard_error(self.values)

    @property
    def said(self) -> str:
        """`conv=0.25, linear=0.05`."""
        return ", ".join(f"{name}={value:g}" for name, value in self.parameters.items())


@dataclass(frozen=True, slots=True, repr=False)
class TunedTable(RuleTable):
    """The table of the best point, ready for `transform(rules=...)`.

    `scores` holds every point, in the order of its parameters; `measured` says on what, `metric` which number. Printed, it
    is the grid; `show()` prints the rows, as of every table.
    """

    scores: tuple[Score, ...] = ()
    measured: str = ""
    metric: str = "area"

    @property
    def best(self) -> Score:
        """The point with the largest mean, of equals the one with the smallest parameters: that of this table."""
        return max(self.scores, key=lambda score: score.mean)

    @property
    def plain(self) -> Score:
        """The point with the smallest parameters, which others are compared with: gamma 0 in the default grid."""
        return self.scores[0]

    def lead(self, score: Score) -> Tensor:
        """[rows]: by how much a point is better than the plain one, row by row."""
        return score.values - self.plain.values

    @property
    def chance(self) -> float:
        """How often some point would lead the plain one as clearly as the best does, were all leads noise."""
        return chance_of([self.lead(score) for score in self.scores], self.scores.index(self.best))

    @property
    def is_better(self) -> bool:
        """Whether the lead of the best point is more than noise (`chance` below 0.05)."""
        return self.chance < LEVEL

    def figure(self, *, width: float = 6.5) -> Figure:
        """The grid as a heatmap, `width` inches wide: means and standard errors, white where a point is as good as the
        plain one, red where better, blue where worse, the best framed.

        Raises InputError for a grid where more than two parameters have several values, or a width too small.
        """
        from lxt_fx.faithfulness.tuning_view import tuning_figure

        return tuning_figure(self, width)

    def show(self) -> None:
        """Print the rows: what is tried first stands first."""
        print(RuleTable.__str__(self))

    def __rich__(self) -> RenderableType:
        from lxt_fx.faithfulness.tuning_view import tuning_view

        return tuning_view(self)

    def __str__(self) -> str:
        from lxt_fx.faithfulness.tuning_view import tuning_view
        from lxt_fx.views.terminal import plain

        return plain(tuning_view(self))

    def __repr__(self) -> str:
        return f"TunedTable({self.name}: {self.best.said}, best of {len(self.scores)})"


def chance_of(leads: Sequence[Tensor], chosen: int) -> float:
    """How often the largest t value of all `leads` [rows] would reach that of the chosen ones if the signs of rows were
    random: the single-step max-t test of Westfall and Young (1993) by sign flips, so that the choice among many points is
    counted. (Flips keep sums of squares, so the sum over their root ranks as t does.)

    1.0 where the chosen ones do not lead.
    """
    found = torch.stack(list(leads), dim=1)  # [rows, points]
    scaled = found / found.norm(dim=0).clamp(min=torch.finfo(found.dtype).tiny)
    reached = scaled[:, chosen].sum()
    if not reached > 0:
        return 1.0
    return float(((_signs(len(found)) @ scaled).amax(1) >= reached - 1e-9).double().mean())


def _signs(rows: int) -> Tensor:
    """[flips, rows] of 1 and -1; the first row is the leads as they are."""
    if rows <= ALL_FLIPS:
        return torch.tensor(list(itertools.product((1.0, -1.0), repeat=rows)), dtype=torch.float64)
    random = torch.randint(0, 2, (SOME_FLIPS, rows), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    return torch.cat([torch.ones(1, rows, dtype=torch.float64), random])
