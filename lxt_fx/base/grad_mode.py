"""Gradients on inside a block, whatever the grad mode of the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def gradients_on() -> Iterator[None]:
    """Gradients are on inside the block, also under the caller's `no_grad` or `inference_mode`, which is restored."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
