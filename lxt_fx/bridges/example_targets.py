"""Targets as other libraries write them: an index of each example's output, the batch dimension left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from lxt_fx.attribution.many_entries import Entries
from lxt_fx.base.errors import InputError

Target = int | Tensor | tuple[int, ...] | Sequence[int] | Sequence[tuple[int, ...]] | None
"""For an output [batch, classes] an index for all examples, or one for each (a list, or a tensor [batch]); for an output
[batch, ...] of more dimensions a tuple for all, or a list of tuples; None for an output of one number an example."""


def output_tensor(output: Any, function: str) -> Tensor:
    """The tensor that targets index: the output itself, its `logits`, or the first tensor in it."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    values = list(output.values()) if isinstance(output, Mapping) else output
    found = next((value for value in values if isinstance(value, Tensor)), None) if isinstance(values, Sequence) else None
    if found is None:
        raise InputError(f"{function}: the model returns a {type(output).__name__} without a tensor; give a model of one")
    return found


def chosen(output: Tensor, target: Target, function: str) -> Tensor:
    """The explained number of each example, [batch], from an output [batch, ...].

    Raises InputError for a target that does not fit the output.
    """
    batch, dims = (len(output), output.dim()) if output.dim() else (1, 1)
    shape, classes = list(output.shape), output.shape[-1] if output.dim() else 1
    if not batch:
        _refuse(function, f"an output {shape} has no example")
    if target is None:
        if output.numel() != batch:
            _refuse(function, f"an output {shape} has several numbers for each example, so it needs a target")
        return output.reshape(batch)
    indices = _plain(target)
    if isinstance(target, Tensor) and isinstance(indices, Sequence) and len(indices) == 1:
        indices = indices[0]
    each = list(indices) if isinstance(indices, Sequence) and not isinstance(indices, tuple) else [indices] * batch
    if len(each) != batch:
        _refuse(function, f"{len(each)} targets for {batch} examples; give one for each, or one for all")
    found = []
    for example, index in enumerate(each):
        place = index if isinstance(index, tuple) else (index,)
        if any(isinstance(at, bool) or not isinstance(at, int) for at in place):
            _refuse(function, f"target {index!r} is no index")
        if len(place) != dims - 1:
            _refuse(function, f"an output {shape} takes {dims - 1} indices for each example, and the target is {index!r}")
        if any(not -size <= at < size for at, size in zip(place, output.shape[1:], strict=True)):
            _refuse(function, f"target {index!r} is outside of an output {shape} (of {classes} entries)")
        found.append(output[(example, *place)])
    return torch.stack(found)


def _plain(target: Any) -> Any:
    """The target with whole numbers of Python in the place of tensors and numbers of NumPy."""
    if isinstance(target, tuple | list):
        return type(target)(map(_plain, target))
    return target.tolist() if hasattr(target, "tolist") else target


def _refuse(function: str, why: str) -> NoReturn:
    raise InputError(f"{function}: {why}")


class ExampleNumbers:
    """One explained number of each example (`attribution.many_targets.Numbers`)."""

    entries_only = False

    def __init__(self, target: Target, function: str) -> None:
        self.target, self.function = target, function

    def places(self, count: int, batch: int) -> Tensor:
        """Only for numbers that are entries of the logits."""
        raise NotImplementedError

    def entries(self, logits: Tensor, part: range) -> Entries:
        """Only for numbers that are entries of the logits."""
        raise NotImplementedError

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        """The sum over the examples, which do not depend on one another, [1], twice."""
        total = chosen(output_tensor(output, self.function), self.target, self.function).sum()[None]
        return total, total
