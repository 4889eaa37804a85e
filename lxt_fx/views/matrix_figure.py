"""Several explained numbers for one text, such as the tokens of an answer, in a figure. Each number has its own colour
scale."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lxt_fx.views.colour import LIGHT, ink
from lxt_fx.views.matrix import short
from lxt_fx.views.scaling import MARKED
from lxt_fx.views.sheet import Matrix
from lxt_fx.views.typeset import Type, drawable

CELL, GAP, LABEL = 12.5, 6.0, Type(6.5)
"""In points: a cell, the space between labels and cells; the type of a label."""

def rows_between(matrix: Matrix, room: float | None) -> Iterator[Matrix]:
    """The matrix in pieces of as many rows as fit `room` points, one at least; in one piece for None."""
    rows = len(matrix.rows)
    fitting = rows if room is None else max(1, int((room - label_room(matrix)[1]) / CELL))
    for start in range(0, rows, fitting):
        own = slice(start, start + fitting)
        shares, beyond, muted = matrix.shares[own], matrix.beyond[own], matrix.muted[own]
        yield replace(
            matrix, rows=matrix.rows[own], shares=shares, beyond=beyond, muted=muted, relevance=matrix.relevance[own]
        )


def label_room(matrix: Matrix) -> tuple[float, float]:
    """The points that labels need at the left and above."""
    rows = max(LABEL.width(_label(label)) for label, _ in matrix.rows)
    return rows + GAP, max(LABEL.width(_label(token)) for token in matrix.tokens) + GAP


def matrix_size(matrix: Matrix) -> tuple[float, float]:
    """Width and height of the matrix with its labels, in points."""
    rows, columns = matrix.shares.shape
    left, above = label_room(matrix)
    return left + CELL * columns, above + CELL * rows


def draw_matrix(axes: Axes, matrix: Matrix) -> None:
    """The matrix as coloured cells with a line between prompt and answer. A dot speaks against, a frame goes beyond the end
    of the scale, hatching is left out of the colours."""
    rows, columns = matrix.shares.shape
    axes.imshow(LIGHT.image(matrix.shares.float()).numpy(), interpolation="nearest", aspect="auto")
    against = (matrix.shares <= -MARKED).nonzero()
    axes.scatter(against[:, 1], against[:, 0], s=1.6, color="white", linewidths=0, zorder=3)
    for row, column in matrix.beyond.nonzero().tolist():
        colour = ink(LIGHT.colour(float(matrix.shares[row, column])))
        for inset, edge in ((0.06, "#000000"), (0.22, colour)):
            axes.add_patch(_square(row, column, inset, edgecolor=edge, linewidth=0.6, fill=False))
    for row, column in matrix.muted.nonzero().tolist():
        axes.add_patch(_square(row, column, 0.0, edgecolor="#c9ced6", linewidth=0, fill=False, hatch="//////"))
    if matrix.split < columns:
        axes.add_patch(Rectangle((matrix.split - 0.5, -0.5), 0, rows, edgecolor="#5c6470", linewidth=1.0))
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), [_label(token) for token in matrix.tokens], rotation=90)
    axes.set_yticks(range(rows), [_label(label) for label, _ in matrix.rows])
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_fontproperties(LABEL.properties(text.get_text()))
        text.set_parse_math(False)
    axes.set_xticks([at - 0.5 for at in range(1, columns)], minor=True)
    axes.set_yticks([at - 0.5 for at in range(1, rows)], minor=True)
    axes.grid(which="minor", color="#eceef1", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set(color="#c9ced6", linewidth=0.6)


def _square(row: int, column: int, inset: float, **look: object) -> Rectangle:
    side = 1 - 2 * inset
    return Rectangle((column - 0.5 + inset, row - 0.5 + inset), side, side, **look)  # type: ignore[arg-type]


def _label(token: str) -> str:
    return drawable(short(token))
