"""Many targets in the output of one forward: the entry of each target for each example, and its value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from lxt_fx.attribution.target import TargetFunction, Wanted
from lxt_fx.attribution.target_entry import Reading, check_shape, indices_of, logits_of, name_of, place_of
from lxt_fx.attribution.text_input import TextInput
from lxt_fx.base.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """For each example and target an entry of the logits [batch, targets, entries]: `first`, minus `second` for a contrast.
    Both are [batch, targets]. `second` is -1 for a target that is no contrast, and None if none is."""

    first: Tensor
    second: Tensor | None

    def of(self, logits: Tensor) -> Tensor:
        """The numbers [batch, targets]."""
        less = self._less(logits)
        return _at(logits, self.first) if less is None else _at(logits, self.first) - less

    def ends(self, logits: Tensor, form: str) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors at which a backward starts, and what it starts with: 1 and -1 in gradient form, the logit and minus
        the second logit in explicit form."""
        less = self._less(logits)
        ends = [_at(logits, self.first), *([] if less is None else [less])]
        sizes = [torch.ones_like(end) if form == "gradient" else end.detach() for end in ends]
        return ends, [sizes[0], *(-size for size in sizes[1:])]

    def _less(self, logits: Tensor) -> Tensor | None:
        """What is subtracted; 0 for a target without a second entry."""
        if self.second is None:
            return None
        found = _at(logits, self.second.clamp(min=0))
        return torch.where(self.second >= 0, found, torch.zeros_like(found))


def _at(logits: Tensor, entries: Tensor) -> Tensor:
    return logits.gather(2, entries[..., None])[..., 0]


class Numbers(Protocol):
    """The numbers that one forward is explained for."""

    @property
    def entries_only(self) -> bool:
        """Whether each number is an entry of the logits [batch, positions, entries], or a difference of two. Only then
        `places` and `entries` are called, and only if the head of the model can run alone."""

    def places(self, count: int, batch: int) -> Tensor:
        """The position of each entry among the `count` positions of the logits, [batch, targets]."""

    def entries(self, logits: Tensor, part: range) -> Entries:
        """The entries of the targets of a part, in their logits [batch, targets of the part, entries]. The parts come in
        order and together are all targets."""

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        """What the backward starts at, with its graph: [targets], each summed over the examples that it may be summed over.
        And the values, [targets, ...]. Raises InputError for a target that the output does not have."""


@dataclass(frozen=True, slots=True, eq=False)
class BatchTargets:
    """The targets that every example is explained for: a list, or one function that returns all numbers. `texts` has one
    text for each example, or is empty."""

    reading: Reading
    targets: TargetFunction | Sequence[Wanted | TargetFunction]
    texts: Sequence[TextInput]

    @property
    def wanted(self) -> list[Wanted]:
        """The targets that are entries of the logits, not functions."""
        return [] if callable(self.targets) else [target for target in self.targets if isinstance(target, Wanted)]

    @property
    def entries_only(self) -> bool:
        """Whether no target is a function."""
        return not callable(self.targets) and len(self.wanted) == len(self.targets)

    def places(self, count: int, batch: int) -> Tensor:
        """The position of each entry among the `count` positions of the logits, [batch, targets].

        Raises InputError for a position that the logits do not have.
        """
        return torch.tensor([self._places(count, self._text(example)) for example in range(batch)])

    def _places(self, count: int, text: TextInput | None) -> list[int]:
        known: dict[int | None, int] = {}  # the default position is looked up once, not once for each target
        for target in self.wanted:
            if target.position not in known:
                known[target.position] = place_of(self.reading, target, count, text)
        return [known[target.position] for target in self.wanted]

    def entries(self, logits: Tensor, part: range) -> Entries:
        """The entries that the targets of a part mean in their logits [batch, targets, entries], or in logits [batch,
        classes], which all targets share."""
        wanted = self.wanted[part.start : part.stop]
        found = [self._indices(wanted, each, self._text(example)) for example, each in enumerate(logits)]
        first = torch.tensor([[indices[0] for indices in each] for each in found], device=logits.device)
        if all(len(indices) == 1 for each in found for indices in each):
            return Entries(first, None)
        second = [[indices[1] if len(indices) > 1 else -1 for indices in each] for each in found]
        return Entries(first, torch.tensor(second, device=logits.device))

    def _indices(self, wanted: Sequence[Wanted], logits: Tensor, text: TextInput | None) -> list[tuple[int, ...]]:
        """The entries of each target in the logits of one example, [targets, entries] or [classes]."""
        names = self.reading.names(text if logits.dim() == 2 else None)
        by_target = logits if logits.dim() == 2 else logits.expand(len(wanted), -1)
        return [indices_of(target, own, names) for target, own in zip(wanted, by_target, strict=True)]

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        """The explained numbers summed over examples, [targets], with their autograd graph; and the numbers themselves:
        [targets, batch] if all targets are entries of the logits, else the sums again. Raises InputError for targets that
        do not fit the output."""
        if callable(self.targets):
            values = _vector(self.reading, self.targets, output)
            return values, values
        picked = self._picked(logits_of(self.reading, output)).T if self.wanted else torch.empty(0)
        if self.entries_only:
            return picked.sum(1), picked
        entries = iter(picked)
        numbers = [
            next(entries) if isinstance(target, Wanted) else _number(self.reading, target, output)
            for target in self.targets
        ]
        totals = torch.stack([number.sum() for number in numbers])
        return totals, totals

    def _picked(self, logits: Tensor) -> Tensor:
        """The value of each entry, [batch, targets]."""
        count = check_shape(self.reading, self.wanted, logits)
        every = range(len(self.wanted))
        if count is None:
            entries = self.entries(logits, every)
            return entries.of(logits[:, None].expand(-1, len(self.wanted), -1))
        places = self.places(count, len(logits)).to(logits.device)
        chosen = logits[torch.arange(len(logits), device=logits.device)[:, None], places]
        return self.entries(chosen, every).of(chosen)

    def _text(self, example: int) -> TextInput | None:
        return self.texts[example] if self.texts else None


def _vector(reading: Reading, function: TargetFunction, output: Any) -> Tensor:
    values = function(output)
    if isinstance(values, Tensor) and values.dim() == 1 and len(values):
        return values
    got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
    raise InputError(
        f"{reading.function}: the target function {name_of(function)} must return a vector of numbers [targets], got {got}"
    )


def _number(reading: Reading, function: TargetFunction, output: Any) -> Tensor:
    value = function(output)
    if isinstance(value, Tensor) and value.dim() <= 1 and value.numel():
        return value
    got = f"shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise InputError(
        f"{reading.function}: in a list of targets the function {name_of(function)} must return one number, or one for "
        f"each example [batch], got {got}"
    )
