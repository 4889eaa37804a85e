"""A relevance matrix of an answer, in the terminal and as a figure: a row for each answer token, each on its own scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.view import number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRONGEST, COLUMNS = 4, 60
"""How many tokens are named beside a row, and how many columns of colour a terminal shows."""

CELL, LABELS, LARGEST = 0.17, 1.3, 200
"""Inches of a cell and of the labels; the most tokens of one figure."""


def row_shares(relevance: Tensor) -> Tensor:
    """Each row in shares of its largest absolute value, from -1 to 1."""
    return relevance / relevance.abs().amax(1, keepdim=True).clamp(min=torch.finfo(relevance.dtype).tiny)


def matrix_view(relevance: Tensor, logits: Tensor, tokens: Sequence[str], prompt: int, said: str) -> RenderableType:
    """A line for each answer token: its logit, a strip of colours for the tokens before it, and the strongest of them."""
    shares = row_shares(relevance)
    table = Table(box=None, padding=(0, 1), header_style="dim")
    table.add_column("answer", no_wrap=True)
    table.add_column("logit", justify="right", no_wrap=True)
    if len(tokens) <= COLUMNS:
        table.add_column(f"tokens 0 to {len(tokens) - 1}", no_wrap=True)
    table.add_column("strongest (position)")
    for row, token in enumerate(tokens[prompt:]):
        cells = [_shown(token), number(float(logits[row]))]
        strip = [_strip(shares[row], prompt)] if len(tokens) <= COLUMNS else []
        table.add_row(*cells, *strip, _strongest(shares[row], tokens))
    return Group(Text(said, style="bold"), "", table)


def matrix_figure(relevance: Tensor, tokens: Sequence[str], prompt: int, said: str) -> Figure:
    """The matrix as coloured cells with a line between prompt and answer. Raises InputError for too many tokens."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = relevance.shape
    if columns > LARGEST:
        raise InputError(f"the picture would have {columns} columns, and at most {LARGEST} can be read; use to_json")
    width, height = LABELS + CELL * columns, LABELS + CELL * rows + 0.3
    figure = Figure(figsize=(max(width, 5.0), height), facecolor="white")
    left, low = LABELS / max(width, 5.0), 0.05 / height
    axes = figure.add_axes((left, low, CELL * columns / max(width, 5.0), CELL * rows / height))
    axes.imshow(LIGHT.image(row_shares(relevance)).numpy(), interpolation="nearest", aspect="auto")
    axes.add_patch(Rectangle((prompt - 0.5, -0.5), 0, rows, edgecolor="#5c6470", linewidth=1.0))
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), [_plain(t) for t in tokens], rotation=90, fontsize=6.5)
    axes.set_yticks(range(rows), [_plain(t) for t in tokens[prompt:]], fontsize=6.5)
    axes.tick_params(length=0)
    axes.spines[:].set(color="#c9ced6", linewidth=0.6)
    figure.text(0.01, 1 - 0.18 / height, said, fontsize=7.5)
    return figure


def _strip(shares: Tensor, prompt: int) -> Text:
    text = Text()
    for column, share in enumerate(shares.tolist()):
        text.append("│" if column == prompt else "", style="dim")
        text.append(" ", style=f"on {LIGHT.colour(share)}")
    return text


def _strongest(shares: Tensor, tokens: Sequence[str]) -> Text:
    text = Text()
    for column in shares.abs().argsort(descending=True, stable=True)[:STRONGEST].tolist():
        share = float(shares[column])
        if share == 0:
            break
        background = LIGHT.colour(share)
        text.append(_shown(tokens[column]), style=f"{ink(background)} on {background}")
        text.append(f" {share:+.2f} ({column})  ", style="dim")
    return text


def _shown(token: str) -> str:
    return token.strip(" ") or "␣"


def _plain(token: str) -> str:
    """A label without what matplotlib would take for mathematics, or what it has no glyph for."""
    shown = _shown(token).replace("$", r"\$")
    return shown if len(shown) <= 14 else shown[:13] + "…"
