"""The op that moves a value to the device of the part of a model that reads it."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt_fx.ops.library import define


@define("to_device(Tensor self, Device device) -> Tensor")
def to_device(self: Tensor, device: torch.device) -> Tensor:
    """`self` on that device, itself if it is there. The backward moves the gradient back."""
    return self.to(device)
