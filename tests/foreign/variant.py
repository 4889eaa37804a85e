"""What a variant is, and the inputs that variants share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import zoo_models
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Variant:
    """`make` draws a model from torch's generator; `inputs` are the arguments of its forward by name, or make them."""

    make: Callable[[], nn.Module]
    inputs: dict[str, Any]
    gain: float = 1.0

    def build(self) -> tuple[nn.Module, dict[str, Any]]:
        """The model in float32 and eval mode with seeded parameters (none is 0 or tiny: a branch scaled by 0 would show
        nothing), and its arguments. The same ones each time."""
        torch.manual_seed(0)
        model = self.make().eval().float()
        zoo_models.fill(model, 1, self.gain)
        torch.manual_seed(2)
        return model, dict(self.inputs)


def floats(*shape: int, seed: int = 3) -> Tensor:
    """Normally distributed, float32."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def image(size: int = 32, channels: int = 3, batch: int = 2) -> Tensor:
    """[batch, channels, size, size]"""
    return floats(batch, channels, size, size)


def ids(length: int = 12, vocabulary: int = 50, batch: int = 2) -> Tensor:
    """[batch, length], without the tokens 0 to 2 (padding and the like)."""
    return torch.randint(3, vocabulary, (batch, length), generator=torch.Generator().manual_seed(4))
