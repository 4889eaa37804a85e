"""A sound at another number of samples a second."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ZEROS, EDGE = 16, 0.95
"""Zeros of the sinc on each side, and the share of the lower of both Nyquist frequencies above which is cut."""

AT_ONCE = 2**16
"""New samples that are computed at once."""


def resampled(samples: Tensor, rate: int, wanted: int) -> Tensor:
    """Samples [samples], of which `rate` are a second, as `wanted` a second: [ceil(samples * wanted / rate)] in float32.

    Each new sample is the sum of those around its time, weighted by a sinc under a Hann window (Smith and Gossett, A
    flexible sampling-rate conversion method, 1984). Frequencies that the new rate cannot hold are cut, not folded down.
    """
    edge = EDGE * min(1.0, wanted / rate)
    reach = math.ceil(ZEROS / edge)
    padded = torch.nn.functional.pad(samples.double(), (reach, reach))
    around = torch.arange(1 - reach, reach + 1)
    count, made = math.ceil(len(samples) * wanted / rate), []
    for start in range(0, count, AT_ONCE):
        times = torch.arange(start, min(start + AT_ONCE, count)).double() * rate / wanted
        at = times.long()[:, None] + around
        apart = times[:, None] - at
        weights = edge * torch.sinc(edge * apart) * (apart * math.pi / (2 * reach)).cos().square()
        made.append((padded[at + reach] * weights).sum(1))
    return torch.cat(made).float()
