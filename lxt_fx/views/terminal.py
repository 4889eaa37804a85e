"""The terminal view of a sheet, by rich."""

from __future__ import annotations

import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import zip_longest

from rich.console import Console, ConsoleOptions, ConsoleRenderable, Group, RenderableType, RenderResult, RichCast
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.views.colour import Scale
from lxt_fx.views.ground import colours_of
from lxt_fx.views.matrix import MatrixTable
from lxt_fx.views.scaling import Scaling, scaling
from lxt_fx.views.sheet import Bars, Heading, Matrix, Pictures, Section, Sheet, Tokens, Track, seconds_of
from lxt_fx.views.token_lines import BEYOND, STEPS, WEAKEST, TokenLines, share_style
from lxt_fx.views.view import TIE, number, summed

BAR, IMAGE, SMALL, TRACK, PAGE = 32, 48, 24, 72, 124
"""Widths in characters; a picture of few squares is made about `SMALL` wide."""

STRONGEST = 5
"""How many of the strongest places are listed."""

NAME = 30
"""The most characters of a name."""


def as_text(view: ConsoleRenderable | RichCast) -> str:
    """The view as a string: coloured where standard output is a terminal with 256 colours or more, plain where it is a
    file, a pipe, or a notebook, which calls itself a terminal of 16 colours."""
    console = Console(force_jupyter=False, color_system=None if _in_notebook() else "auto", highlight=False)
    with console.capture() as captured:
        console.print(view)
    return captured.get().rstrip("\n")


def _in_notebook() -> bool:
    return "ipykernel" in type(sys.stdout).__module__


