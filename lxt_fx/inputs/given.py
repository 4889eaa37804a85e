"""The inputs of one call of a model, and how the relevance of each leaf becomes that of what a person gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lxt_fx.results.part import Part


class Place(Protocol):
    """One input of one example. `leaf` is the name of the model's input that it is given as (`input_ids`, `pixel_values`,
    `input_features`), `name` what a person calls it."""

    leaf: str
    name: str

    def part(self, relevance: Tensor) -> Part:
        """The relevance [targets, *places of the leaf of this example, units] of the model's leaf as a part: padding is
        left out, patches are put where they lie in the picture, frames get their time. Its axes start with "target"."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One example of a batch: its inputs as a person reads them, the one that is asked about first."""

    places: tuple[Place, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """The inputs of one call: `inputs` by name, as the model takes them, [batch, ...] on its device; and one `Example` for
    each of the batch. `batched` says whether the person gave a batch (a list), so that a batch is returned."""

    inputs: Mapping[str, Any]
    examples: tuple[Example, ...]
    batched: bool
