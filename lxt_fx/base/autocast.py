"""torch's autocast: whether it is on, and switched off inside a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from lxt_fx.base.torch_internals import any_autocast

DEVICES = ("cpu", "cuda", "mps", "xpu")
"""The device types whose autocast our ops follow."""


@contextmanager
def autocast_off() -> Iterator[None]:
    """Inside the block every op runs in the dtype of its operands, also under the caller's `torch.autocast`, which is
    restored."""
    with ExitStack() as stack:
        if any_autocast():
            for device in DEVICES:
                if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                    stack.enter_context(torch.autocast(device, enabled=False))
        yield
