"""The tokens of a text in a terminal: coloured boxes, or where there are no colours, bars below the words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from lxt_fx.views.colour import Scale, ink
from lxt_fx.views.ground import colours_of
from lxt_fx.views.scaling import MARKED
from lxt_fx.views.view import Cell

STEPS = " ▁▂▃▄▅▆▇█"
"""Bars of one character, from nothing to the full height."""

MUTED, BEYOND, WEAKEST = "/", ("▲", "▼"), 1e-3
"""What stands for a token that is left out, for one that goes beyond the scale (for and against), and the smallest share
that has a bar or a colour."""

EDGE, ALIKE = "▏", 0.1
"""The edge between two tokens of a word, and how near their shares are where their colours do not show it."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenLines:
    """The cells of a text. In colour an underline speaks against the explained number, and bold with a double underline
    goes beyond the scale."""

    cells: Sequence[Cell]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        colours = colours_of(console)
        yield _barred(self.cells, options.max_width) if colours is None else _coloured(self.cells, colours)


def _coloured(cells: Sequence[Cell], colours: Scale) -> Text:
    text = Text()
    for before, cell in zip((None, *cells), cells, strict=False):
        text.append(" " if cell.gap else "")
        style = cell_style(cell, colours)
        alike = before is not None and not cell.starts and abs(before.share - cell.share) < ALIKE
        text.append(EDGE if alike else "", style="dim")
        text.append(cell.text, style=style)
        text.append("\n" if cell.ends_line else "")
    return text


def cell_style(cell: Cell, colours: Scale) -> str:
    """The rich style of a token. What is all but irrelevant has the terminal's own background."""
    if cell.muted:
        return "dim strike"
    marks = "bold underline2 " if cell.beyond else "underline " if cell.share <= -MARKED else ""
    return marks + share_style(cell.share, colours)


def share_style(share: float, colours: Scale) -> str:
    """The rich style of a share of the full colour."""
    if abs(share) < WEAKEST:
        return ""
    background = colours.colour(share)
    return f"{ink(background)} on {background}"


def _barred(cells: Sequence[Cell], width: int) -> Text:
    """Each line of the text, and below it the bars of what speaks for, and of what speaks against."""
    lines = []
    for line in _wrapped(cells, max(width - 2, 8)):
        text = "".join((" " if cell.gap and at else "") + cell.text for at, cell in enumerate(line))
        lines.append(f"  {text}".rstrip())
        for sign, mark, far in ((1, "+", BEYOND[0]), (-1, "−", BEYOND[1])):
            bars = "".join(_bars(line, sign, far)).rstrip()
            lines += [f"{mark} {bars}"] if bars else []
    return Text("\n".join(lines), no_wrap=True, overflow="ignore")


def _bars(line: Sequence[Cell], sign: int, far: str) -> Iterator[str]:
    for at, cell in enumerate(line):
        joined = at + 1 < len(line) and not line[at + 1].gap and not cell.ends
        wide = cell_len(cell.text)
        own = sign * cell.share
        bar = STEPS[min(8, math.ceil(own * 8)) if own > WEAKEST else 0]
        bar = far if cell.beyond and own > 0 else MUTED if cell.muted and sign > 0 else bar
        shown = wide - 1 if joined and wide > 1 else wide  # the edge of the token stays visible
        yield (" " if cell.gap and at else "") + bar * shown + " " * (wide - shown)


def _wrapped(cells: Sequence[Cell], width: int) -> Iterator[list[Cell]]:
    """Lines of whole words; a word that is longer than a line breaks between its tokens."""
    line: list[Cell] = []
    used = 0
    for word in _words(cells):
        needed = sum(cell_len(cell.text) for cell in word) + (word[0].gap and bool(line))
        if line and used + needed > width:
            yield line
            line, used = [], 0
        for cell in word:
            wide = cell_len(cell.text) + (cell.gap and bool(line))
            if line and used + wide > width:
                yield line
                line, used = [], 0
            line.append(cell)
            used += wide
        if word[-1].ends_line:
            yield line
            line, used = [], 0
    if line:
        yield line


def _words(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    word: list[Cell] = []
    for cell in cells:
        word.append(cell)
        if cell.ends or cell.ends_line:
            yield word
            word = []
    if word:
        yield word
