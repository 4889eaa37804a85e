"""The heatmap as a matplotlib figure. It does not use pyplot, so no global state changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lxt_fx.base.errors import InputError
from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.matrix_figure import draw_matrix, label_room, matrix_size
from lxt_fx.views.sheet import Bars, Heading, Matrix, Pictures, Section, Sheet, Tokens, Track, binned
from lxt_fx.views.typeset import POINTS, Align, Placed, Type, drawable, in_lines, sentence, write
from lxt_fx.views.view import number

MARGIN, GAP, LEGEND, BAR = 8.0, 10.0, 36.0, 110.0
"""In points: around the figure, between two pictures, the height of the legend and the length of its colour bar."""

LINE, HEADING_LINE, SMALL_LINE, TITLE, TRACK = 18.0, 14.0, 10.0, 16.0, 80.0
"""In points: from one line of tokens, of the heading and of the footnote to the next; the height of a title of one line,
and of a sound."""

HEADING, BODY, SMALL = Type(9.5, bold=True), Type(10.0), Type(7.5)
NARROWEST, TALLEST = 2.0, 200.0
"""In inches: the narrowest figure that fits the colour bar, and the tallest that can be opened (Agg draws at most 65536
pixels)."""

BLACK, MUTED, EDGE = "#000000", "#5c6470", "#c9ced6"
DOTS = 200
"""Dots per inch of a PNG."""

STEPS, NAME = 400, 28
"""The most bars of a sound, and the most characters of a name."""


def sheet_figure(sheet: Sheet, width: float) -> Figure:
    """The sheet as a figure `width` inches wide (wider if a matrix needs it): the explained number, the sections one below
    another, a colour bar, the accounts.

    Raises InputError for what is too long for one picture, or a width too small.
    """
    matrices = [section for section in sheet.sections if isinstance(section, Matrix)]
    across = max([width, *((matrix_size(section)[0] + 2 * MARGIN) / POINTS for section in matrices)])
    blocks = [_block(section, across * POINTS - 2 * MARGIN) for section in sheet.sections]
    figure, top = _sheet(across, sheet, sum(block.high for block in blocks))
    for block in blocks:
        for at, line in enumerate(block.title):
            write(figure, MARGIN, top - 10 - at * SMALL_LINE, line, SMALL, MUTED)
        block.draw(figure, top - _room(block.title))
        top -= block.high
    _legend(figure, sheet)
    return figure


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A section of a figure: its height in points, title included, the lines of its title, and what draws it below a
    height."""

    high: float
    title: tuple[str, ...]
    draw: Callable[[Figure, float], None]


def _block(section: Section, inside: float) -> _Block:
    if isinstance(section, Heading):
        lines = sentence(section.text, inside, HEADING)
        return _Block(8 + len(lines) * HEADING_LINE, (), lambda figure, top: _write_lines(figure, lines, top - 8))
    if isinstance(section, Tokens):
        down, draw = _tokens(section, inside)
    elif isinstance(section, Pictures):
        down, draw = _pictures(section, inside)
    elif isinstance(section, Track):
        down, draw = TRACK + LINE, lambda figure, top: _track(figure, section, top, inside)
    elif isinstance(section, Bars):
        down, draw = LINE + SMALL_LINE * len(section.bars), lambda figure, top: _bars(figure, section, top, inside)
    else:
        down, draw = _matrix(section)
    title = sentence(section.title, inside, SMALL) if section.title else ()
    return _Block(down + _room(title), title, draw)


def _room(title: Sequence[str]) -> float:
    """The height of the title of a section."""
    return TITLE + (len(title) - 1) * SMALL_LINE if title else 0.0


def _write_lines(figure: Figure, lines: Sequence[str], top: float) -> None:
    for at, line in enumerate(lines):
        write(figure, MARGIN, top - 10 - at * HEADING_LINE, line, HEADING, BLACK)


def _tokens(section: Tokens, inside: float) -> tuple[float, Callable[[Figure, float], None]]:
    body = in_lines(section.cells, inside, BODY)

    def draw(figure: Figure, top: float) -> None:
        for placed in body:
            _box(figure, placed, top - (1 + placed.line) * LINE)

    return (1 + body[-1].line) * LINE, draw


def _pictures(section: Pictures, inside: float) -> tuple[float, Callable[[Figure, float], None]]:
    """The pictures side by side."""
    rows, columns, _ = section.panels[0].pixels.shape
    across = (inside - GAP * (len(section.panels) - 1)) / len(section.panels)
    down = across * rows / columns

    def draw(figure: Figure, top: float) -> None:
        for index, panel in enumerate(section.panels):
            x, y = MARGIN + index * (across + GAP), top - LINE - down
            axes = figure.add_axes(_place(figure, x, y, across, down))
            axes.imshow(panel.pixels.numpy(), interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(color=EDGE, linewidth=0.6)
            write(figure, x, y + down + 4, panel.title, SMALL, MUTED)

    return down + LINE + GAP / 2, draw


def _track(figure: Figure, track: Track, top: float, inside: float) -> None:
    """Bars of relevance along the time of a sound, over its loudness in grey."""
    axes = figure.add_axes(_place(figure, MARGIN, top - TRACK, inside, TRACK))
    sums, heights, size = track.bars(STEPS)
    shares_ = heights.tolist()
    step = size * track.step
    starts = [track.start + (at + 0.5) * step for at in range(len(sums))]
    if track.loudness is not None:
        loud = (binned(track.loudness, STEPS)[0] / size).tolist()
        axes.bar(
            starts, [2 * value for value in loud], step, bottom=[-value for value in loud], color="#e6e8ec", linewidth=0
        )
    colours = [LIGHT.positive if share > 0 else LIGHT.negative for share in shares_]
    axes.bar(starts, shares_, step, color=colours, linewidth=0)
    axes.axhline(0, color=MUTED, linewidth=0.4)
    axes.set(xlim=(track.start, track.start + len(track.relevance) * track.step), ylim=(-1.05, 1.05), yticks=[])
    axes.tick_params(axis="x", labelsize=6.5, colors=MUTED, length=2, width=0.5, pad=2)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:.3g} s")
    axes.spines[:].set(color=EDGE, linewidth=0.6)


