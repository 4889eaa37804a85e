"""Several explained numbers for one text, such as the tokens of an answer, in the terminal. Each number has its own colour
scale."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lxt_fx.views.colour import Scale
from lxt_fx.views.ground import colours_of
from lxt_fx.views.sheet import Matrix
from lxt_fx.views.token_lines import BEYOND, MUTED, share_style
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
        colours = colours_of(console) if strip <= room else None
        beside = colours is not None and strip + 2 + BESIDE <= room
        table = Table(box=None, padding=(0, 1), header_style="dim")
        table.add_column(first, no_wrap=True)
        table.add_column("value", justify="right", no_wrap=True)
        if beside:
            table.add_column(f"tokens 0 to {count - 1}", no_wrap=True)
        below = f", and tokens 0 to {count - 1}" if colours is not None and not beside else ""
        table.add_column(f"strongest (position){below}", no_wrap=True)
        for at, (label, value) in enumerate(zip(labels, values, strict=True)):
            strongest = _strongest(matrix, at, room - (strip + 2 if beside else 0), colours_of(console))
            strips = [] if colours is None else [_strip(matrix, at, colours)]
            last = [*strips, strongest] if beside else [Text("\n").join([strongest, *strips])]
            table.add_row(label, value, *last)
        yield table


def _strip(matrix: Matrix, row: int, colours: Scale) -> Text:
    text = Text()
    for column, share in enumerate(matrix.shares[row].tolist()):
        text.append("│" if column == matrix.split else "", style="dim")
        sign = MUTED if matrix.muted[row, column] else BEYOND[share < 0] if matrix.beyond[row, column] else " "
        text.append(sign, style=share_style(share, colours))
    return text


def _strongest(matrix: Matrix, row: int, room: int, colours: Scale | None) -> Text:
    """The strongest tokens of a row with their relevance."""
    text, shares = Text(), matrix.shares[row]
    strength = shares.abs() + matrix.relevance[row].abs() * matrix.beyond[row]  # beyond the end the shares are equal
    for column in strength.argsort(descending=True, stable=True)[:STRONGEST].tolist():
        share = float(shares[column])
        if share == 0:
            break
        style = "" if colours is None else share_style(share, colours)
        more = Text("  " if text else "").append(short(matrix.tokens[column]), style=style)
        more.append(f" {number(float(matrix.relevance[row, column]))} ({column})", style="dim")
        if text and text.cell_len + more.cell_len > room:
            break
        text.append_text(more)
    return text


def short(token: str) -> str:
    """A short label."""
    shown = token.strip(" ") or "␣"
    return shown if len(shown) <= 14 else shown[:13] + "…"
