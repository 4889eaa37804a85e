"""A sheet as matplotlib figures, a page each. They do not use pyplot, so no global state changes.

Signs are drawn by shape too, so that a grey print has them: a solid line below a token speaks for the explained number, a
dashed one against it, and a double edge goes beyond the end of the scale.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from lxt_fx.base.errors import InputError
from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.matrix_figure import draw_matrix, label_room, matrix_size, rows_between
from lxt_fx.views.scaling import MARKED
from lxt_fx.views.sheet import Bars, Heading, Matrix, Pictures, Section, Sheet, Tokens, Track, binned
from lxt_fx.views.typeset import POINTS, Align, Placed, Type, drawable, in_lines, sentence, write
from lxt_fx.views.view import number

MARGIN, GAP, LEGEND, BAR, WORD = 8.0, 10.0, 31.0, 110.0, 38.0
"""In points: around the figure, between two pictures, the height of the legend, the length of its colour bar, and the room
for "against" and "for" beside that."""

LINE, HEADING_LINE, SMALL_LINE, TITLE, TRACK = 19.0, 14.0, 10.0, 16.0, 80.0
"""In points: from one line of tokens, of the heading and of the footnote to the next; the height of a title of one line,
and of a sound."""

HEADING, BODY, SMALL = Type(9.5, bold=True), Type(10.0), Type(7.5)
NARROWEST, PAGE = 2.0, 11.0
"""In inches: the narrowest figure that fits the colour bar, and the height of a page."""

BLACK, MUTED, EDGE = "#000000", "#5c6470", "#c9ced6"

MARK, DOT = "drawn with a double edge", "In a square, a dot speaks against."
"""How what goes beyond the scale is drawn, and what speaks against where there is no room for a line."""

STEPS, NAME, MOST = 400, 28, 100
"""The most bars of a sound, characters of a name, and columns of a matrix."""


@dataclass(frozen=True, slots=True, eq=False)
class _Strip:
    """A piece of a figure that no page cuts: its height in points, and what draws it below a height. A title is `tied` to
    what stands below it."""

    high: float
    draw: Callable[[Figure, float], None]
    tied: bool = False


def sheet_figures(sheet: Sheet, width: float, tallest: float | None) -> list[Figure]:
    """The sheet as figures `width` inches wide (wider if a matrix needs it) and at most `tallest` inches tall (None: one
    figure, as tall as it needs to be): the explained number, the sections one below another, a colour bar; on the last one
    the notes.

    Raises InputError for a width too small.
    """
    if width < NARROWEST:
        raise InputError(f"the figure is {width:.3g} inches wide, which is too narrow; give at least {NARROWEST:.0f}")
    sections = [one.strongest(MOST) if isinstance(one, Matrix) else one for one in sheet.sections]
    matrices = [one for one in sections if isinstance(one, Matrix)]
    across = max([width, *((matrix_size(one)[0] + 2 * MARGIN) / POINTS for one in matrices)])
    inside = across * POINTS - 2 * MARGIN
    heading, notes = sentence(sheet.facts.heading(), inside, HEADING), _notes_below(across, sheet)
    always = 2 * MARGIN + (len(heading) + 1) * HEADING_LINE + LEGEND + len(_lines_below(across, sheet)) * SMALL_LINE
    room = None if tallest is None else tallest * POINTS - always
    strips = [strip for one in sections for strip in _strips(one, inside, room)]
    pages = _paged(strips, room, len(notes) * SMALL_LINE)
    return [_page(sheet, across, strips, (at + 1, len(pages))) for at, strips in enumerate(pages)]


def sheet_figure(sheet: Sheet, width: float) -> Figure:
    """The sheet as one figure, as tall as it needs to be."""
    return sheet_figures(sheet, width, None)[0]


def _paged(strips: Sequence[_Strip], room: float | None, at_end: float) -> list[list[_Strip]]:
    """The strips of each page of `room` points, where the last page has `at_end` points of notes too."""
    pages: list[list[_Strip]] = [[]]
    used = 0.0
    for at, strip in enumerate(strips):
        needed = strip.high + (strips[at + 1].high if strip.tied and at + 1 < len(strips) else 0.0)
        needed += at_end if at == len(strips) - 1 else 0.0
        if room is not None and pages[-1] and used + needed > room:
            pages.append([])
            used = 0.0
        pages[-1].append(strip)
        used += strip.high
    return pages


def _page(sheet: Sheet, width: float, strips: Sequence[_Strip], number: tuple[int, int]) -> Figure:
    at, count = number
    inside, last = width * POINTS - 2 * MARGIN, at == count
    heading = sentence(sheet.facts.heading() + (f"  ·  page {at} of {count}" if count > 1 else ""), inside, HEADING)
    below = (*_lines_below(width, sheet), *(_notes_below(width, sheet) if last else ()))
    down = sum(strip.high for strip in strips)
    height = 2 * MARGIN + len(heading) * HEADING_LINE + 4 + down + LEGEND + len(below) * SMALL_LINE
    figure = Figure(figsize=(width, height / POINTS), facecolor="white")
    _write_lines(figure, heading, height - MARGIN)
    top = height - MARGIN - len(heading) * HEADING_LINE - 4
    for strip in strips:
        strip.draw(figure, top)
        top -= strip.high
    _legend(figure, sheet, below)
    return figure


def _strips(section: Section, inside: float, room: float | None) -> list[_Strip]:
    """The title of a section, and what stands below it."""
    if isinstance(section, Heading):
        lines = sentence(section.text, inside, HEADING)
        return [_Strip(8 + len(lines) * HEADING_LINE, lambda figure, top: _write_lines(figure, lines, top - 8), True)]
    title = sentence(section.title, inside, SMALL) if section.title else ()
    high = TITLE + (len(title) - 1) * SMALL_LINE
    strips = [_Strip(high, lambda figure, top: _write_title(figure, title, top), True)] if title else []
    if isinstance(section, Tokens):
        return strips + _tokens(section, inside)
    if isinstance(section, Pictures):
        return [*strips, _pictures(section, inside)]
    if isinstance(section, Track):
        return [*strips, _Strip(TRACK + LINE, lambda figure, top: _track(figure, section, top, inside))]
    if isinstance(section, Bars):
        return [*strips, *_bars(section, inside), _Strip(LINE - 8, lambda figure, top: None)]
    return strips + _matrix(section, room)


def _write_title(figure: Figure, title: Sequence[str], top: float) -> None:
    for at, line in enumerate(title):
        write(figure, MARGIN, top - 10 - at * SMALL_LINE, line, SMALL, MUTED)


def _write_lines(figure: Figure, lines: Sequence[str], top: float) -> None:
    for at, line in enumerate(lines):
        write(figure, MARGIN, top - 10 - at * HEADING_LINE, line, HEADING, BLACK)


def _tokens(section: Tokens, inside: float) -> list[_Strip]:
    """A strip for each line."""
    lines: list[list[Placed]] = []
    for placed in in_lines(section.cells, inside, BODY):
        lines += [[] for _ in range(placed.line + 1 - len(lines))]
        lines[placed.line].append(placed)
    return [_Strip(LINE, lambda figure, top, line=line: _line(figure, line, top)) for line in lines]  # type: ignore[misc]


def _line(figure: Figure, line: Sequence[Placed], top: float) -> None:
    for placed in line:
        _box(figure, placed, top - LINE)


def _pictures(section: Pictures, inside: float) -> _Strip:
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

    return _Strip(down + LINE + GAP / 2, draw)


def _track(figure: Figure, track: Track, top: float, inside: float) -> None:
    """Bars of relevance along the time of a sound, over its loudness in grey. A bar beyond the scale has a double end."""
    axes = figure.add_axes(_place(figure, MARGIN, top - TRACK, inside, TRACK))
    sums, scale, size = track.bars(STEPS)
    shares, beyond = scale.shares(sums).tolist(), scale.goes_beyond(sums).tolist()
    step = size * track.step
    starts = [track.start + (at + 0.5) * step for at in range(len(sums))]
    if track.loudness is not None:
        loud = (binned(track.loudness, STEPS)[0] / size).tolist()
        axes.bar(
            starts, [2 * value for value in loud], step, bottom=[-value for value in loud], color="#e6e8ec", linewidth=0
        )
    colours = [LIGHT.positive if share > 0 else LIGHT.negative for share in shares]
    axes.bar(starts, shares, step, color=colours, linewidth=0)
    ends = [(start, share) for start, share, far in zip(starts, shares, beyond, strict=True) if far]
    axes.bar([x for x, _ in ends], [0.03] * len(ends), step, bottom=[0.9 * y - 0.015 for _, y in ends], color="white")
    axes.axhline(0, color=MUTED, linewidth=0.4)
    axes.set(xlim=(track.start, track.start + len(track.relevance) * track.step), ylim=(-1.05, 1.05), yticks=[])
    axes.tick_params(axis="x", labelsize=6.5, colors=MUTED, length=2, width=0.5, pad=2)
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:.3g} s")
    axes.spines[:].set(color=EDGE, linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6, prune="both"))
    for y, said in ((0.8, "for"), (-0.95, "against")):
        axes.text(0.004, (y + 1.05) / 2.1, said, transform=axes.transAxes, fontsize=6.5, color=MUTED)


def _bars(section: Bars, inside: float) -> list[_Strip]:
    """Each number with its name, its relevance, and a bar to the left or right of the middle; its end is white where it
    goes beyond the scale."""
    left, middle, half = MARGIN + inside * 0.42, MARGIN + inside * 0.72, inside * 0.28

    def draw(figure: Figure, top: float, name: str, relevance: float, share: float, beyond: bool) -> None:
        y = top - 8
        shown = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
        write(figure, MARGIN, y, drawable(shown), SMALL, BLACK)
        write(figure, left, y, number(relevance), SMALL, MUTED, "right")
        colour = LIGHT.positive if share > 0 else LIGHT.negative
        _fill(figure, middle + min(share, 0.0) * half, y - 1, abs(share) * half, SMALL_LINE - 3, colour)
        if beyond:
            _fill(figure, middle + share * (half - 4) - 1, y - 1, 2, SMALL_LINE - 3, "#ffffff")

    strips = []
    for name, relevance in section.bars:
        share, beyond = section.share(relevance)
        one = (name, relevance, share, beyond)
        strips.append(_Strip(SMALL_LINE, lambda figure, top, one=one: draw(figure, top, *one)))  # type: ignore[misc]
    if section.left_out:
        said = f"and {section.left_out} weaker ones"
        strips.append(_Strip(SMALL_LINE, lambda figure, top: write(figure, MARGIN, top - 8, said, SMALL, MUTED)))
    return strips


def _matrix(section: Matrix, room: float | None) -> list[_Strip]:
    """As many of its rows below one another as fit a page, with the labels of the columns above them."""
    (across, _), (left, above) = matrix_size(section), label_room(section)
    strips = []
    for piece in rows_between(section, None if room is None else room - GAP):
        down = matrix_size(piece)[1]

        def draw(figure: Figure, top: float, piece: Matrix = piece, down: float = down) -> None:
            inner = _place(figure, MARGIN + left, top - down, across - left, down - above)
            draw_matrix(figure.add_axes(inner), piece)

        strips.append(_Strip(down + GAP, draw))
    return strips


def _box(figure: Figure, placed: Placed, y: float) -> None:
    """A token in its colour, with a thin edge; the line of its sign stands below it."""
    cell = placed.cell
    background = LIGHT.colour(cell.share)
    x, up, across, high = MARGIN + placed.x, y + 3, placed.width - 0.4, LINE - 5
    place = _place(figure, x + 0.2, up, across - 0.4, high)
    edge = BLACK if cell.beyond else EDGE
    _frame(figure, place, background, 0.7 if cell.beyond else 0.4, edge, hatch="//////" if cell.muted else None)
    if cell.beyond:
        _frame(figure, _place(figure, x + 1.7, up + 1.5, across - 3.4, high - 3), "none", 0.6, ink(background))
    if abs(cell.share) >= MARKED:
        _sign(figure, x + 0.6, y + 1.3, across - 1.2, cell.share > 0)
    write(figure, MARGIN + placed.text_x(), y + 6.8, placed.text, placed.type, ink(background))


def _frame(
    figure: Figure, place: tuple[float, float, float, float], colour: str, width: float, edge: str, hatch: str | None = None
) -> None:
    x, y, across, high = place
    figure.add_artist(
        Rectangle(
            (x, y), across, high, facecolor=colour, edgecolor=edge, linewidth=width, hatch=hatch,
            transform=figure.transFigure,
        )  # fmt: skip
    )


def _fill(figure: Figure, x: float, y: float, across: float, high: float, colour: str) -> None:
    left, up, wide, tall = _place(figure, x, y, across, high)
    figure.add_artist(Rectangle((left, up), wide, tall, facecolor=colour, linewidth=0, transform=figure.transFigure))


def _sign(figure: Figure, x: float, y: float, across: float, is_for: bool) -> None:
    """The line below what speaks for (solid) or against (dashed)."""
    left, up, wide, _ = _place(figure, x, y, across, 0)
    colour = LIGHT.positive if is_for else LIGHT.negative
    line = Line2D([left, left + wide], [up, up], color=colour, linewidth=1.1, solid_capstyle="butt", dash_capstyle="butt")
    line.set(transform=figure.transFigure, linestyle="-" if is_for else (0, (2.2, 1.4)))
    figure.add_artist(line)


def _lines_below(width: float, sheet: Sheet) -> tuple[str, ...]:
    """The lines below the colour bar of each page: the footnote if it does not fit beside the bar, and where the colours
    end."""
    facts = sheet.facts
    beside = _fits_beside(width, facts.footnote())
    texts = ("" if beside else facts.footnote(), facts.scale_said(MARK), DOT if sheet.dotted else "")
    return _small_lines(width, list(filter(None, texts)))


def _notes_below(width: float, sheet: Sheet) -> tuple[str, ...]:
    return _small_lines(width, sheet.notes)


def _small_lines(width: float, texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(line for text in texts for line in sentence(text, width * POINTS - 2 * MARGIN, SMALL))


def _fits_beside(width: float, footnote: str) -> bool:
    return SMALL.width(footnote) <= width * POINTS - 2 * MARGIN - BAR - 2 * WORD - GAP


def _legend(figure: Figure, sheet: Sheet, below: Sequence[str]) -> None:
    width, facts = float(figure.get_size_inches()[0]), sheet.facts
    up, left = MARGIN + 10 + len(below) * SMALL_LINE, MARGIN + WORD
    bar = min(BAR, width * POINTS - 2 * MARGIN - 2 * WORD)
    axes = figure.add_axes(_place(figure, left, up, bar, 6))
    axes.imshow([[tuple(bytes.fromhex(c[1:])) for c in LIGHT.gradient(255)]], aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color=EDGE, linewidth=0.6)
    against, agree = SMALL.width("against"), SMALL.width("for")
    write(figure, left - 5, up, "against", SMALL, MUTED, "right")
    _sign(figure, left - 5 - against, up - 3, against, False)
    write(figure, left + bar + 5, up, "for", SMALL, MUTED)
    _sign(figure, left + bar + 5, up - 3, agree, True)
    aligned: tuple[Align, ...] = ("left", "center", "right")
    for part, label, align in zip((0.0, 0.5, 1.0), facts.ticks(), aligned, strict=True):
        if bar == BAR or part != 0.5:
            write(figure, left + part * bar, up - 9, label, SMALL, MUTED, align)
    for line, text in enumerate(below):
        write(figure, MARGIN, up - 12 - (line + 1) * SMALL_LINE, text, SMALL, MUTED)
    if _fits_beside(width, facts.footnote()):
        write(figure, width * POINTS - MARGIN, up, facts.footnote(), SMALL, MUTED, "right")


def _place(figure: Figure, x: float, y: float, across: float, down: float) -> tuple[float, float, float, float]:
    """A rectangle given in points, as fractions of the figure."""
    width, height = (float(side) * POINTS for side in figure.get_size_inches())
    return x / width, y / height, across / width, down / height
