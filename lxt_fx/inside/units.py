"""Units of a place: which of its neurons, heads or features are meant."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.places import InsidePlace
from lxt_fx.base.errors import InputError

MANY = 6
"""So many units are named one by one."""


@dataclass(frozen=True, slots=True)
class Only:
    """Some `units` of a place (None: all) at some `positions` of its axis of tokens (None: all)."""

    units: int | Sequence[int] | None = None
    positions: int | Sequence[int] | None = None


UnitsLike = Only | int | Sequence[int] | None
"""Units as a user gives them: an index, several, None for all, or those at some positions."""


def unit_axis(place: InsidePlace) -> int:
    """The axis whose indices are the units of the place: that of its heads, else the last."""
    return place.axes.index("heads") if "heads" in place.axes else len(place.axes) - 1


def units_of(given: Any, count: int, place: str, function: str, what: str = "unit") -> list[int]:
    """The indices that are meant, counted from 0; a negative one counts from the end. Raises InputError for one that there
    is not, for one that comes twice, and for anything that is no index."""
    if given is None:
        return list(range(count))
    items = given.tolist() if isinstance(given, Tensor) else given
    items = items if isinstance(items, (list, tuple, range)) else [items]
    found = []
    for item in items:
        try:
            index = operator.index(item)
        except TypeError:
            index = None
        if index is None or isinstance(item, bool):
            raise InputError(f"{function}: a {what} of {place} is an index, several of them or None, got {item!r:.100}")
        if not -count <= index < count:
            raise InputError(f"{function}: {place} has no {what} {index}; it has {count} (0 to {count - 1})")
        found.append(index % count)
    if len(set(found)) < len(found):
        raise InputError(f"{function}: a {what} of {place} is named twice: {found!r:.100}")
    if not found:
        raise InputError(f"{function}: no {what} of {place} is named; None means all of them")
    return found


def mask_of(given: UnitsLike, place: InsidePlace, value: Tensor, examples: int, function: str) -> Tensor:
    """1 at the units that are meant and 0 elsewhere, in a shape that is broadcast to that of the value."""
    only = given if isinstance(given, Only) else Only(given)
    axis = unit_axis(place)
    mask = _along(value, axis, units_of(only.units, value.shape[axis], place.name, function))
    if only.positions is None:
        return mask
    names = [name for name in ("tokens", "queries", "positions") if name in place.axes]
    if not names or ("batch" not in place.axes and examples > 1):
        raise InputError(f"{function}: {place.name} has the axes {', '.join(place.axes)}; none of them is of tokens alone")
    at = place.axes.index(names[0])
    return mask * _along(value, at, units_of(only.positions, value.shape[at], place.name, function, "position"))


def _along(value: Tensor, axis: int, indices: list[int]) -> Tensor:
    mask = value.new_zeros(value.shape[axis])
    mask[torch.tensor(indices, device=value.device)] = 1
    return mask.reshape([-1 if dim == axis else 1 for dim in range(value.dim())])


def said_of_units(condition: Mapping[str, UnitsLike]) -> str:
    """A condition in a phrase: `neurons 17, 512 of mlp.3.neurons`."""
    return " and ".join(_said(place, units) for place, units in condition.items())


def _said(place: str, given: UnitsLike) -> str:
    only = given if isinstance(given, Only) else Only(given)
    where = "" if only.positions is None else f" at positions {_list(only.positions)}"
    return f"{place}{where}" if only.units is None else f"{place} {_list(only.units)}{where}"


def _list(given: Any) -> str:
    items = given.tolist() if isinstance(given, Tensor) else given
    items = list(items) if isinstance(items, (list, tuple, range)) else [items]
    return ", ".join(map(str, items)) if len(items) <= MANY else f"{', '.join(map(str, items[:MANY]))}, ... ({len(items)})"
