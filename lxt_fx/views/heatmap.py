"""The heatmap as a matplotlib figure. It does not use pyplot, so no global state changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lxt_fx.base.errors import InputError
from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.panels import Panel
from lxt_fx.views.typeset import POINTS, Align, Placed, Type, in_lines, sentence, write
from lxt_fx.views.view import Cell, Facts

MARGIN, GAP, LEGEND, BAR = 8.0, 10.0, 36.0, 110.0
"""In points: around the figure, between two pictures, the height of the legend and the length of its colour bar."""

LINE, HEADING_LINE, SMALL_LINE = 18.0, 14.0, 10.0
"""In points: from one line of tokens, of the heading and of the footnote to the next."""

HEADING, BODY, SMALL = Type(9.5, bold=True), Type(10.0), Type(7.5)
NARROWEST, TALLEST = 2.0, 200.0
"""In inches: the narrowest figure that fits the colour bar, and the tallest that can be opened (Agg draws at most 65536
pixels)."""

BLACK, MUTED, EDGE = "#000000", "#5c6470", "#c9ced6"
DOTS = 200
"""Dots per inch of a PNG."""


def token_figure(cells: Sequence[Cell], facts: Facts, width: float) -> Figure:
    """The tokens as text in coloured boxes, `width` inches wide, with the explained number and a colour bar.

    Raises InputError for a text too long for one picture, or a width too small.
    """
    body = in_lines(cells, width * POINTS - 2 * MARGIN, BODY)
    figure, top = _sheet(width, facts, (1 + body[-1].line) * LINE)
    for placed in body:
        _box(figure, placed, top - (1 + placed.line) * LINE)
    _legend(figure, facts)
    return figure


def image_figure(panels: Sequence[Panel], facts: Facts, width: float) -> Figure:
    """The pictures side by side, `width` inches wide, with the explained number and a colour bar."""
    across = (width * POINTS - 2 * MARGIN - GAP * (len(panels) - 1)) / len(panels)
    rows, columns, _ = panels[0].pixels.shape
    down = across * rows / columns
    figure, top = _sheet(width, facts, down + LINE)
    for index, panel in enumerate(panels):
        x, y = MARGIN + index * (across + GAP), top - LINE - down
        axes = figure.add_axes(_place(figure, x, y, across, down))
        axes.imshow(panel.pixels.numpy(), interpolation="nearest", aspect="auto")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color=EDGE, linewidth=0.6)
        write(figure, x, y + down + 4, panel.title, SMALL, MUTED)
    _legend(figure, facts)
    return figure


def save(figure: Figure, path: str | Path, kind: Literal["png", "pdf"]) -> None:
    """Writes the figure as a file of this kind; text in a PDF stays text."""
    with matplotlib.rc_context({"pdf.fonttype": 42, "text.usetex": False, "savefig.bbox": None}):
        canvas = FigureCanvasAgg(figure) if kind == "png" else FigureCanvasPdf(figure)
        canvas.print_figure(path, format=kind, dpi=DOTS, facecolor="white")


def _sheet(width: float, facts: Facts, down: float) -> tuple[Figure, float]:
    """A figure with the explained number at its top and `down` points of space below that, and the height at which the
    space starts."""
    if width < NARROWEST:
        raise InputError(f"the figure is {width:.3g} inches wide, which is too narrow; give at least {NARROWEST:.0f}")
    lines = sentence(f"{facts.explained} = {facts.written_value()}", width * POINTS - 2 * MARGIN, HEADING)
    below = len(_lines_below(width, facts)) * SMALL_LINE
    height = 2 * MARGIN + len(lines) * HEADING_LINE + down + LEGEND + below
    if height > TALLEST * POINTS:
        raise InputError(
            f"the figure would be {height / POINTS:.0f} inches tall, and at most {TALLEST:.0f} can be drawn; use "
            "to_html for so long a text"
        )
    figure = Figure(figsize=(width, height / POINTS), facecolor="white")
    top = height - MARGIN
    for line in lines:
        write(figure, MARGIN, top - 10, line, HEADING, BLACK)
        top -= HEADING_LINE
    return figure, top - 4


def _box(figure: Figure, placed: Placed, y: float) -> None:
    background = LIGHT.colour(placed.cell.share)
    x, up, across, high = _place(figure, MARGIN + placed.x, y + 1, placed.width - 0.4, LINE - 3)
    box = Rectangle((x, up), across, high, facecolor=background, linewidth=0, transform=figure.transFigure)
    figure.add_artist(box)
    write(figure, MARGIN + placed.text_x(), y + 5.5, placed.text, placed.type, ink(background))


def _lines_below(width: float, facts: Facts) -> tuple[str, ...]:
    """The lines of the footnote below the colour bar; none if it fits beside the bar."""
    inside = width * POINTS - 2 * MARGIN
    if SMALL.width(facts.footnote()) <= inside - BAR - 2 * GAP:
        return ()
    return sentence(facts.footnote(), inside, SMALL)


def _legend(figure: Figure, facts: Facts) -> None:
    width = float(figure.get_size_inches()[0])
    below = _lines_below(width, facts)
    up = MARGIN + 10 + len(below) * SMALL_LINE
    axes = figure.add_axes(_place(figure, MARGIN, up, BAR, 6))
    axes.imshow([[tuple(bytes.fromhex(c[1:])) for c in LIGHT.gradient(255)]], aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=EDGE, linewidth=0.6)
    aligned: tuple[Align, ...] = ("left", "center", "right")
    for part, label, align in zip((0.0, 0.5, 1.0), facts.ticks(), aligned, strict=True):
        write(figure, MARGIN + part * BAR, up - 9, label, SMALL, MUTED, align)
    for line, text in enumerate(below):
        write(figure, MARGIN, up - 10 - (line + 1) * SMALL_LINE, text, SMALL, MUTED)
    if not below:
        write(figure, width * POINTS - MARGIN, up - 1, facts.footnote(), SMALL, MUTED, "right")


def _place(figure: Figure, x: float, y: float, across: float, down: float) -> tuple[float, float, float, float]:
    """A rectangle given in points, as fractions of the figure."""
    width, height = (float(side) * POINTS for side in figure.get_size_inches())
    return x / width, y / height, across / width, down / height
