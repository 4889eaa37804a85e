"""Several explained numbers for one text, such as the tokens of an answer, in the terminal. Each number has its own colour
scale."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.sheet import Matrix
from lxt_fx.views.view import number

STRONGEST, COLUMNS = 3, 60
"""How many tokens are named for a number, and how many columns of colour a terminal shows at most."""


def matrix_table(matrix: Matrix) -> RenderableType:
    """A line for each number: its value, a strip of colours for the tokens, and the strongest of these."""
    count = len(matrix.tokens)
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("answer" if matrix.split < count else "explained", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    if count <= COLUMNS:
        table.add_column(f"tokens 0 to {count - 1}", no_wrap=True)
    table.add_column("strongest (position)")
    for (label, value), shares in zip(matrix.rows, matrix.shares, strict=True):
        cells = [Text(short(label)), Text(number(value)), *([_strip(shares, matrix.split)] if count <= COLUMNS else [])]
        table.add_row(*cells, _strongest(shares, matrix.tokens))
    return table


def _strip(shares: Tensor, split: int) -> Text:
    text = Text()
    for column, share in enumerate(shares.tolist()):
        text.append("│" if column == split else "", style="dim")
        text.append(" ", style=f"on {LIGHT.colour(share)}")
    return text


def _strongest(shares: Tensor, tokens: Sequence[str]) -> Text:
    text = Text()
    for column in shares.abs().argsort(descending=True, stable=True)[:STRONGEST].tolist():
        share = float(shares[column])
        if share == 0:
            break
        background = LIGHT.colour(share)
        text.append("  " if text else "").append(short(tokens[column]), style=f"{ink(background)} on {background}")
        text.append(f" {share:+.2f} ({column})".replace("-", "−"), style="dim")
    return text


def short(token: str) -> str:
    """A short label."""
    shown = token.strip(" ") or "␣"
    return shown if len(shown) <= 14 else shown[:13] + "…"
