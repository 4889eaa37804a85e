"""Forest plots as figures, for papers and docs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.referee.measured import BenchTable, Measurements
from lxt_fx.referee.plotted import Plot, plot_of, tick_said

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE, PANEL, FOOT = 0.2, 0.75, 0.45
"""In inches: the height of a method, of what a panel has beside its methods, and of the note at the foot."""

NARROWEST = 3.0
SIDE = 3.2
"""The least width of a figure, and of a panel if two stand beside one another."""

MARKERS = {"better": "^", "worse": "v", "no evidence": "o", "": "o"}
COLOURS = {"better": "#1a7f4b", "worse": "#b3541e", "no evidence": "#5c6470", "": "#1b1f24"}


def forest(results: Measurements, metric: str, width: float) -> Figure:
    """A panel for each model and task. Raises UnknownNameError for another metric, InputError without a result."""
    from matplotlib.figure import Figure

    if metric not in results.metrics:
        raise UnknownNameError(f"bench: there is no metric {metric!r} in these results: {', '.join(results.metrics)}")
    found = [(table, plot) for table in results if table.metric == metric and (plot := plot_of(table)) is not None]
    if not found or width < NARROWEST:
        why = f"metric {metric} has no result" if not found else f"width must be at least {NARROWEST} inches, got {width}"
        raise InputError(f"bench: no plot can be drawn: {why}")
    across = min(len(found), max(1, int(width / SIDE)))
    down = -(-len(found) // across)
    tallest = max(len(plot.rows) for _, plot in found)
    figure = Figure(figsize=(width, down * (PANEL + LINE * tallest) + FOOT), facecolor="white", layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for each, (table, plot) in zip(axes, found, strict=False):
        _draw(each, table, plot)
    for each in axes[len(found) :]:
        each.set_axis_off()
    figure.supxlabel(_foot(results, metric, [plot for _, plot in found]), fontsize=7.5, color="#5c6470")
    return figure


def _foot(results: Measurements, metric: str, plots: Sequence[Plot]) -> str:
    what = f"{metric}, minus {results.reference}" if any(plot.zero for plot in plots) else metric
    marks = "; triangles: better (up) or worse (down) by sign flips, Holm" if any(plot.zero for plot in plots) else ""
    return f"{what} ({results.metrics[metric]} is better)\nmean and 95 % bootstrap interval{marks}"


def _draw(axes: Axes, table: BenchTable, plot: Plot) -> None:
    for place, row in enumerate(plot.rows):
        colour, found = COLOURS[row.verdict], row.found
        axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.4, solid_capstyle="butt")
        axes.plot([found.mean], [place], marker=MARKERS[row.verdict], color=colour, markersize=5)
    if plot.zero:
        axes.axvline(0, color="#1b1f24", linewidth=0.8)
    axes.set_yticks(range(len(plot.rows)), [row.method for row in plot.rows], fontsize=8, parse_math=False)
    axes.set_ylim(len(plot.rows) - 0.4, -0.6)
    axes.set_xlim(plot.low, plot.high)
    axes.set_xticks(plot.ticks, [tick_said(tick) for tick in plot.ticks], fontsize=8)
    axes.grid(axis="x", color="#dfe2e7", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    most = max((row.found for row in plot.rows), key=lambda found: found.cases)
    groups = "" if most.groups == most.cases else f" in {most.groups} groups"
    axes.set_title(f"{table.model}, {table.task}\n{most.cases} cases{groups}", fontsize=9, loc="left", parse_math=False)
