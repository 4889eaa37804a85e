"""The units that are removed at once: tokens, patches of an image, or single elements of the leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.faithfulness.batch_inputs import BatchInputs

Unit = Literal["token", "feature"] | int
"""What is removed at once: a token [hidden], one element, or a square patch of an image, given by its side in pixels."""


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """How parts of an input are removed, for `perturbation_curves` and `tune`.

    `unit` is what is removed at once: `"token"`, `"feature"` (a single element), or the side of a square patch of pixels.
    None means tokens for [examples, tokens, hidden], the model's `patch_size` for [examples, channels, height, width], else
    features. `spared` [examples, units] or [units] marks units that are never removed (`<bos>`, a mask to be filled);
    padding by `attention_mask` is always spared. A removed unit is set to `baseline` (a number, or a tensor that broadcasts
    to one example of the leaf); no position is deleted. Units are removed in `steps` equal steps, rounded to whole units.
    The model runs on `batch` examples at once.

    Raises InputError if `steps` or `batch` is no whole number of at least 1.
    """

    unit: Unit | None = None
    spared: Tensor | None = None
    baseline: float | Tensor = 0.0
    steps: int = 8
    batch: int = 32

    def __repr__(self) -> str:
        def said(value: object) -> str:
            return f"a tensor {list(value.shape)}" if isinstance(value, Tensor) else repr(value)

        facts = (f"{name}={said(getattr(self, name))}" for name in ("unit", "spared", "baseline", "steps", "batch"))
        return f"Removal({', '.join(facts)})"

    def __post_init__(self) -> None:
        for name, count in (("steps", self.steps), ("batch", self.batch)):
            if not isinstance(count, int) or isinstance(count, bool) or count < 1:
                raise InputError(f"Removal: {name} must be a whole number of at least 1, got {count!r}")


def check_removal(removal: Removal, moved: Mapping[str, object], function: str) -> None:
    """Raises InputError for an argument that became a field of `Removal` (until 0.3) and for a `removal` of another type,
    and TypeError for an argument that never existed."""
    fields = [name for name in Removal.__dataclass_fields__ if name in moved]
    if fields:
        given = ", ".join(f"{name}=..." for name in fields)
        raise InputError(
            f"{function}: {', '.join(fields)} moved to lxt_fx.Removal in 0.2; write removal=lxt_fx.Removal({given})"
        )
    if moved:
        raise TypeError(f"{function}() got an unexpected keyword argument {next(iter(moved))!r}")
    if not isinstance(removal, Removal):
        raise InputError(
            f"{function}: removal must be a lxt_fx.Removal, such as lxt_fx.Removal(steps=8), got {type(removal).__name__}"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Units:
    """How the elements of one example of the leaf, which has this `shape`, form units. `removable` [examples, units] marks
    the units that may be removed, `baseline` replaces a removed one. Error messages name the `function`."""

    unit: Unit
    shape: torch.Size
    removable: Tensor
    baseline: Tensor
    function: str

    @property
    def said(self) -> str:
        """`tokens`, `2 x 2 patches`."""
        return f"{self.unit} x {self.unit} patches" if isinstance(self.unit, int) else f"{self.unit}s"

    def scores(self, relevance: Tensor, leaf: Tensor) -> Tensor:
        """Relevance by unit [examples, units], in float64 on the CPU.

        Raises InputError for relevance of another shape, and for relevance that is not finite.
        """
        return units_scores(self.unit, leaf, relevance, self.function)

    def without_absent(self, leaf: Tensor, present: Tensor) -> Tensor:
        """The leaf [n, ...] with the baseline in every unit where `present` [n, units] is False."""
        return without_absent(self.unit, leaf, present, self.baseline)


def without_absent(unit: Unit, leaf: Tensor, present: Tensor, baseline: Tensor) -> Tensor:
    """A leaf [n, ...] with the baseline, which broadcasts to it, in every unit where `present` [n, units] is False."""
    if isinstance(unit, int):
        patches = present.view(len(present), 1, leaf.shape[2] // unit, leaf.shape[3] // unit)
        mask = patches.repeat_interleave(unit, 2).repeat_interleave(unit, 3)
    elif unit == "token":
        mask = present.view(len(present), -1, *[1] * (leaf.dim() - 2))
    else:
        mask = present.view(leaf.shape)
    return torch.where(mask.to(leaf.device), leaf, baseline)


def units_scores(unit: Unit, leaf: Tensor, relevance: Tensor, function: str) -> Tensor:
    """Relevance of the shape of a leaf [examples, ...], or of one summed over hidden units or channels, by unit: [examples,
    units], in float64 on the CPU. Error messages name the `function`.

    Raises InputError for relevance of another shape, and for relevance that is not finite.
    """
    full = list(leaf.shape)
    summed = {"token": full[:2], "feature": full}.get(str(unit), [full[0], *full[2:]])
    shape = list(relevance.shape) if isinstance(relevance, Tensor) else None
    if shape not in (full, summed):
        got = f"has shape {shape}" if shape is not None else f"is a {type(relevance).__name__}"
        also = f" or, summed, {summed}" if summed != full else ""
        raise InputError(
            f"{function}: relevance {got}, but the leaf has {full}; give relevance of this shape{also}, such as leaf * "
            "leaf.grad"
        )
    values = relevance.detach().double().cpu()
    if not bool(values.isfinite().all()):
        raise InputError(f"{function}: relevance has NaN or infinity, which cannot be ordered; fix that first")
    if isinstance(unit, int):
        pixels = values.sum(1) if shape == full else values
        return nn.functional.avg_pool2d(pixels[:, None], unit, divisor_override=1).flatten(1)
    return values.flatten(2).sum(2) if unit == "token" and values.dim() > 2 else values.flatten(1)


def units_of(inputs: BatchInputs, removal: Removal) -> Units:
    """The units of the leaf.

    Raises InputError if they do not divide it, or if `spared` or `baseline` does not fit.
    """
    leaf = inputs.values
    shape = leaf.shape[1:]
    chosen = _unit(inputs, removal.unit)
    value = torch.as_tensor(removal.baseline, dtype=leaf.dtype, device=leaf.device)
    fits = value.dim() <= len(shape) and all(
        own in (1, wanted) for own, wanted in zip(reversed(value.shape), reversed(shape), strict=False)
    )
    if not fits or not bool(value.isfinite().all()):
        raise InputError(
            f"{inputs.function}: baseline {list(value.shape)} must be finite and broadcast to one example of the leaf, "
            f"{list(shape)}; an image's channels are [channels, 1, 1]"
        )
    if isinstance(chosen, int):
        count = (shape[1] // chosen) * (shape[2] // chosen)
    else:
        count = shape[0] if chosen == "token" else shape.numel()
    return Units(chosen, shape, _removable(inputs, count, removal.spared, chosen), value, inputs.function)


def _unit(inputs: BatchInputs, unit: Unit | None) -> Unit:
    shape, name = inputs.values.shape, inputs.leaf
    if unit is None:
        unit = _default_unit(inputs)
    if isinstance(unit, int) and not isinstance(unit, bool):
        if len(shape) != 4 or unit < 1 or shape[2] % unit or shape[3] % unit:
            raise InputError(
                f"{inputs.function}: {name} {list(shape)} is no batch of images [examples, channels, height, width] that "
                f"patches of {unit} x {unit} pixels divide; give a side that divides height and width"
            )
    elif unit not in ("token", "feature"):
        raise InputError(f"{inputs.function}: unit must be 'token', 'feature' or the side of a patch, got {unit!r}")
    return unit


def _default_unit(inputs: BatchInputs) -> Unit:
    shape = inputs.values.shape
    if len(shape) != 4:
        return "token" if len(shape) == 3 else "feature"
    side = getattr(getattr(inputs.model, "config", None), "patch_size", None)
    if isinstance(side, int):
        return side
    if inputs.leaf.endswith("embeds"):
        raise InputError(
            f"{inputs.function}: {inputs.leaf} {list(shape)} is looked up by tokens of more dims than [examples, tokens]; "
            "say what to remove: unit='token' removes all along dim 1 (whole sentences of [examples, sentences, tokens]), "
            "unit='feature' single elements"
        )
    raise InputError(
        f"{inputs.function}: {inputs.leaf} {list(shape)} is a batch of images and the model's config has no patch_size; "
        "say how large a removed patch is: unit=8, the pixels of its side"
    )


def _removable(inputs: BatchInputs, count: int, spared: Tensor | None, unit: Unit) -> Tensor:
    removable = torch.ones(inputs.examples, count, dtype=torch.bool)
    padding = inputs.named.get("attention_mask")
    if unit == "token" and isinstance(padding, Tensor) and list(padding.shape) == [inputs.examples, count]:
        removable &= padding.cpu() != 0
    if spared is not None:
        known = f"{spared.dtype} {list(spared.shape)}" if isinstance(spared, Tensor) else type(spared).__name__
        if known not in (f"torch.bool [{count}]", f"torch.bool [{inputs.examples}, {count}]"):
            raise InputError(
                f"{inputs.function}: spared must be a tensor of bools, one for each unit, [{inputs.examples}, {count}] or "
                f"[{count}]; got {known}"
            )
        removable &= ~spared.cpu()
    if not bool(removable.any(1).all()):
        example = int((~removable.any(1)).nonzero()[0])
        raise InputError(f"{inputs.function}: no unit of example {example} may be removed; spare fewer")
    return removable
