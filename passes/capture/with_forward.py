"""A module with another forward for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside the block this module, and no other of its class, has this forward. What it had before, that of its class or
    one of its own, it has again afterwards."""
    attributes = vars(module)
    was_set, own = "forward" in attributes, attributes.get("forward")
    attributes["forward"] = forward
    try:
        yield
    finally:
        if was_set:
            attributes["forward"] = own
        else:
            attributes.pop("forward", None)
