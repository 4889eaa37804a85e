"""Which positions of a text are steered: what a caller may ask for, checked."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError

SteeredPositions = Literal["last"] | int | Sequence[int] | slice | Tensor
"""The last position, one, several, a slice, or a mask [tokens] or [examples, tokens] that is true where to steer."""


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The positions as `lxt_fx::steered` takes them; all of them where nothing is given."""

    at: tuple[int, ...] | None = None
    span: tuple[int, int, int] | None = None
    mask: Tensor | None = None

    @property
    def all(self) -> bool:
        """Whether every position is steered."""
        return self.at is None and self.span is None and self.mask is None


def chosen_positions(given: Any, function: str) -> Chosen:
    """Raises InputError, in the name of `function`, for what are no positions."""
    if given is None:
        return Chosen()
    if isinstance(given, Tensor):
        if given.dtype is not torch.bool or given.dim() not in (1, 2):
            raise InputError(
                f"{function}: a mask of positions is a bool tensor [tokens] or [examples, tokens], got {list(given.shape)} "
                f"of {given.dtype}; positions themselves are given as whole numbers"
            )
        return Chosen(mask=given.detach().clone())
    if isinstance(given, slice):
        return Chosen(span=_span(given, function))
    if isinstance(given, str):
        if given == "last":
            return Chosen(at=(-1,))
        raise InputError(
            f"{function}: positions={given!r} is not known, since a call does not say where a prompt ends; for a prompt of "
            "n tokens give slice(0, n), for what is generated behind it slice(n, None)"
        )
    several = [given] if isinstance(given, int) else given
    whole = isinstance(several, (list, tuple, range)) and all(map(_is_whole, several))
    if not whole or not several:
        raise InputError(
            f'{function}: positions must be None (all), "last", whole numbers, a slice or a mask, got {given!r}'
        )
    return Chosen(at=tuple(several))


def _span(given: slice, function: str) -> tuple[int, int, int]:
    step = 1 if given.step is None else given.step
    ends = (0 if given.start is None else given.start, sys.maxsize if given.stop is None else given.stop)
    if not all(map(_is_whole, (*ends, step))) or step < 1:
        raise InputError(f"{function}: positions must be a slice of whole numbers with a step above 0, got {given!r}")
    return (*ends, step)


def _is_whole(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool)
