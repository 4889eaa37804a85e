"""A weight in a file, mapped into memory."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

_PAGE = 4096
"""The bytes of a page of a file in memory, or a part of one."""


def from_file(file: Path, name: str) -> Tensor:
    """The tensor of that name in a safetensors file, with its pages in memory."""
    from safetensors import safe_open

    with safe_open(str(file), "pt") as opened:
        return with_pages(opened.get_tensor(name))


def with_pages(tensor: Tensor) -> Tensor:
    """The tensor itself. If it is mapped from a file, its pages are read here, by one number of each, and not when they are
    computed with."""
    if tensor.is_contiguous():
        tensor.reshape(-1)[:: max(1, _PAGE // tensor.itemsize)].clone()
    return tensor
