"""What the layers of a model say at each position of a text, as a picture: a line for each place, the last one first, and a
column for each position, shaded by the probability of the token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lxt_fx.base.errors import InputError
from lxt_fx.base.one_line import one_line
from lxt_fx.views.colour import Scale, ink
from lxt_fx.views.files import save
from lxt_fx.views.heatmap import BLACK, EDGE, MUTED, NARROWEST, PAGE
from lxt_fx.views.matrix import short
from lxt_fx.views.typeset import POINTS, Type, drawable, sentence, write

SHADE = Scale(negative="#ffffff", neutral="#ffffff", positive="#1d7a5f")
"""White for a probability of 0; another hue than those that speak for and against an answer."""

TOKEN, PLACE, TITLE = Type(6.5), Type(6.5), Type(8.5, bold=True)
LINE, PAD, MARGIN, APART = 11.0, 3.0, 14.0, 16.0
"""In points: the height of a line, the space beside a token, at the edge of the figure, and between blocks of positions."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """What is drawn: the `tokens` of the text, the names of `places`, and the likeliest token with its `probability`
    [places][tokens]."""

    tokens: Sequence[str]
    places: Sequence[str]
    predicted: Sequence[Sequence[str]]
    probability: Sequence[Sequence[float]]
    table_name: str


def draw_lens(found: Grid, path: str | Path, width: float) -> tuple[Path, ...]:
    """Writes PNG files `width` inches wide, each as tall as a page or one block of positions, and returns their paths.

    Raises InputError for a width too small.
    """
    if width < 2 * NARROWEST:
        raise InputError(f"to_png: width must be at least {2 * NARROWEST} inches, got {width}")
    path, pages = Path(path), list(_pages(found, width * POINTS))
    paths = (path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, len(pages) + 1)))
    for blocks, own in zip(pages, paths, strict=True):
        save(_figure(found, blocks, width * POINTS), own, "png")
    return paths


@dataclass(frozen=True, slots=True)
class _Block:
    """Positions side by side: the points of the labels at the left, and of each column."""

    positions: range
    left: float
    cell: float


def _pages(found: Grid, width: float) -> Iterator[list[_Block]]:
    blocks = _blocks(found, width)
    room = PAGE * POINTS - 3 * MARGIN - 3 * LINE
    most = max(1, int(room / _height(found)))
    for start in range(0, len(blocks), most):
        yield blocks[start : start + most]


def _blocks(found: Grid, width: float) -> list[_Block]:
    """As many positions side by side as the widest token lets."""
    count = len(found.tokens)
    left = max(PLACE.width(name) for name in found.places) + 2 * PAD
    shown = {token for line in (*found.predicted, found.tokens) for token in line}
    cell, inside = max(TOKEN.width(_label(token)) for token in shown) + 2 * PAD, width - 2 * MARGIN - left
    columns = min(count, max(1, int(inside / cell)))
    return [
        _Block(range(at, min(at + columns, count)), left, min(inside / columns, 2 * cell))
        for at in range(0, count, columns)
    ]


def _height(found: Grid) -> float:
    return LINE * (len(found.places) + 1) + APART


def _figure(found: Grid, blocks: list[_Block], width: float) -> Figure:
    text = one_line("".join(found.tokens), 80)
    said = sentence(f"{text}: the likeliest next token by layer", width - 2 * MARGIN, TITLE)
    height = 2 * MARGIN + LINE * (len(said) + 2) + _height(found) * len(blocks)
    figure = Figure(figsize=(width / POINTS, height / POINTS), facecolor="white")
    top = height - MARGIN
    for line in said:
        top -= LINE
        write(figure, MARGIN, top, line, TITLE, BLACK)
    for block in blocks:
        top -= APART
        _draw(figure, found, block, top)
        top -= LINE * (len(found.places) + 1)
    note = f"shade: the probability of the token, white 0 and full colour 1; rules {one_line(found.table_name, 40)}"
    write(figure, MARGIN, MARGIN, note, TOKEN, MUTED)
    return figure


def _draw(figure: Figure, found: Grid, block: _Block, top: float) -> None:
    """One block, below `top` points from the bottom of the figure: the tokens of the text, then a line for each place."""
    start = MARGIN + block.left
    for column, at in enumerate(block.positions):
        write(
            figure, start + (column + 0.5) * block.cell, top - LINE + PAD, _label(found.tokens[at]), TOKEN, MUTED, "center"
        )
    for line, place in enumerate(reversed(range(len(found.places)))):
        bottom = top - LINE * (line + 2)
        write(figure, start - PAD, bottom + PAD, found.places[place], PLACE, BLACK, "right")
        for column, at in enumerate(block.positions):
            colour = SHADE.colour(found.probability[place][at])
            x = start + column * block.cell
            _box(figure, x, bottom, block.cell, colour)
            token = _label(found.predicted[place][at])
            write(figure, x + block.cell / 2, bottom + PAD, token, TOKEN, ink(colour), "center")


def _box(figure: Figure, x: float, y: float, width: float, colour: str) -> None:
    whole, tall = figure.get_size_inches() * POINTS
    corner = (x / whole, y / tall)
    figure.add_artist(
        Rectangle(
            corner,
            width / whole,
            LINE / tall,
            transform=figure.transFigure,
            facecolor=colour,
            edgecolor=EDGE,
            linewidth=0.4,
        )
    )


def _label(token: str) -> str:
    return drawable(short(token))
