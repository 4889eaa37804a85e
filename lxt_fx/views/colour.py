"""The colours of a heatmap: blue for negative, white (or the dark page) for zero, red for positive relevance.

Colours are mixed in OKLab (Ottosson 2020), where equal steps look equally large, so twice the relevance looks twice as
strong. Both ends have the same lightness, so that neither sign looks stronger than the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """A diverging scale from `negative` over `neutral` to `positive`, each written as `#rrggbb`."""

    negative: str
    neutral: str
    positive: str

    def colour(self, share: float) -> str:
        """The colour `#rrggbb` of a share of the largest absolute relevance, from -1 to 1."""
        share = min(1.0, max(-1.0, share))
        start = _oklab(self.neutral)
        end = _oklab(self.positive if share > 0 else self.negative)
        a, b, c = (s + abs(share) * (e - s) for s, e in zip(start, end, strict=True))
        return _hex((a, b, c))

    def gradient(self, stops: int = 9) -> tuple[str, ...]:
        """The colours of evenly spaced shares from -1 to 1, for a colour bar."""
        return tuple(self.colour(2 * i / (stops - 1) - 1) for i in range(stops))

    def image(self, shares: Tensor) -> Tensor:
        """Shares [height, width] from -1 to 1 as colours [height, width, 3] of 8 bits."""
        table = torch.tensor([tuple(bytes.fromhex(c[1:])) for c in self.gradient(511)], dtype=torch.uint8)
        steps: Tensor = ((shares.clamp(-1, 1) + 1) * 255).round().long()
        return table[steps]


LIGHT = Scale(negative="#1762b6", neutral="#ffffff", positive="#b71824")
DARK = Scale(negative="#4c94ec", neutral="#1d2126", positive="#f14445")


def ink(background: str) -> str:
    """Black or white, whichever contrasts more with the background; the ratio is then at least 4.5, WCAG's level AA."""
    return "#000000" if contrast("#000000", background) >= contrast("#ffffff", background) else "#ffffff"


def contrast(first: str, second: str) -> float:
    """The contrast ratio of two colours by WCAG 2: from 1 (the same) to 21 (black on white)."""
    darker, lighter = sorted((_luminance(first), _luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = _linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(colour: str) -> Triple:
    red, green, blue = (c / 255 for c in bytes.fromhex(colour[1:]))
    return _decode(red), _decode(green), _decode(blue)


def _decode(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def _encode(channel: float) -> float:
    channel = min(1.0, max(0.0, channel))
    return 12.92 * channel if channel <= 0.0031308 else float(1.055 * channel ** (1 / 2.4) - 0.055)


def _oklab(colour: str) -> Triple:
    red, green, blue = _linear(colour)
    long = (0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue) ** (1 / 3)
    middle = (0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue) ** (1 / 3)
    short = (0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue) ** (1 / 3)
    return (
        0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short,
        1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short,
        0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short,
    )


def _hex(oklab: Triple) -> str:
    lightness, a, b = oklab
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    middle = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    channels = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * _encode(c)):02x}" for c in channels)
