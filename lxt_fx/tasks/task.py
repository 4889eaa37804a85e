"""What a model is for: where its outputs have the numbers that people ask about, and what these are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.inputs.facts import placeholders_of
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A number to explain: a scalar tensor with its autograd graph, the phrase that says which it is, a short label."""

    value: Tensor
    said: str
    label: str


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What a task must know beside the output of a call: the reading (function that was called, class of the model, names
    of the classes, positions of the logits), the model's config, the inputs by name with those inside dicts by their own
    names, and the tokenizer (`NO_TOKENIZER` if there is none)."""

    reading: Reading
    config: Any
    inputs: Mapping[str, Any]
    tokenizer: Tokenizer
    plain_gradient: bool = False

    @property
    def function(self) -> str:
        """The function that was called, for error messages."""
        return self.reading.function

    @property
    def hidden(self) -> frozenset[int]:
        """The ids of tokens in whose place pictures or sounds are put: a person's text does not have them."""
        beside = self.has("pixel_values", "pixel_values_videos", "input_features", "input_values")
        return placeholders_of(self.config) if beside else frozenset()

    @property
    def model_class(self) -> str:
        """The class of the model."""
        return self.reading.model_class

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; () if they are not known."""
        return tuple(self.reading.labels)

    def has(self, *names: str) -> bool:
        """Whether the call has one of these inputs."""
        return any(name in self.inputs for name in names)


class Task(Protocol):
    """How targets are found in the output of a model with one kind of head."""

    @property
    def name(self) -> str:
        """What the model is for, in a word."""

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """The number that a target means for example `index` of the output's batch.

        Raises InputError for a target that the output does not have, with the ones that it has.
        """
