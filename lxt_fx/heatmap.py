"""The heatmap as a figure, drawn by matplotlib without pyplot, so that no global state changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lxt_fx.colour import LIGHT, ink
from lxt_fx.errors import InputError
from lxt_fx.panels import Panel
from lxt_fx.typeset import POINTS, Align, Placed, Type, flow, sentence, write
from lxt_fx.view import Cell, Facts

MARGIN, GAP, LEGEND = 8.0, 10.0, 36.0
"""In points: around the figure, between two pictures, and the height of the colour bar."""

LINE, HEADING_LINE = 18.0, 14.0
"""In points: from one line of tokens, and of the heading, to the next."""

HEADING, BODY, SMALL = Type(9.5, bold=True), Type(10.0), Type(7.5)
TALLEST = 200.0
"""Inches: a picture much taller passes what Agg draws and what a viewer opens."""

BLACK, MUTED, EDGE = "#000000", "#5c6470", "#c9ced6"
DOTS = 200
"""Dots per inch of a PNG."""


def token_figure(cells: Sequence[Cell], facts: Facts, width: float) -> Figure:
    """The tokens as flowing text in coloured boxes, `width` inches wide, with what was explained and a colour bar.

    Raises InputError for a text too long for one picture.
    """
    body = flow(cells, width * POINTS - 2 * MARGIN, BODY)
    figure, top = _sheet(width, facts, (1 + body[-1].line) * LINE)
    for placed in body:
        _box(figure, placed, top - (1 + placed.line) * LINE)
    _colour_bar(figure, facts)
    return figure


def image_figure(panels: Sequence[Panel], facts: Facts, width: float) -> Figure:
    """The pictures side by side, `width` inches wide, with what was explained and a colour bar."""
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
    _colour_bar(figure, facts)
    return figure


def save(figure: Figure, path: str | Path, kind: Literal["png", "pdf"]) -> None:
    """Writes the figure as a file of this kind; text in a PDF stays text."""
    with matplotlib.rc_context({"pdf.fonttype": 42, "text.usetex": False, "savefig.bbox": None}):
        canvas = FigureCanvasAgg(figure) if kind == "png" else FigureCanvasPdf(figure)
        canvas.print_figure(path, format=kind, dpi=DOTS, facecolor="white")


def _sheet(width: float, facts: Facts, down: float) -> tuple[Figure, float]:
    """A figure with what was explained at its top, `down` points of room below that, and the height where these
    start."""
    lines = sentence(f"{facts.explained} = {facts.value:.4g}", width * POINTS - 2 * MARGIN, HEADING)
    height = 2 * MARGIN + len(lines) * HEADING_LINE + down + LEGEND
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


def _colour_bar(figure: Figure, facts: Facts) -> None:
    left, middle, right = facts.ticks()
    across, high, up = 110.0, 6.0, MARGIN + 10
    axes = figure.add_axes(_place(figure, MARGIN, up, across, high))
    axes.imshow([[tuple(bytes.fromhex(c[1:])) for c in LIGHT.gradient(255)]], aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=EDGE, linewidth=0.6)
    ends: tuple[tuple[float, str, Align], ...] = (
        (MARGIN, left, "left"),
        (MARGIN + across / 2, middle, "center"),
        (MARGIN + across, right, "right"),
    )
    for x, label, align in ends:
        write(figure, x, up - 9, label, SMALL, MUTED, align)
    end = float(figure.get_size_inches()[0]) * POINTS - MARGIN
    write(figure, end, up - 1, facts.footnote(), SMALL, MUTED, "right")


def _place(figure: Figure, x: float, y: float, across: float, down: float) -> tuple[float, float, float, float]:
    """A rectangle in points as fractions of the figure."""
    width, height = (float(side) * POINTS for side in figure.get_size_inches())
    return x / width, y / height, across / width, down / height