def _bars(figure: Figure, section: Bars, top: float, inside: float) -> None:
    """Each number with its name, its relevance, and a bar to the left or right of the middle."""
    left, middle, half = MARGIN + inside * 0.42, MARGIN + inside * 0.72, inside * 0.28
    for at, (name, relevance) in enumerate(section.bars):
        y = top - 8 - at * SMALL_LINE
        share = relevance / section.largest if section.largest else 0.0
        shown = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
        write(figure, MARGIN, y, drawable(shown), SMALL, BLACK)
        write(figure, left, y, number(relevance), SMALL, MUTED, "right")
        start = middle + min(share, 0.0) * half
        x, up, across, high = _place(figure, start, y - 1, abs(share) * half, SMALL_LINE - 3)
        colour = LIGHT.colour(share)
        figure.add_artist(Rectangle((x, up), across, high, facecolor=colour, linewidth=0, transform=figure.transFigure))
    if section.left_out:
        y = top - 8 - len(section.bars) * SMALL_LINE
        write(figure, MARGIN, y, f"and {section.left_out} weaker ones", SMALL, MUTED)


def _matrix(section: Matrix) -> tuple[float, Callable[[Figure, float], None]]:
    (across, down), (left, above) = matrix_size(section), label_room(section)

    def draw(figure: Figure, top: float) -> None:
        inner = _place(figure, MARGIN + left, top - down, across - left, down - above)
        draw_matrix(figure.add_axes(inner), section)

    return down + GAP, draw


def save(figure: Figure, path: str | Path, kind: Literal["png", "pdf"]) -> None:
    """Writes the figure as a file of this kind; text in a PDF stays text."""
    with matplotlib.rc_context({"pdf.fonttype": 42, "text.usetex": False, "savefig.bbox": None}):
        canvas = FigureCanvasAgg(figure) if kind == "png" else FigureCanvasPdf(figure)
        canvas.print_figure(path, format=kind, dpi=DOTS, facecolor="white")


def _sheet(width: float, sheet: Sheet, down: float) -> tuple[Figure, float]:
    """A figure with the explained number at its top and `down` points of space below that, and the height at which the
    space starts."""
    if width < NARROWEST:
        raise InputError(f"the figure is {width:.3g} inches wide, which is too narrow; give at least {NARROWEST:.0f}")
    lines = sentence(sheet.facts.heading(), width * POINTS - 2 * MARGIN, HEADING)
    below = len(_lines_below(width, sheet)) * SMALL_LINE
    height = 2 * MARGIN + len(lines) * HEADING_LINE + down + LEGEND + below
    if height > TALLEST * POINTS:
        raise InputError(
            f"the figure would be {height / POINTS:.0f} inches tall, and at most {TALLEST:.0f} can be drawn; use "
            "to_html for so long a text"
        )
    figure = Figure(figsize=(width, height / POINTS), facecolor="white")
    top = height - MARGIN
    _write_lines(figure, lines, top)
    return figure, top - len(lines) * HEADING_LINE - 4


def _box(figure: Figure, placed: Placed, y: float) -> None:
    background = LIGHT.colour(placed.cell.share)
    x, up, across, high = _place(figure, MARGIN + placed.x, y + 1, placed.width - 0.4, LINE - 3)
    box = Rectangle((x, up), across, high, facecolor=background, linewidth=0, transform=figure.transFigure)
    figure.add_artist(box)
    write(figure, MARGIN + placed.text_x(), y + 5.5, placed.text, placed.type, ink(background))


def _lines_below(width: float, sheet: Sheet) -> tuple[str, ...]:
    """The lines below the colour bar: the footnote if it does not fit beside the bar, and the accounts."""
    inside, footnote = width * POINTS - 2 * MARGIN, sheet.facts.footnote()
    beside = _fits_beside(width, footnote)
    return tuple(
        line for note in (*(() if beside else (footnote,)), *sheet.notes) for line in sentence(note, inside, SMALL)
    )


def _fits_beside(width: float, footnote: str) -> bool:
    return SMALL.width(footnote) <= width * POINTS - 2 * MARGIN - BAR - 2 * GAP


def _legend(figure: Figure, sheet: Sheet) -> None:
    width = float(figure.get_size_inches()[0])
    below, facts = _lines_below(width, sheet), sheet.facts
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
    if _fits_beside(width, facts.footnote()):
        write(figure, width * POINTS - MARGIN, up - 1, facts.footnote(), SMALL, MUTED, "right")


def _place(figure: Figure, x: float, y: float, across: float, down: float) -> tuple[float, float, float, float]:
    """A rectangle given in points, as fractions of the figure."""
    width, height = (float(side) * POINTS for side in figure.get_size_inches())
    return x / width, y / height, across / width, down / height
