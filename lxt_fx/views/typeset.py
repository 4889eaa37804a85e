"""Text in a matplotlib figure, measured and placed in points. Each character is drawn in a font that has it.

Mathtext and LaTeX are off, so `$x_1$` is drawn literally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from lxt_fx.views.view import Cell

POINTS = 72.0
"""Points in an inch."""

FAMILY = "DejaVu Sans"
"""This font comes with matplotlib, so a figure looks the same everywhere."""

UNREAL = ("Last Resort", "Noto Color Emoji", "Apple Color Emoji", "Segoe UI Emoji")
"""Fonts that matplotlib cannot draw, because they have no outlines."""

PAD, THIN = 1.8, 0.3
"""In points: the space between a token and the edge of its box, at the start or end of a word and inside a word."""


Align = Literal["left", "center", "right"]


@dataclass(frozen=True, slots=True)
class Type:
    """A size in points and a weight."""

    size: float
    bold: bool = False

    def properties(self, text: str) -> FontProperties:
        """The fonts that draw the text: `FAMILY` first, then fonts with the characters that it lacks."""
        families = dict.fromkeys([FAMILY, *(f for f in map(font_with, text) if f is not None)])
        return FontProperties(family=list(families), size=self.size, weight="bold" if self.bold else "normal")

    def width(self, text: str) -> float:
        """Points from the start of the text to its end, spaces included."""
        framed = f"|{text}|"
        properties = self.properties(text)
        frame, _, _ = text_to_path.get_text_width_height_descent("||", properties, ismath=False)
        whole, _, _ = text_to_path.get_text_width_height_descent(framed, properties, ismath=False)
        return float(whole - frame)


@dataclass(frozen=True, slots=True)
class Placed:
    """A cell with its drawable text, the left end and width of its box in points, its type, and its line, counted from
    0."""

    cell: Cell
    text: str
    x: float
    width: float
    type: Type
    line: int

    def text_x(self) -> float:
        """The left end of the text in points."""
        return self.x + (PAD if self.cell.starts else THIN)


def in_lines(cells: Sequence[Cell], inside: float, style: Type) -> tuple[Placed, ...]:
    """The cells placed in lines of at most `inside` points. Lines break between words; a word breaks only if it is longer
    than a line. A single box longer than a line gets smaller type."""
    texts = [drawable(cell.text) for cell in cells]
    widths = [style.width(t) + _padding(cell) for t, cell in zip(texts, cells, strict=True)]
    space = style.width(" ") - PAD
    placed: list[Placed] = []
    x, line = 0.0, 0
    for index, cell in enumerate(cells):
        gap = space if cell.gap and x > 0 else 0.0
        needed = sum(widths[index : _word_end(cells, index)]) if cell.gap else widths[index]
        if x > 0 and x + gap + min(needed, inside) > inside:
            x, line, gap = 0.0, line + 1, 0.0
        width = min(widths[index], inside)
        fitting = style if width == widths[index] else Type(style.size * width / widths[index], style.bold)
        placed.append(Placed(cell, texts[index], x + gap, width, fitting, line))
        x += gap + width
        if cell.ends_line:
            x, line = 0.0, line + 1
    return tuple(placed)


def sentence(text: str, inside: float, style: Type) -> tuple[str, ...]:
    """The text in lines at most `inside` points long, broken at spaces."""
    lines = [""]
    for word in drawable(text).split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and style.width(longer) > inside:
            lines.append(word)
        else:
            lines[-1] = longer
    return tuple(lines)


def write(figure: Figure, x: float, y: float, text: str, style: Type, colour: str, align: Align = "left") -> None:
    """Draws the text with its baseline at `y` points from the bottom of the figure and its end `align` at `x`."""
    width, height = figure.get_size_inches() * POINTS
    figure.add_artist(
        Text(
            x / width,
            y / height,
            text,
            color=colour,
            horizontalalignment=align,
            verticalalignment="baseline",
            fontproperties=style.properties(text),
            parse_math=False,
            usetex=False,
            transform=figure.transFigure,
        )
    )


def drawable(text: str) -> str:
    """The text, with the code point instead of each character that no installed font can draw."""
    return "".join(c if c == "\u200d" or _has(FAMILY, c) or font_with(c) else f"⟨U+{ord(c):04X}⟩" for c in text)


@lru_cache(maxsize=4096)
def font_with(character: str) -> str | None:
    """A font family for a character that `FAMILY` lacks; None if `FAMILY` has it, or no font does."""
    if _has(FAMILY, character):
        return None
    families = sorted({entry.name for entry in fontManager.ttflist}, key=lambda name: ("Sans" not in name, name))
    return next((f for f in families if not f.startswith(UNREAL) and _has(f, character)), None)


def _has(family: str, character: str) -> bool:
    return ord(character) in _characters(family)


@lru_cache(maxsize=512)
def _characters(family: str) -> frozenset[int]:
    """The code points that the regular upright font of a family draws; none if the family has no such font."""
    faces = (f for f in fontManager.ttflist if f.name == family and f.style == "normal" and f.weight in (400, "normal"))
    face = next(faces, None)
    return frozenset() if face is None else frozenset(get_font(face.fname).get_charmap())


def _padding(cell: Cell) -> float:
    return (PAD if cell.starts else THIN) + (PAD if cell.ends else THIN)


def _word_end(cells: Sequence[Cell], start: int) -> int:
    return next((end for end in range(start, len(cells)) if cells[end].ends), len(cells) - 1) + 1
