"""The numbers that a call is explained for, as a task and functions of the output find them in the whole output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.many_entries import Entries
from lxt_fx.attribution.target import TargetFunction
from lxt_fx.attribution.target_entry import name_of, said_of
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.task import Context, Number, Task


class OfWholeOutput:
    """Numbers that the whole output is needed for: the head of the model does not run alone, so nobody asks where they
    are."""

    @property
    def entries_only(self) -> bool:
        """False: the whole output is needed."""
        return False

    def places(self, count: int, batch: int) -> Tensor:
        """Not asked for."""
        raise NotImplementedError

    def entries(self, logits: Tensor, part: range) -> Entries:
        """Not asked for."""
        raise NotImplementedError


@dataclass(eq=False)
class TaskNumbers(OfWholeOutput):
    """What is asked of each example, [examples][targets], in any output. With `apart` the numbers of all examples are
    summed for one backward, because each depends on its own example only. `numbers` [examples][targets] are what was found,
    once the forward has run."""

    task: Task | None
    asked: Sequence[Sequence[Asked | TargetFunction]]
    examples: Sequence[Example]
    context: Context
    apart: bool
    numbers: list[list[Number]] = field(default_factory=list)

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        """The numbers summed over examples [targets], and by example [targets, batch]; both [targets * batch] if the
        examples are not apart."""
        self.numbers = [
            [self.number(ask, output, index) for ask in asked] for index, asked in enumerate(self.asked)
        ]
        values = torch.stack([torch.stack([number.value for number in numbers]) for numbers in self.numbers], 1)
        return (values.sum(1), values) if self.apart else (values.flatten(), values.flatten())

    def number(self, ask: Asked | TargetFunction, output: Any, index: int) -> Number:
        """The number that one target means for one example. Raises InputError for what the output does not have."""
        if not isinstance(ask, Asked):
            return _by_function(ask, output, index, len(self.examples), self.context)
        assert self.task is not None, "a target that is no function needs a task"
        return self.task.number(ask, output, index, self.examples[index], self.context)


def _by_function(function: TargetFunction, output: Any, index: int, examples: int, context: Context) -> Number:
    value = function(output)
    if isinstance(value, Tensor) and (value.numel() == 1 if examples == 1 else list(value.shape) == [examples]):
        return Number(value.reshape(-1)[index], said_of(function), name_of(function).strip("<>"))
    got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    each = "one number as a tensor" if examples == 1 else f"one number for each of the {examples} inputs, [{examples}]"
    raise InputError(f"{context.function}: the target function {name_of(function)} must return {each}, got {got}")
