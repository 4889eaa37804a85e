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
from lxt_fx.inside.laid_out import LaidOut
from lxt_fx.inside.tokens import TextTokens

MANY = 6
"""So many units are named one by one."""


@dataclass(frozen=True, slots=True)
class Only:
    """Some `units` of a place (None: all) at some `positions` (None: all). Positions count the tokens of each text, without
    its padding, and a negative one counts from the end; of what is no text they are indices of the axis of tokens."""

    units: int | Sequence[int] | None = None
    positions: int | Sequence[int] | None = None


UnitsLike = Only | int | Sequence[int] | None
"""Units as a user gives them: an index, several, None for all, or those at some positions."""


def units_of(given: Any, count: int, place: str, function: str, what: str = "unit") -> list[int]:
    """The indices that are meant, counted from 0; a negative one counts from the end. Raises InputError for one that there
    is not, for one that comes twice, and for anything that is no index."""
    if given is None:
        return list(range(count))
    items = given.tolist() if hasattr(given, "tolist") else given
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


def check_units(place: InsidePlace, function: str) -> None:
    """Raises InputError for a place that holds the neurons of several experts: an index means another neuron in each."""
    axes, experts = place.axes, ("entries", "experts")
    if any(name in axes[:-1] for name in experts):
        raise InputError(
            f"{function}: {place.name} [{', '.join(axes)}] holds the neurons of several experts, and an index is another "
            "neuron in each of them, so it is no unit of the model; take experts.*.weights or mlp.*.output, or the whole "
            "of this place"
        )


def mask_of(
    given: UnitsLike,
    place: InsidePlace,
    value: Tensor,
    laid: LaidOut,
    texts: Sequence[TextTokens] | None,
    function: str,
) -> Tensor:
    """1 at the units that are meant and 0 elsewhere, in a shape that is broadcast to that of the value. Positions are those
    of the `texts`, one for each entry of the batch, or indices of the axis of tokens where these are None."""
    only = given if isinstance(given, Only) else Only(given)
    if only.units is not None:
        check_units(place, function)
    whole, axis = laid.of(value.detach()), laid.unit_axis
    mask = _one_at(whole, axis, [units_of(only.units, whole.shape[axis], place.name, function)])
    if only.positions is not None:
        at = laid.token_axis
        if at is None or laid.rows is None:
            raise InputError(
                f"{function}: {place.name} has the axes {', '.join(laid.axes)}; none of them is of the tokens of an example"
            )
        columns = [range(whole.shape[at])] if texts is None else [text.columns for text in texts]
        chosen = [
            [own[index] for index in units_of(only.positions, len(own), _named(place, row, columns), function, "position")]
            for row, own in enumerate(columns)
        ]
        mask = mask * _one_at(whole, at, chosen)
    return laid.back(mask, value.shape)


def _named(place: InsidePlace, row: int, rows: Sequence[object]) -> str:
    return place.name if len(rows) == 1 else f"{place.name}, for text {row} of the batch,"


def _one_at(value: Tensor, axis: int, indices: Sequence[Sequence[int]]) -> Tensor:
    """1 at these indices of an axis, for each entry of the batch or for all of them."""
    mask = value.new_zeros(len(indices), value.shape[axis])
    for row, each in enumerate(indices):
        mask[row, torch.tensor(each, device=value.device)] = 1
    return mask.reshape([len(indices) if dim == 0 else -1 if dim == axis else 1 for dim in range(value.dim())])


def said_of_units(condition: Mapping[str, UnitsLike]) -> str:
    """A condition in a phrase: `neurons 17, 512 of mlp.3.neurons`."""
    return " and ".join(_said(place, units) for place, units in condition.items())


def short_units(condition: Mapping[str, UnitsLike]) -> str:
    """A condition as a label: `mlp.3:17`."""
    return " ".join(_label(place, units) for place, units in condition.items())


def _label(place: str, given: UnitsLike) -> str:
    only = given if isinstance(given, Only) else Only(given)
    short = place.rpartition(".")[0] if place.rpartition(".")[2] in ("neurons", "heads", "features") else place
    return short if only.units is None else f"{short}:{_list(only.units)}"


def _said(place: str, given: UnitsLike) -> str:
    only = given if isinstance(given, Only) else Only(given)
    where = "" if only.positions is None else f" at positions {_list(only.positions)}"
    return f"{place}{where}" if only.units is None else f"{place} {_list(only.units)}{where}"


def _list(given: Any) -> str:
    items = given.tolist() if hasattr(given, "tolist") else given
    items = list(items) if isinstance(items, (list, tuple, range)) else [items]
    return ", ".join(map(str, items)) if len(items) <= MANY else f"{', '.join(map(str, items[:MANY]))}, ... ({len(items)})"
