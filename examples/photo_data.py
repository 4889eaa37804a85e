"""Photos as a vision transformer takes them: square, standardised by the mean and deviation of ImageNet's colours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]

# (left edge, top edge, side) of a view in the photo's largest centred square, whose side is 1
VIEWS = ((0.0, 0.0, 1.0), (0.0, 0.0, 0.75), (0.25, 0.0, 0.75), (0.125, 0.25, 0.75))


def photo_views(path: Path, side: int) -> Tensor:
    """f32[4, 3, side, side]: the photo's largest centred square, and three quarters of it at the upper left, at the upper
    right and, mirrored, at the lower middle."""
    from PIL import Image  # comes with matplotlib

    with Image.open(path) as opened:
        photo = opened.convert("RGB")
    edge = min(photo.size)
    left, top = (photo.width - edge) / 2, (photo.height - edge) / 2
    boxes = [(left + x * edge, top + y * edge, left + (x + s) * edge, top + (y + s) * edge) for x, y, s in VIEWS]
    views = [np.array(photo.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)) for box in boxes]
    pixels = torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float() / 255
    pixels[3] = pixels[3].flip(-1)
    return (pixels - MEAN) / DEVIATION


def as_seen(pixels: Tensor) -> Tensor:
    """Colours from 0 to 1 of standardised `pixels` [..., 3, height, width]."""
    return (pixels * DEVIATION + MEAN).clamp(0, 1)
