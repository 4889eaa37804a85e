"""What was asked of each example of a call: one number or several, as targets in plain values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.target import Target, TargetFunction, Wanted, is_list, several_targets
from lxt_fx.base.errors import InputError

Spot = int | tuple[int, int] | Tensor
"""Where a number is read: a position of a text, a box, a pixel as (row, column), or a mask [rows, columns] of pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A checked target: the entry with this index or name, minus a second one for a contrast, at this spot. None means what
    the task explains by default."""

    entry: int | str | None = None
    minus: int | str | None = None
    spot: Spot | None = None

    def at_position(self, function: str) -> Wanted:
        """The target in a text. Raises InputError for a spot in a picture."""
        if self.spot is not None and not isinstance(self.spot, int):
            raise InputError(f"{function}: a position of a text is one number, got {_shown(self.spot)}")
        return Wanted(self.entry, self.minus, self.spot)

    def refuse_spot(self, function: str, why: str) -> None:
        """Raises InputError if the target names a spot."""
        if self.spot is not None:
            raise InputError(f"{function}: the target names a position ({_shown(self.spot)}), but {why}; leave it out")


def asked_of(given: Any, examples: int, batched: bool, function: str) -> tuple[list[list[Asked | TargetFunction]], bool]:
    """The targets of each example [examples][targets], and whether there is an axis of targets: whether a list was given.

    For one input a list has several targets. For a list of inputs, a list has the target of each input, which may be a list
    of several, as many for each. Raises InputError for a list of another length, and for what is no target.
    """
    if not is_list(given):
        return [[_one(given, function)] for _ in range(examples)], False
    items: Sequence[Any] = given if isinstance(given, list) else getattr(given, "tolist", lambda: given)()
    if not items:
        raise InputError(f"{function}: the list of targets is empty; leave target out for the model's own answer")
    if not batched:
        return [[_one(item, function) for item in items]], True
    if len(items) != examples:
        raise InputError(
            f"{function}: {len(items)} targets for {examples} inputs; give one target for all, a list with one for each, "
            f"or for several targets of every input a list of lists: [[...]] * {examples}"
        )
    several = any(is_list(item) for item in items)
    found = [[_one(each, function) for each in (item if is_list(item) else [item])] for item in items]
    if len({len(each) for each in found}) > 1 or not found[0]:
        counts = ", ".join(str(len(each)) for each in found)
        raise InputError(f"{function}: each input needs as many targets as the others, at least one; got {counts}")
    return found, several


def _one(given: Any, function: str) -> Asked | TargetFunction:
    if isinstance(given, Target) and _in_a_picture(given.position):
        spot = given.position
        rest = several_targets(replace(given, position=None), function)
        return replace(_plain(rest), spot=_spot(spot))
    if is_list(given):
        raise InputError(f"{function}: a list of targets inside of a list of targets, {given!r}, has no meaning here")
    if callable(given) and not isinstance(given, Target):
        return given  # type: ignore[no-any-return]
    if isinstance(given, tuple) and len(given) == 2 and not any(isinstance(part, str) for part in given):
        given = Target(*given)  # a pair of indices is a contrast, as a pair of names is
    return _plain(several_targets(given, function))


def _plain(found: Any) -> Asked:
    (wanted,) = found
    return Asked(wanted.token, wanted.minus, wanted.position)


def _in_a_picture(position: Any) -> bool:
    return isinstance(position, tuple) or getattr(position, "ndim", 0) == 2


def _spot(position: Any) -> Spot:
    if isinstance(position, tuple):
        row, column = position
        return int(row), int(column)
    return torch.as_tensor(position).bool()


def _shown(spot: Spot) -> str:
    return f"a mask {list(spot.shape)}" if isinstance(spot, Tensor) else str(spot)
