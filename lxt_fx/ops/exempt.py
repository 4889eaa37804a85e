"""The op around what a model computes in a `torch.autocast` block of its own, switched off or with a dtype.

A graph has no such blocks. Under the caller's autocast, an op of the block reads its operands through `exempt`, in float64,
which autocast leaves alone, and its result returns to its dtype. Elsewhere nothing changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lxt_fx.base.autocast import DEVICES, autocast_off
from lxt_fx.ops.library import LIBRARY, define


@define("exempt(Tensor self, ScalarType? dtype=None) -> Tensor")
def exempt(self: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """y = x. Under autocast without a dtype: x in float64, for an op that autocast is to leave alone; with one: its result,
    in the dtype that it has without autocast."""
    return self.view_as(self)


def _under_autocast(self: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    if dtype is None and self.dtype is torch.get_autocast_dtype(self.device.type):
        return self.view_as(self)  # autocast would not cast it
    with autocast_off():
        return self.to(torch.float64 if dtype is None else dtype)


for _device in DEVICES:
    if _device != "mps":  # it has no float64
        LIBRARY.impl("exempt", _under_autocast, f"Autocast{_device.upper()}")  # type: ignore[no-untyped-call]
