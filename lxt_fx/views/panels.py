"""The pictures of an image explanation: the image, its heatmap, and the heatmap over the image."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import torch
from torch import Tensor

from lxt_fx.views.colour import LIGHT
from lxt_fx.views.scaling import MARKED, Scaling, scaling

SMALLEST, LARGE = 8, 640
"""In pixels: the side of the smallest square that has a sign, and of the largest picture that is drawn larger for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A titled picture [height, width, 3] of 8 bits."""

    title: str
    pixels: Tensor

    def png(self) -> bytes:
        """The picture as a PNG file."""
        height, width, _ = self.pixels.shape
        lines = b"".join(b"\x00" + bytes(line.flatten().tolist()) for line in self.pixels)
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def panels(pixel_values: Tensor, relevance: Tensor, patch: int) -> tuple[Panel, ...]:
    """The three pictures, for pixel values [channels, height, width] and the relevance of squares of `patch` x `patch`
    pixels.

    Pixel values are normalised for the model, so the image is drawn from its smallest to its largest value.
    """
    return overlaid(_displayed(pixel_values), scaling(relevance, None, "max").shares(relevance).float(), patch)


def pictures(shown: Tensor, relevance: Tensor, patch: int, scale: Scaling) -> tuple[Panel, ...]:
    """The same for a picture [height, width, 3] of 8 bits and a scale. Squares that are large enough say by their shape
    what colour says: a dot speaks against, a frame goes beyond the end of the scale."""
    share = scale.shares(relevance).float()
    image, heat, both = overlaid(shown.float() / 255, share, patch)
    against, beyond = share <= -MARKED, scale.goes_beyond(relevance)
    return image, _marked(heat, patch, against, beyond), _marked(both, patch, against, beyond)


def displayed(pixel_values: Tensor) -> Tensor:
    """Pixel values [channels, height, width] as a picture [height, width, 3] of 8 bits, from their smallest to their
    largest value; other than three channels are shown as their mean, in grey."""
    return _bytes(_displayed(pixel_values))


def overlaid(image: Tensor, share: Tensor, patch: int) -> tuple[Panel, ...]:
    """The three pictures of an image [height, width, 3] from 0 to 1 and the shares of its squares."""
    height, width, _ = image.shape
    share = share.repeat_interleave(patch, 0).repeat_interleave(patch, 1)[:height, :width]
    pale = 0.4 + 0.6 * image.mean(dim=-1, keepdim=True)
    both = torch.lerp(pale.expand_as(image), LIGHT.image(share.sign()) / 255, share.abs()[..., None])
    return Panel("image", _bytes(image)), Panel("relevance", LIGHT.image(share)), Panel("both", _bytes(both))


def _marked(panel: Panel, side: int, against: Tensor, beyond: Tensor) -> Panel:
    """The panel with the signs of its squares of `side` pixels; one with small squares is drawn larger, if that is no more
    than `LARGE` pixels, and without signs else."""
    times = max(1, -(-SMALLEST // side))
    if times > 1 and max(panel.pixels.shape[:2]) * times > LARGE:
        return panel
    pixels, side = panel.pixels.repeat_interleave(times, 0).repeat_interleave(times, 1), side * times
    pixels = pixels.clone()
    dot, frame = max(2, side // 6), max(1, side // 12)
    middle = (side - dot) // 2
    for row, column in against.nonzero().tolist():
        pixels[row * side + middle :, column * side + middle :][:dot, :dot] = 255
    for row, column in beyond.nonzero().tolist():
        square = pixels[row * side : (row + 1) * side, column * side : (column + 1) * side]
        for shift, shade in ((0, 0), (frame, 255)):
            inner = square[shift : len(square) - shift, shift : square.shape[1] - shift]
            for edge in (inner[:frame], inner[-frame:], inner[:, :frame], inner[:, -frame:]):
                edge[:] = shade
    return Panel(panel.title, pixels)


def _displayed(pixel_values: Tensor) -> Tensor:
    """Colours [height, width, 3] from 0 to 1; other than three channels are shown as their mean, in grey."""
    values = pixel_values.float()
    if len(values) != 3:
        values = values.mean(dim=0, keepdim=True).expand(3, -1, -1)
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 0)


def _bytes(colours: Tensor) -> Tensor:
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
