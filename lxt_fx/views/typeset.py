"""Text in a matplotlib figure, measured and placed in points. Each character is drawn in a font that has it.

Mathtext and LaTeX are off, so `$x_1$` is drawn literally.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, fontManager, get_font
from matplotlib.text import Text
from matplotlib.textpath import text_to_path

from lxt_fx.views.emoji import JOINER, JOINERS, draw_emoji, is_emoji
from lxt_fx.views.view import Cell

POINTS = 72.0
"""Points in an inch."""

FAMILY = "DejaVu Sans"
"""This font comes with matplotlib, so a figure looks the same everywhere."""

UNREAL = ("Last Resort", "Noto Color Emoji", "Apple Color Emoji", "Segoe UI Emoji")
"""Fonts that matplotlib cannot draw, because they have no outlines."""

HINT = (
    "a character that no installed font can draw stands as its code point, ⟨U+6F22⟩, say; for emoji and Chinese, Japanese "
    "and Korean install the fonts Noto Color Emoji and Noto Sans CJK"
)

WIDE = 1.25
"""The width of an emoji, as a share of the size of the type."""

PAD, THIN, EDGED = 1.8, 0.6, 2.2
"""In points: the space between a token and the edge of its box, at the start or end of a word and inside a word; and what a
double edge needs."""


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
        return sum(self.size * WIDE if is_picture else self._width(piece) for piece, is_picture in pieces(text))

    def _width(self, text: str) -> float:
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
        return self.x + (PAD if self.cell.starts else THIN) + (EDGED if self.cell.beyond else 0.0)


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
    """Draws the text with its baseline at `y` points from the bottom of the figure and its end `align` at `x`. Emoji are
    pictures, as the font of the system has them."""
    found = pieces(text)
    if not any(is_picture for _, is_picture in found):
        _write(figure, x, y, text, style, colour, align)
        return
    x -= {"left": 0.0, "center": 0.5, "right": 1.0}[align] * style.width(text)
    for piece, is_picture in found:
        if is_picture:
            draw_emoji(figure, piece, x, y - 0.18 * style.size, style.size * WIDE)
        else:
            _write(figure, x, y, piece, style, colour, "left")
        x += style.width(piece)


def _write(figure: Figure, x: float, y: float, text: str, style: Type, colour: str, align: Align) -> None:
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
    """The text, with the code point instead of each character that no installed font can draw. The first time, a line in
    the log says which fonts to install."""
    found = "".join(c if c in JOINERS or can_draw(c) else f"⟨U+{ord(c):04X}⟩" for c in text)
    if found != text:
        _hint()
    return found


def can_draw(character: str) -> bool:
    """Whether a font draws the character, as an outline or as a picture."""
    return _has(FAMILY, character) or font_with(character) is not None or is_emoji(character)


@cache
def _hint() -> None:
    logging.getLogger("lxt_fx.views").warning(HINT)


def pieces(text: str) -> list[tuple[str, bool]]:
    """The text in order as pieces (text, whether it is one emoji that is drawn as a picture)."""
    found: list[tuple[str, bool]] = []
    for character in text:
        picture = not _has(FAMILY, character) and font_with(character) is None and is_emoji(character)
        if found and (character in JOINERS and found[-1][1] or found[-1][0].endswith(JOINER) and picture):
            found[-1] = (found[-1][0] + character, True)
        elif found and not picture and not found[-1][1]:
            found[-1] = (found[-1][0] + character, False)
        else:
            found.append((character, picture))
    return found


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
    return (PAD if cell.starts else THIN) + (PAD if cell.ends else THIN) + (2 * EDGED if cell.beyond else 0.0)


def _word_end(cells: Sequence[Cell], start: int) -> int:
    return next((end for end in range(start, len(cells)) if cells[end].ends), len(cells) - 1) + 1
