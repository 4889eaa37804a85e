"""Other libraries that the bridges lead to, where they are installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest


def needs(library: str) -> pytest.MarkDecorator:
    """Skips a test, and says so, where the library is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


@contextmanager
def without_torchvision() -> Iterator[None]:
    """zennit's package imports torchvision for the classes of four models, and Quantus imports zennit where it is there.
    Inside the block torchvision is an empty module, unless it is installed."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    names = ("torchvision", "torchvision.models", "torchvision.models.resnet", "torchvision.models.vgg")
    empty = type("Empty", (ModuleType,), {"__getattr__": lambda self, name: type(name, (), {})})
    sys.modules.update({name: empty(name) for name in names})
    sys.modules["torchvision"].__spec__ = importlib.util.spec_from_loader("torchvision", None)
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
