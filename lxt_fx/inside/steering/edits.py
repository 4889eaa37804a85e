"""What `steer` does to a value inside a model: scale, add, clamp, ablate_mean.

They stand in a module of their own (`lxt_fx.edits.scale(0)`), because alone their names would not say what they change.

Every edit is y = a x + c with constants a and c, element by element: relevance flows through a as through any scale, and c
absorbs its share as a bias does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lxt_fx.attribution.place_axes import unit_axis
from lxt_fx.attribution.places import InsidePlace
from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import fixed_size
from lxt_fx.base.one_line import one_line
from lxt_fx.inside.units import check_units, units_of

Amount = float | Tensor
Units = int | Sequence[int] | Tensor
Kind = Literal["scale", "add", "clamp", "ablate_mean"]


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Edit:
    """What is done to the units of a place. `units` are indices of its last axis, or of its axis of heads, negative ones
    from the end; None means all of them. `amount` is a number, or a tensor with one number for each of these units,
    [units]; at a place with heads also [units, size]. It is copied. Raises InputError for what is none of these."""

    kind: Kind
    amount: Amount
    units: tuple[int, ...] | None

    def __init__(self, kind: Kind, amount: Amount, units: Units | None = None) -> None:
        if kind not in get_args(Kind):
            raise InputError(f"edits: kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
        _check_amount(kind, amount)
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "amount", amount.detach().clone() if isinstance(amount, Tensor) else amount)
        object.__setattr__(self, "units", None if units is None else _units(units, kind))

    def __repr__(self) -> str:
        amount = f"{list(self.amount.shape)}" if isinstance(self.amount, Tensor) else f"{self.amount:g}"
        units = "" if self.units is None else f", units={one_line(str(list(self.units)), 60)}"
        return f"{self.kind}({amount}{units})"

    def of(self, units: Mapping[str, Units]) -> dict[str, Edit]:
        """This edit for each place of a mapping from places to units, such as the top units of a latent result:

            with lxt_fx.steer(explained, lxt_fx.edits.scale(0).of({"mlp.11.neurons": [17, 512], "mlp.12.neurons": [3]})):

        Raises InputError if the edit has units of its own, and for what are no units.
        """
        if self.units is not None:
            raise InputError(f"edits: {self!r} has units of its own; leave units= out to take those of a mapping")
        if not isinstance(units, Mapping):
            raise InputError(f"edits: of() takes a mapping from places to units, got {type(units).__name__}")
        return {place: Edit(self.kind, self.amount, chosen) for place, chosen in units.items()}


def scale(factor: Amount, units: Units | None = None) -> Edit:
    """Multiplies: 0 switches units off, 2 doubles them. `factor` is a number or a tensor with one for each unit, [units].

    Raises InputError for an amount that is NaN or infinite, and for units that are no whole numbers.
    """
    return Edit("scale", factor, units)


def add(vector: Amount, units: Units | None = None) -> Edit:
    """Adds a number, or a vector with one number for each unit, [units]: a direction of the residual stream, say. Raises
    what `scale` raises."""
    return Edit("add", vector, units)


def clamp(value: Amount, units: Units | None = None) -> Edit:
    """Sets units to a value, whatever finite number they were. No relevance flows back through them: it stays with the
    value. Raises what `scale` raises."""
    return Edit("clamp", value, units)


def ablate_mean(mean: Tensor, units: Units | None = None) -> Edit:
    """Sets units to their mean over some data, [units]: what they say on average, and nothing of this input (mean
    ablation). Raises what `scale` raises, and InputError for a mean that is no tensor."""
    if not isinstance(mean, Tensor):
        raise InputError(
            f"edits: ablate_mean takes the mean of each unit as a tensor [units], got {type(mean).__name__}; for one "
            "number for all units take clamp"
        )
    return Edit("ablate_mean", mean, units)


def _check_amount(kind: Kind, amount: Any) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float, Tensor)):
        raise InputError(f"edits: {kind} takes a number or a tensor, got {type(amount).__name__}")
    if isinstance(amount, Tensor):
        if not amount.is_floating_point():
            raise InputError(f"edits: {kind} got a tensor of {amount.dtype}; give one of the model's floating-point dtype")
        bad = 0 if amount.is_meta else amount.numel() - int(torch.isfinite(amount).sum())
        if bad:
            raise InputError(f"edits: {kind} got a tensor in which {bad} of {amount.numel()} numbers are NaN or infinite")
    elif not math.isfinite(amount):
        raise InputError(f"edits: {kind} got {amount}, which is no finite number")


def _units(given: Any, kind: str) -> tuple[int, ...]:
    if isinstance(given, Tensor):
        if given.dim() > 1 or given.is_floating_point() or given.dtype is torch.bool:
            raise InputError(
                f"edits: units of {kind} must be indices [units], got a tensor {list(given.shape)} of {given.dtype}; a "
                "mask becomes indices by mask.nonzero()[:, 0]"
            )
        given = given.tolist()
    several = [given] if isinstance(given, int) else given
    if isinstance(several, (str, bytes)) or not isinstance(several, Sequence):
        raise InputError(f"edits: units of {kind} must be an index or a list of them, got {given!r}")
    if wrong := [unit for unit in several if isinstance(unit, bool) or not isinstance(unit, int)]:
        raise InputError(f"edits: units of {kind} must be whole numbers, got {wrong[0]!r}")
    if not several:
        raise InputError(f"edits: units of {kind} is empty; leave it out to take all units")
    return tuple(several)


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """y = factor x + shift on a place; None stands for 1 and 0. Both broadcast to the value there."""

    factor: Tensor | None
    shift: Tensor | None


@torch.inference_mode(False)  # a block's first call may be in that mode, and a later one asks for relevance
def affine(edit: Edit, place: InsidePlace, like: Any, function: str) -> Affine:
    """The edit in numbers, for a place whose value is like this tensor. Raises InputError, in the name of `function`, where
    units, shape, dtype or device do not fit."""
    axis = unit_axis(place.axes)
    sizes = [fixed_size(size) for size in like.shape]
    count = sizes[axis]
    if count is None:
        raise InputError(
            f"{function}: the {place.axes[axis]} of {place.name} are not of a fixed number, so they are no units; its axes "
            f"are {', '.join(place.axes)}"
        )
    if edit.units is not None:
        check_units(place, function)
    units = units_of(edit.units, count, place.name, function)
    behind = sizes[axis + 1 :]
    amount = _amount(edit, place, like, len(units), behind, function)
    size = [1] * len(behind)
    if isinstance(amount, Tensor) and amount.dim() > 1:
        size[-1] = amount.shape[1]
    index = torch.tensor(units, device=like.device)

    def spread(found: Amount, elsewhere: float) -> Tensor:
        full = torch.full([count, *size], elsewhere, dtype=like.dtype, device=like.device)
        full[index] = found.reshape(-1, *size) if isinstance(found, Tensor) else found
        return full

    if edit.kind == "scale":
        return Affine(spread(amount, 1.0), None)
    shift = spread(amount, 0.0)
    if edit.kind == "add":
        return Affine(None, shift)
    factor = torch.ones([count, *[1] * len(behind)], dtype=like.dtype, device=like.device)
    factor[index] = 0.0
    return Affine(factor, shift)


def _amount(edit: Edit, place: InsidePlace, like: Any, units: int, behind: list[int | None], function: str) -> Amount:
    """The number, or a tensor [units] or [units, size], checked."""
    amount = edit.amount
    if not isinstance(amount, Tensor):
        if abs(amount) > torch.finfo(like.dtype).max:
            raise InputError(
                f"{function}: the edit {edit!r} is beyond what {place.name} can hold ({like.dtype}, up to "
                f"{torch.finfo(like.dtype).max:g})"
            )
        return float(amount)
    fitting = [[units], [units, behind[-1]]] if behind and behind[-1] is not None else [[units]]
    if amount.dim() == 0:
        amount = amount.expand(units)
    if list(amount.shape) not in fitting:
        wanted = " or ".join(map(str, fitting))
        raise InputError(
            f"{function}: the edit {edit!r} has a tensor {list(amount.shape)}, and at {place.name} it changes {units} "
            f"{place.axes[unit_axis(place.axes)]}; give a number or a tensor {wanted}"
        )
    if amount.dtype is not like.dtype or amount.device != like.device:
        raise InputError(
            f"{function}: the edit {edit!r} has a tensor of {amount.dtype} on {amount.device}, and {place.name} is of "
            f"{like.dtype} on {like.device}; give it as tensor.to({str(like.device)!r}, {like.dtype})"
        )
    return amount
