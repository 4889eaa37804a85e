"""What a forest plot shows: a line for each method with its interval, beside the reference at 0."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lxt_fx.referee.measured import BenchTable
from lxt_fx.referee.results_text import mean_said, range_said
from lxt_fx.referee.statistics import Interval


@dataclass(frozen=True, slots=True)
class Row:
    """A method of the plot. `verdict` is empty where nothing is compared."""

    method: str
    found: Interval
    verdict: str

    @property
    def said(self) -> str:
        """`gim: −0.48, −1.02 to 0.05, no evidence`."""
        return f"{self.method}: " + ", ".join(filter(None, (mean_said(self.found), range_said(self.found), self.verdict)))


@dataclass(frozen=True, slots=True)
class Plot:
    """The rows of a table; `zero` says whether these are differences to the reference, which is then at 0. `low` and `high`
    are the ends of the axis, `ticks` the numbers on it."""

    rows: tuple[Row, ...]
    zero: bool
    low: float
    high: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Where a value stands, 0 at the left end and 1 at the right."""
        return (value - self.low) / (self.high - self.low)


def plot_of(table: BenchTable) -> Plot | None:
    """The differences to the reference; where nothing is compared, the means. None where there is nothing to draw."""
    from matplotlib.ticker import MaxNLocator

    paired = [Row(one.method, one.paired.difference, one.paired.verdict(table.better))
              for one in table.measured if one.paired is not None]  # fmt: skip
    rows = paired or [Row(one.method, one.found, "") for one in table.measured]
    if not rows:
        return None
    ends = [0.0] if paired else []
    for row in rows:
        ends += [value for value in (row.found.mean, row.found.low, row.found.high) if math.isfinite(value)]
    low, high = min(ends), max(ends)
    room = 0.04 * (high - low) or max(abs(high), 1.0) / 10
    low, high = low - room, high + room
    ticks = [float(tick) for tick in MaxNLocator(4).tick_values(low, high) if low <= tick <= high]
    return Plot(tuple(rows), bool(paired), low, high, tuple(ticks))


def tick_said(tick: float) -> str:
    """The number at a tick."""
    return f"{tick:.4g}".replace("-", "−")
