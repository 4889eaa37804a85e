"""What a model is for: where its outputs have the numbers that people ask about, and what these are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lxt_fx.attribution.target import TargetFunction, Wanted
from lxt_fx.inputs.given import Example


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A number to explain: a scalar tensor with its autograd graph, the phrase that says which it is, a short label."""

    value: Tensor
    said: str
    label: str


class Task(Protocol):
    """How targets are found in the output of a model with one kind of head."""

    name: str

    def number(self, target: Wanted | TargetFunction, output: Any, index: int, example: Example) -> Number:
        """The number that a target means for example `index` of the output's batch.

        Raises InputError for a target that the output does not have, with the ones that it has.
        """
