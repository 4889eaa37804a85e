"""The inputs of one call of a model, and how the relevance of each leaf becomes that of what a person gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lxt_fx.results.part import Part


class Place(Protocol):
    """One input of one example. `leaf` is the name of the model's input that it is given as (`input_ids`, `pixel_values`,
    `input_features`), `name` what a person calls it. `within` is where it lies in the first dim of that input: mostly the
    index of the example; a slice where the model takes the patches of all pictures in one list."""

    @property
    def leaf(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def within(self) -> int | slice: ...

    def part(self, relevance: Tensor) -> Part:
        """The relevance [targets, *dims of this place in the leaf] as a part. Of token ids these dims are [tokens, units],
        of any other input they are its own without the first (`pixel_values`: [channels, height, width]). Padding is left
        out, patches are put where they lie in the picture, frames get their time. Its axes start with "target"."""


@dataclass(frozen=True, slots=True, eq=False)
class Example:
    """One example of a batch: its inputs as a person reads them, the one that is asked about first. `answer` are the ids
    of the answer that an encoder-decoder predicts: the last `len(answer)` tokens of the decoder's text predict them."""

    places: tuple[Place, ...]
    answer: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Given:
    """The inputs of one call: `inputs` by name, as the model takes them, [batch, ...] on its device; and one `Example` for
    each thing that a person asked about. `batched` says whether they gave a batch (a list), so that a batch is returned."""

    inputs: Mapping[str, Any]
    examples: tuple[Example, ...]
    batched: bool


def part_of(place: Place, relevance: Tensor) -> Part:
    """A place's part, from the relevance of its whole leaf [targets, *leaf], of ids [targets, batch, tokens, units]."""
    return place.part(relevance[:, place.within])
