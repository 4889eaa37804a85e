"""Several explained numbers for one text, such as the tokens of an answer: in the terminal and in a figure. Each number has
its own colour scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.sheet import Matrix
from lxt_fx.views.view import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STRONGEST, COLUMNS = 4, 60
"""How many tokens are named for a number, and how many columns of colour a terminal shows at most."""

CELL, LABELS, LARGEST = 0.17, 1.3, 200
"""In inches: a cell and the labels; the most tokens of one figure."""


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
        cells = [Text(_plain(label)), Text(number(value)), *([_strip(shares, matrix.split)] if count <= COLUMNS else [])]
        table.add_row(*cells, _strongest(shares, matrix.tokens))
    return table


def matrix_size(matrix: Matrix) -> tuple[float, float]:
    """Width and height of the matrix with its labels, in inches. Raises InputError for too many tokens."""
    rows, columns = matrix.shares.shape
    if columns > LARGEST:
        raise InputError(
            f"the picture would have {columns} columns, and at most {LARGEST} can be read; take fewer places "
            "(explanation[:, :200]), merge('words'), or use to_json"
        )
    return LABELS + CELL * columns, LABELS + CELL * rows


def draw_matrix(axes: Axes, matrix: Matrix) -> None:
    """The matrix as coloured cells with a line between prompt and answer."""
    from matplotlib.patches import Rectangle

    rows, columns = matrix.shares.shape
    axes.imshow(LIGHT.image(matrix.shares.float()).numpy(), interpolation="nearest", aspect="auto")
    if matrix.split < columns:
        axes.add_patch(Rectangle((matrix.split - 0.5, -0.5), 0, rows, edgecolor="#5c6470", linewidth=1.0))
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), [_escaped(t) for t in matrix.tokens], rotation=90, fontsize=6.5)
    axes.set_yticks(range(rows), [_escaped(label) for label, _ in matrix.rows], fontsize=6.5)
    axes.tick_params(length=0)
    axes.spines[:].set(color="#c9ced6", linewidth=0.6)


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
        text.append(_plain(tokens[column]), style=f"{ink(background)} on {background}")
        text.append(f" {share:+.2f} ({column})  ".replace("-", "−"), style="dim")
    return text


def _plain(token: str) -> str:
    """A short label."""
    shown = token.strip(" ") or "␣"
    return shown if len(shown) <= 14 else shown[:13] + "…"


def _escaped(token: str) -> str:
    """A short label in which matplotlib sees no mathematics."""
    return _plain(token).replace("$", r"\$")