def plain(view: RenderableType, width: int | None = None) -> str:
    """The view as plain text, whatever the terminal; None is the width of the terminal, at most `PAGE`, and `PAGE` where
    there is none."""
    width = min(shutil.get_terminal_size((PAGE, 24)).columns, PAGE) if width is None else width
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
    found.append(_Legend(sheet))
    if sheet.top:
        found += ["", _Strongest(sheet)]
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
        return [TokenLines(section.cells)]
    if isinstance(section, Pictures):
        return [_Picture(section.relevance, section.scale)]
    if isinstance(section, Track):
        return [_Sound(section)]
    if isinstance(section, Bars):
        return [_Bars(section)]
    return [MatrixTable(section)] if isinstance(section, Matrix) else []


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    """The squares of a picture, `relevance` [rows, columns]. One that is too wide for the terminal is shown by the sums of
    so many squares that it fits, and then the scale is that of the sums. Without colours each is a number."""

    relevance: Tensor
    scale: Scaling

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colours = colours_of(console)
        most = max(1, min(options.max_width, IMAGE) if colours else min(options.max_width // 3, SMALL))
        side = math.ceil(self.relevance.shape[1] / most)
        squares = summed(self.relevance, side, side).double()
        scale = self.scale if side == 1 else scaling(squares, None, self.scale.kind)
        yield _half_blocks(scale.shares(squares), colours) if colours else _digits(squares, scale)


def _half_blocks(share: Tensor, colours: Scale) -> Text:
    """Two squares in each character, one above the other."""
    wide = max(1, SMALL // share.shape[1])
    pixels = colours.image(share.float().repeat_interleave(wide, 0).repeat_interleave(wide, 1)).tolist()
    lines = []
    for upper, lower in zip_longest(pixels[::2], pixels[1::2]):
        line = Text()
        for column, above in enumerate(upper):
            below = f" on rgb({_rgb(lower[column])})" if lower else ""
            line.append("▀", style=f"rgb({_rgb(above)}){below}")
        lines.append(line)
    return Text("\n").join(lines)


def _digits(squares: Tensor, scale: Scaling) -> Text:
    """Each square as a digit with its sign: 9 is the end of the scale, and what goes beyond it is a star."""
    digits, beyond = (scale.shares(squares) * 9).round().int().tolist(), scale.goes_beyond(squares).tolist()
    lines = [
        "".join(f"{_digit(digit, far):>3}" for digit, far in zip(row, fars, strict=True))
        for row, fars in zip(digits, beyond, strict=True)
    ]
    end = "the strongest" if scale.kind == "rank" else number(scale.end).lstrip("+")
    more = ", a star for more" if scale.beyond else ""
    return Text("\n".join([*lines, f"9 stands for {end}{more}"]))


def _digit(digit: int, beyond: bool) -> str:
    signed = f"{digit:+d}".replace("-", "−")
    return f"{signed[0]}*" if beyond else signed if digit else "·"


@dataclass(frozen=True, slots=True, eq=False)
class _Sound:
    """A bar for each bin of time, as high as its relevance is strong and in its colour; below it its sign, and the time."""

    track: Track

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        track = self.track
        sums, scale, _ = track.bars(min(TRACK, options.max_width))
        bars, signs = Text(), Text()
        for share, beyond in zip(scale.shares(sums).tolist(), scale.goes_beyond(sums).tolist(), strict=True):
            height = min(8, math.ceil(abs(share) * 8)) if abs(share) > WEAKEST else 0
            bars.append(BEYOND[share < 0] if beyond else STEPS[height], style=_bar_style(console, share))
            signs.append(" " if height == 0 else "+" if share > 0 else "−", style="dim")
        end, first = seconds_of(track, 1, len(track.relevance)), seconds_of(track, 0)
        axis = Text(first + end.rjust(max(len(sums) - len(first), len(end) + 1)), style="dim")
        yield Text("\n").join([bars, signs, axis])


@dataclass(frozen=True, slots=True, eq=False)
class _Bars:
    """Numbers with bars to the left or right of a middle line; their names have what the width leaves."""

    section: Bars

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        section, table = self.section, Table.grid(padding=(0, 2))
        half = min(BAR, max(8, options.max_width - NAME - 14)) // 2
        longest = max(8, min(NAME, options.max_width - 2 * half - 15))
        for name, relevance in section.bars:
            share, beyond = section.share(relevance)
            drawn = ("█" * round(half * abs(share)))[: half - beyond]
            drawn += (">" if share > 0 else "<") if beyond else ""
            left, right = (drawn[::-1], "") if share < 0 else ("", drawn)
            bar = Text.assemble(
                (left.rjust(half), _bar_style(console, -1)), ("│", "dim"), (right.ljust(half), _bar_style(console, 1))
            )
            shown = name if len(name) <= longest else f"{name[: longest - 1]}…"
            table.add_row(Text(number(relevance), justify="right"), Text(shown), bar)
        if section.left_out:
            table.add_row("", Text(f"and {section.left_out} weaker ones", style="dim"), "")
        yield table


@dataclass(frozen=True, slots=True, eq=False)
class _Strongest:
    """The strongest places in a column."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colours, table = colours_of(console), Table.grid(padding=(0, 2))
        for place in self.sheet.top[:STRONGEST]:
            style = share_style(place.share, colours) if colours else ""
            name = Text(place.name.strip(" ") or "␣", style=style, overflow="ellipsis", no_wrap=True)
            says = "for" if place.relevance > 0 else "against" if place.relevance else ""
            table.add_row(Text(number(place.relevance), justify="right"), Text(says), name, Text(place.where, style="dim"))
        yield table


def _rgb(channels: Sequence[int]) -> str:
    return ",".join(map(str, channels))


def _bar_style(console: Console, share: float) -> str:
    colours = colours_of(console)
    return "" if colours is None or not share else colours.positive if share > 0 else colours.negative


@dataclass(frozen=True, slots=True)
class _Legend:
    """The colour bar, or without colours what the bars mean; where the scale ends; the footnote."""

    sheet: Sheet

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        facts, colours = self.sheet.facts, colours_of(console)
        left, _, right = facts.ticks()
        has_tokens = any(isinstance(section, Tokens) for section in self.sheet.sections)
        if colours is not None:
            legend = Text("against ").append(f"{left} ", style="dim")
            for colour in colours.gradient(min(BAR, max(3, options.max_width - 34))):
                legend.append(" ", style=f"on {colour}")
            yield legend.append(f" {right}", style="dim").append(" for")
        else:
            full = f", █ {'the strongest' if facts.is_rank else 'the end of the scale'}" if has_tokens else ""
            yield _Wrapped(f"+ for, − against{full}", "dim")
        mark = f"drawn as {' or '.join(BEYOND)}" if colours is None and has_tokens else ""
        if said := facts.scale_said("in bold" if colours is not None and has_tokens else mark):
            yield _Wrapped(said, "dim")
        yield _Wrapped(facts.footnote(), "dim")
