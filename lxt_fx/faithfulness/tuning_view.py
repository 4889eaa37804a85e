"""The views of a tuned table: its grid as text, and as a heatmap."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.faithfulness.removal_curves import written
from lxt_fx.faithfulness.scores import Score, ScoredTable
from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.heatmap import BLACK, EDGE, MUTED, NARROWEST
from lxt_fx.views.typeset import POINTS, Type, sentence

CELL, LINE, MARGIN, LABELS = 0.42, 0.14, 0.8, 0.6
"""In inches: the height of a cell, of a line of the heading, of the space below the grid; the width of the space on its
left."""

HEADING = Type(8.0)


def tuning_view(tuned: ScoredTable) -> RenderableType:
    """A line for each point of the grid, and whether the best is more than noise."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for heading in ("", *tuned.plain.parameters, tuned.metric, "lead"):
        table.add_column(heading, justify="right")
    for score in tuned.scores:
        is_best = score is tuned.best
        lead = "" if score is tuned.plain else _signed(tuned, score)
        cells = (f"{value:g}" for value in score.parameters.values())
        table.add_row("*" if is_best else "", *cells, written(score.values), lead, style="bold" if is_best else None)
    title = Text(f"{tuned.name}, {tuned.measured}", style="bold")
    return Group(title, "", table, "", *verdict(tuned))


def verdict(tuned: ScoredTable) -> list[str]:
    """Whether the best point is better than the plain one by more than noise, and whether the grid ends too early."""
    best, plain, others = tuned.best, tuned.plain, len(tuned.scores) - 1
    if best is plain:
        said = [f"Nothing leads {plain.said}, the point that the others are compared with."]
    elif len(best.values) == 1:
        said = [
            f"{best.said} leads {plain.said} by {_signed(tuned, best)} on the only example, which says nothing about noise."
        ]
    else:
        noise = "more than noise" if tuned.is_better else "NOT more than noise"
        counted = f"chance {tuned.chance:.2g} that one of {others} leads so clearly, by sign flips over examples"
        said = [f"{best.said} leads {plain.said} by {_signed(tuned, best)} (paired): {noise} ({counted})."]
    for name, values in _varying(tuned).items():
        if best.parameters[name] == values[-1]:
            said.append(f"{name}={values[-1]:g} is the largest that was tried; larger ones may be better.")
    return said


def tuning_figure(tuned: ScoredTable, width: float) -> Figure:
    """The heatmap: the first parameter downwards, the second to the right.

    Raises InputError if more than two parameters vary, or the width is too small.
    """
    varying = _varying(tuned)
    if len(varying) > 2:
        raise InputError(
            f"figure: a heatmap shows two parameters, and {', '.join(varying)} have several values; print the table, or "
            "tune with one value for the others"
        )
    if width < 2 * NARROWEST:
        raise InputError(f"figure: width must be at least {2 * NARROWEST} inches, got {width}")
    title = "\n".join(
        line
        for text in (f"{tuned.name}: {tuned.metric}, {tuned.measured}", verdict(tuned)[0])
        for line in sentence(text, (width - LABELS) * POINTS, HEADING)
    )
    (vertical, down), (horizontal, across) = [("", [0.0]), ("", [0.0]), *varying.items()][-2:]
    height = MARGIN + LINE * len(title.splitlines()) + CELL * len(down)
    figure = Figure(figsize=(width, height), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    places = {
        (down.index(score.parameters.get(vertical, 0.0)), across.index(score.parameters.get(horizontal, 0.0))): score
        for score in tuned.scores
    }
    _draw_cells(axes, tuned, places, torch.zeros(len(down), len(across)))
    for values, name, axis in ((down, vertical, axes.yaxis), (across, horizontal, axes.xaxis)):
        axis.set_ticks(range(len(values)), [f"{value:g}" if name else "" for value in values], fontsize=8, color=BLACK)
        axis.set_label_text(name, fontsize=8)
        axis.set_tick_params(length=0)
    axes.spines[:].set(color=EDGE, linewidth=0.6)
    axes.set_title(title, fontproperties=HEADING.properties(title), loc="left", parse_math=False)
    figure.supxlabel(f"white: as {tuned.plain.said}; red: better, blue: worse; framed: the best", fontsize=7, color=MUTED)
    return figure


def _draw_cells(axes: Axes, tuned: ScoredTable, places: Mapping[tuple[int, int], Score], shares: Tensor) -> None:
    """Draws colours and numbers. Writes each lead, as a share of the largest, into the matrix `shares` [rows, columns]."""
    largest = max(abs(score.mean - tuned.plain.mean) for score in tuned.scores) or 1.0
    for (row, column), score in places.items():
        shares[row, column] = share = (score.mean - tuned.plain.mean) / largest
        axes.text(column, row, written(score.values), ha="center", va="center", fontsize=7, color=ink(LIGHT.colour(share)))
        if score is tuned.best:
            corner = (column - 0.5, row - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor=BLACK, linewidth=2, clip_on=False))
    axes.imshow(LIGHT.image(shares).numpy(), aspect="auto")


def _varying(tuned: ScoredTable) -> dict[str, list[float]]:
    """The parameters that have several values, with these values in ascending order."""
    values = {name: sorted({s.parameters[name] for s in tuned.scores}) for name in tuned.plain.parameters}
    return {name: found for name, found in values.items() if len(found) > 1}


def _signed(tuned: ScoredTable, score: Score) -> str:
    lead = tuned.lead(score)
    return written(lead) if math.copysign(1, float(lead.mean())) < 0 else f"+{written(lead)}"
