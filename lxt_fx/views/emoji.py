"""Emoji in a figure. Their fonts hold pictures and no outlines, so matplotlib cannot draw them and Pillow does. Pillow and
fontTools come with matplotlib."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from fontTools.ttLib import TTFont, TTLibError  # type: ignore[import-untyped]
from matplotlib.figure import Figure
from matplotlib.font_manager import findSystemFonts
from PIL import Image, ImageDraw, ImageFont

JOINER, JOINERS = "\u200d", "\u200d\ufe0f" + "".join(map(chr, range(0x1F3FB, 0x1F400)))
"""What joins two emoji to one; and the characters that belong to the emoji before them (that, a variant, tones of skin)."""

SIZES = (109, 136, 160, 96, 64)
"""The sizes in pixels in which fonts hold their pictures."""


def is_emoji(character: str) -> bool:
    """Whether a font of the system has a picture of the character."""
    font = _font()
    return font is not None and ord(character) in font[1]


def draw_emoji(figure: Figure, emoji: str, x: float, y: float, side: float) -> None:
    """Draws one emoji into a square of `side` points whose lower left corner is at `x` and `y`, in points."""
    width, height = (float(length) * 72.0 for length in figure.get_size_inches())
    axes = figure.add_axes((x / width, y / height, side / width, side / height), zorder=5)
    axes.imshow(_picture(emoji), interpolation="antialiased", aspect="equal")
    axes.axis("off")


@cache
def _picture(emoji: str) -> np.ndarray:
    """[side, side, 4] in uint8."""
    font = _font()
    assert font is not None
    left, top, right, bottom = font[0].getbbox(emoji)
    side = max(int(right - left), int(bottom - top), 1)
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((-left, -top), emoji, font=font[0], embedded_color=True)
    return np.asarray(image)


@cache
def _font() -> tuple[ImageFont.FreeTypeFont, frozenset[int]] | None:
    """The first font of the system with coloured emoji, and its characters."""
    for path in sorted(findSystemFonts()):
        if "emoji" not in Path(path).name.lower():
            continue
        try:
            characters = TTFont(path, fontNumber=0, lazy=True).getBestCmap()
        except (OSError, TTLibError):
            continue
        for size in SIZES:
            try:
                return ImageFont.truetype(path, size), frozenset(characters)
            except OSError:  # another size, or no picture font
                continue
    return None
