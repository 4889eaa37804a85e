"""Several explained numbers for one text, such as the tokens of an answer, in the terminal. Each number has its own colour
scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.sheet import Matrix
from lxt_fx.views.view import number

STRONGEST, BESIDE = 3, 40
"""How many tokens are named for a number, and how many characters they have where colours stand on the line."""


@dataclass(frozen=True, slots=True, eq=False)
class MatrixTable:
    """For each number its value, as many of its strongest tokens as fit the line, and a strip of colours for all tokens:
    before them, below them where the line is short, and nowhere where even that is too long or there are no colours."""

    matrix: Matrix

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        matrix, count = self.matrix, len(self.matrix.tokens)
        first = "answer" if matrix.split < count else "explained"
        labels, values = [short(label) for label, _ in matrix.rows], [number(value) for _, value in matrix.rows]
        room = options.max_width - sum(2 + max(map(len, column)) for column in ([first, *labels], ["value", *values])) - 2
        strip = count + (matrix.split < count)
        coloured = console.color_system is not None and strip <= room
        beside = coloured and strip + 2 + BESIDE <= room
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column(first, no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        if beside:
            table.add_column(f"tokens 0 to {count - 1}", no_wrap=True)
        below = f", and tokens 0 to {count - 1}" if coloured and not beside else ""
        table.add_column(f"strongest (position){below}", no_wrap=True)
        for label, value, shares in zip(labels, values, matrix.shares, strict=True):
            strongest = _strongest(shares, matrix.tokens, room - (strip + 2 if beside else 0))
            colours = [_strip(shares, matrix.split)] if coloured else []
            last = [*colours, strongest] if beside else [Text("\n").join([strongest, *colours])]
            table.add_row(label, value, *last)
        yield table


def _strip(shares: Tensor, split: int) -> Text:
    text = Text()
    for column, share in enumerate(shares.tolist()):
        text.append("│" if column == split else "", style="dim")
        text.append(" ", style=f"on {LIGHT.colour(share)}")
    return text


def _strongest(shares: Tensor, tokens: Sequence[str], room: int) -> Text:
    text = Text()
    for column in shares.abs().argsort(descending=True, stable=True)[:STRONGEST].tolist():
        share = float(shares[column])
        if share == 0:
            break
        background = LIGHT.colour(share)
        more = Text("  " if text else "").append(short(tokens[column]), style=f"{ink(background)} on {background}")
        more.append(f" {share:+.2f} ({column})".replace("-", "−"), style="dim")
        if text and text.cell_len + more.cell_len > room:
            break
        text.append_text(more)
    return text


def short(token: str) -> str:
    """A short label."""
    shown = token.strip(" ") or "␣"
    return shown if len(shown) <= 14 else shown[:13] + "…"
