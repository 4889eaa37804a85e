"""The terminal view of an explanation, by rich."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from itertools import zip_longest

from rich.console import Console, ConsoleRenderable, Group, RenderableType, RichCast
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.view import Cell, Facts, number, shares, summed

BAR, IMAGE, PAGE = 32, 48, 124
"""Widths in characters."""


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


def token_view(cells: Sequence[Cell], facts: Facts, top: Sequence[tuple[int, str, float]]) -> RenderableType:
    """The explained number, the text with coloured tokens, and the strongest tokens."""
    text = Text()
    for cell in cells:
        text.append(" " if cell.gap else "")
        text.append(cell.text, style=_style(cell.share))
        text.append("\n" if cell.ends_line else "")
    strongest = Table.grid(padding=(0, 2))
    for position, token, relevance in top:
        share = relevance / facts.largest if facts.largest else 0.0
        strongest.add_row(
            Text(number(relevance), justify="right"),
            Text(token.strip(" ") or "␣", style=_style(share)),
            Text(f"position {position}", style="dim"),
        )
    return Group(_heading(facts), "", text, "", _legend(facts), "", strongest)


def image_view(relevance: Tensor, facts: Facts) -> RenderableType:
    """The relevance [height, width] of an image. A character shows two squares, one above the other; a square sums as many
    pixels as needed for the image to fit the terminal."""
    side = math.ceil(relevance.shape[1] / IMAGE)
    squares = summed(relevance, side, side)
    colours = LIGHT.image(shares(squares)).tolist()
    text = Text()
    for upper, lower in zip_longest(colours[::2], colours[1::2]):
        for column, above in enumerate(upper):
            below = f" on rgb({_rgb(lower[column])})" if lower else ""
            text.append("▀", style=f"rgb({_rgb(above)}){below}")
        text.append("\n")
    return Group(_heading(facts), "", text, _legend(replace(facts, largest=float(squares.abs().max()))))


def _rgb(channels: Sequence[int]) -> str:
    return ",".join(map(str, channels))


def _style(share: float) -> str:
    background = LIGHT.colour(share)
    return f"{ink(background)} on {background}"


def _heading(facts: Facts) -> Text:
    return Text.assemble((facts.explained, "bold"), " = ", (facts.written_value(), "bold"))


def _legend(facts: Facts) -> Text:
    left, _, right = facts.ticks()
    legend = Text(f"{left} ")
    for colour in LIGHT.gradient(BAR):
        legend.append(" ", style=f"on {colour}")
    return legend.append(f" {right}\n").append(facts.footnote(), style="dim")
