"""The lowest and the highest number of a dtype, in the dtype that a tensor has when a graph runs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LIMITS = frozenset(torch.finfo(dtype).max for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16))


def is_limit(number: Any) -> bool:
    """Whether the number is the lowest or the highest of a dtype, as `torch.finfo(dtype).min` is."""
    return isinstance(number, float) and abs(number) in _LIMITS


def limit_of(number: Any, like: Tensor) -> Any:
    """The lowest or highest number of a wider dtype as that of `like`, which autocast may have made narrower: the model
    reads `torch.finfo(like.dtype)` there. `number` may be a 0-dim tensor, in which other numbers stay; so does one of a
    narrower dtype."""
    found = torch.finfo(like.dtype)
    if not isinstance(number, Tensor):
        return min(max(number, found.min), found.max)
    own = torch.finfo(number.dtype)
    if own.max <= found.max:
        return number
    return torch.where(number == own.min, found.min, torch.where(number == own.max, found.max, number))


def mask_limit(dtype: torch.dtype) -> float:
    """A score up to this is a mask: -inf, or the large negative number that models use instead (the lowest of the dtype,
    -1e10, -1e9)."""
    return -6e4 if dtype is torch.float16 else -1e9
