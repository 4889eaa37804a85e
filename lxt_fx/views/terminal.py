"""The terminal view of a sheet, by rich."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderResult, RichCast
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.matrix import MatrixTable
from lxt_fx.views.sheet import Bars, Heading, Matrix, Pictures, Section, Sheet, Tokens, Track, seconds_of
from lxt_fx.views.view import TIE, Cell, Facts, number, shares, summed

BAR, IMAGE, SMALL, TRACK, PAGE = 32, 48, 24, 72, 124
"""Widths in characters; a picture of few squares is made about `SMALL` wide."""

STRONGEST = 5
"""How many of the strongest places are listed."""

STEPS, NAME = " ▁▂▃▄▅▆▇█", 30
"""Bars of one character, from nothing to the largest; the most characters of a name."""


def as_text(view: ConsoleRenderable | RichCast) -> str:
    """The view as a string: coloured where standard output is a terminal, plain where it is a file or a pipe."""
    console = Console(force_jupyter=False)
    with console.capture() as captured:
        console.print(view)
    return captured.get().rstrip("\n")


def plain(view: RenderableType, width: int = PAGE) -> str:
    """The view as plain text of this width, whatever the terminal."""
    console = Console(width=width, file=StringIO(), color_system=None, force_jupyter=False, highlight=False)
    with console.capture() as captured:
        console.print(view)
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def sheet_view(sheet: Sheet) -> RenderableType:
    """The explained number, the sections, the colour bar, the strongest places, the accounts."""
    found: list[RenderableType] = [_Wrapped(sheet.facts.heading(), "bold"), ""]
    for section in sheet.sections:
        title = section.text if isinstance(section, Heading) else section.title
        found += [_Wrapped(title, "bold" if isinstance(section, Heading) else "dim")] if title else []
        found += [*_section(section), ""]
    found.append(_Legend(sheet.facts))
    if sheet.top:
        found += ["", _strongest(sheet)]
    for note in sheet.notes:
        found += ["", _Wrapped(note)]
    return Group(*found)


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """A sentence in lines that do not break where words are tied to one another."""

    text: str
    style: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = textwrap.wrap(self.text, options.max_width, break_on_hyphens=False)
        yield Text("\n".join(lines).replace(TIE, " "), style=self.style)


def _section(section: Section) -> list[RenderableType]:
    if isinstance(section, Tokens):
        return [_text(section.cells)]
    if isinstance(section, Pictures):
        return [_Picture(section.relevance, section.largest)]
    if isinstance(section, Track):
        return [_track(section)]
    if isinstance(section, Bars):
        return [_bars(section)]
    return [MatrixTable(section)] if isinstance(section, Matrix) else []


def _text(cells: Sequence[Cell]) -> Text:
    text = Text()
    for cell in cells:
        text.append(" " if cell.gap else "")
        text.append(cell.text, style=_style(cell.share))
        text.append("\n" if cell.ends_line else "")
    return text


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """The squares of a picture, `relevance` [rows, columns]. One that is too wide for the terminal is shown by the sums of
    so many squares that it fits, and then the strongest sum has the strongest colour. Without colours each is a number."""

    relevance: Tensor
    largest: float

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        coloured = console.color_system is not None
        most = max(1, min(options.max_width, IMAGE) if coloured else min(options.max_width // 3, SMALL))
        side = math.ceil(self.relevance.shape[1] / most)
        squares = summed(self.relevance, side, side).double()
        largest = self.largest if side == 1 else float(squares.abs().max())
        yield _half_blocks(shares(squares, largest)) if coloured else _digits(squares, largest)


def _half_blocks(share: Tensor) -> Text:
    """Two squares in each character, one above the other."""
    wide = max(1, SMALL // share.shape[1])
    colours = LIGHT.image(share.float().repeat_interleave(wide, 0).repeat_interleave(wide, 1)).tolist()
    lines = []
    for upper, lower in zip_longest(colours[::2], colours[1::2]):
        line = Text()
        for column, above in enumerate(upper):
            below = f" on rgb({_rgb(lower[column])})" if lower else ""
            line.append("▀", style=f"rgb({_rgb(above)}){below}")
        lines.append(line)
    return Text("\n").join(lines)


def _digits(squares: Tensor, largest: float) -> Text:
    """Each square as a digit with its sign, the largest as 9."""
    lines = [
        "".join(f"{f'{digit:+d}' if digit else '·':>3}" for digit in row).replace("-", "−")
        for row in (shares(squares, largest) * 9).round().int().tolist()
    ]
    return Text("\n".join([*lines, f"9 stands for {number(largest).lstrip('+')}"]))


def _track(track: Track) -> Text:
    """A bar for each bin of time, as high as its relevance is strong and in its colour; below it, the time."""
    sums, heights, _ = track.bars(TRACK)
    bars, signs = Text(), Text()
    for share in heights.tolist():
        height = min(8, math.ceil(abs(share) * 8)) if abs(share) > 1e-3 else 0
        bars.append(STEPS[height], style=LIGHT.positive if share > 0 else LIGHT.negative)
        signs.append(" " if height == 0 else "+" if share > 0 else "−", style="dim")
    end = seconds_of(track, 1, len(track.relevance))
    first = seconds_of(track, 0)
    axis = Text(first + end.rjust(max(len(sums) - len(first), len(end) + 1)), style="dim")
    return Text("\n").join([bars, signs, axis])


def _bars(section: Bars) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for name, relevance in section.bars:
        share = relevance / section.largest if section.largest else 0.0
        length = round(BAR * abs(share) / 2)
        left, right = ("█" * length if share < 0 else ""), ("█" * length if share > 0 else "")
        bar = Text.assemble((left.rjust(BAR // 2), LIGHT.negative), ("│", "dim"), (right.ljust(BAR // 2), LIGHT.positive))
        shown = name if len(name) <= NAME else f"{name[: NAME - 1]}…"
        table.add_row(Text(number(relevance), justify="right"), Text(shown), bar)
    if section.left_out:
        table.add_row("", Text(f"and {section.left_out} weaker ones", style="dim"), "")
    return table


def _strongest(sheet: Sheet) -> Table:
    strongest = Table.grid(padding=(0, 2))
    for relevance, name, where in sheet.top[:STRONGEST]:
        share = relevance / sheet.facts.largest if sheet.facts.largest else 0.0
        strongest.add_row(
            Text(number(relevance), justify="right"),
            Text(name.strip(" ") or "␣", style=_style(share)),
            Text(where, style="dim"),
        )
    return strongest


def _rgb(channels: Sequence[int]) -> str:
    return ",".join(map(str, channels))


def _style(share: float) -> str:
    background = LIGHT.colour(share)
    return f"{ink(background)} on {background}"


@dataclass(frozen=True, slots=True)
class _Legend:
    """The colour bar, if there are colours, and the footnote."""

    facts: Facts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left, _, right = self.facts.ticks()
        if console.color_system is not None:
            legend = Text(f"{left} ")
            for colour in LIGHT.gradient(BAR):
                legend.append(" ", style=f"on {colour}")
            yield legend.append(f" {right}")
        yield Text(self.facts.footnote(), style="dim")
