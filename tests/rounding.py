"""Equal numbers, where the same ops ran twice.

Which kernel runs, and so in which order it sums, is up to the processor, the number of threads, and where the operands lie:
a matrix product takes another path for weights whose address is no multiple of 64, as those of a loaded file are. So
`torch.equal` is asked of copies, selections, zeros and whole numbers; of all that went through a kernel, this."""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDINGS = 1e-6
"""Of the largest value. A rounding of float32 is 1.2e-7; models in float64 cast their norms to float32 too, so
that the last bit of a float64 value may decide a bit of float32."""


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = ROUNDINGS) -> None:
    """Fails where two tensors differ by more than roundings."""
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * largest)
