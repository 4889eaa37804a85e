"""Several explained numbers for one text, such as the tokens of an answer, in a figure. Each number has its own colour
scale."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from lxt_fx.base.errors import InputError
from lxt_fx.views.colour import LIGHT
from lxt_fx.views.matrix import short
from lxt_fx.views.sheet import Matrix
from lxt_fx.views.typeset import Type, drawable

CELL, GAP, LABEL = 12.5, 6.0, Type(6.5)
"""In points: a cell, the space between labels and cells; the type of a label."""

LARGEST = 200
"""The most tokens of one figure."""


def label_room(matrix: Matrix) -> tuple[float, float]:
    """The points that labels need at the left and above."""
    rows = max(LABEL.width(_label(label)) for label, _ in matrix.rows)
    return rows + GAP, max(LABEL.width(_label(token)) for token in matrix.tokens) + GAP


def matrix_size(matrix: Matrix) -> tuple[float, float]:
    """Width and height of the matrix with its labels, in points. Raises InputError for too many tokens."""
    rows, columns = matrix.shares.shape
    if columns > LARGEST:
        raise InputError(
            f"the picture would have {columns} columns, and at most {LARGEST} can be read; take fewer places "
            "(explanation[:, :200]), merge('words'), or use to_json"
        )
    left, above = label_room(matrix)
    return left + CELL * columns, above + CELL * rows


def draw_matrix(axes: Axes, matrix: Matrix) -> None:
    """The matrix as coloured cells with a line between prompt and answer."""
    rows, columns = matrix.shares.shape
    axes.imshow(LIGHT.image(matrix.shares.float()).numpy(), interpolation="nearest", aspect="auto")
    if matrix.split < columns:
        axes.add_patch(Rectangle((matrix.split - 0.5, -0.5), 0, rows, edgecolor="#5c6470", linewidth=1.0))
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), [_label(token) for token in matrix.tokens], rotation=90)
    axes.set_yticks(range(rows), [_label(label) for label, _ in matrix.rows])
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_fontproperties(LABEL.properties(text.get_text()))
        text.set_parse_math(False)
    axes.tick_params(length=0)
    axes.spines[:].set(color="#c9ced6", linewidth=0.6)


def _label(token: str) -> str:
    return drawable(short(token))
