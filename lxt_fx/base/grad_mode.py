"""Gradients on for the length of a block, whatever the caller had."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def gradients_on() -> Iterator[None]:
    """Gradients on, also inside the caller's `no_grad` or `inference_mode`, which is as before afterwards."""
    with torch.inference_mode(False), torch.enable_grad():
        yield
