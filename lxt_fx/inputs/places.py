"""The kinds of places: how the relevance of a leaf becomes that of a text, a picture, a sound, or numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.wide import at_least_float32
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, SoundReading, TextReading


@dataclass(frozen=True, slots=True, eq=False)
class TextPlace:
    """A text. `ids` [tokens] are those of the whole row of the batch with its padding, None if embeddings were given.
    `own` are the columns of the row that are the example's own, `columns` those of them that are shown: all but the
    tokens in whose place a picture or a sound is put. `row` are all inputs of this row by name, for who reads them."""

    leaf: str
    name: str
    within: int
    reading: TextReading
    columns: tuple[int, ...]
    own: tuple[int, ...]
    ids: Tensor | None
    tokenizer: Any = None
    row: Mapping[str, Tensor] = field(default_factory=dict)

    def token_at(self, column: int) -> str | None:
        """The token in this column of the row as a person reads it; None if it is not shown."""
        return self.reading.tokens[self.columns.index(column)] if column in self.columns else None

    def part(self, relevance: Tensor) -> Part:
        """[targets, tokens, *units] as the relevance of each token that is shown."""
        if relevance.dim() < 2 or relevance.shape[1] <= max(self.own):
            raise InputError(
                f"{self.leaf}: relevance {list(relevance.shape)} does not say where each of {len(self.own)} tokens is"
            )
        shown = _wide(relevance)[:, list(self.columns)]
        units = shown.flatten(2) if shown.dim() > 2 else shown[..., None]
        return Part(self.name, ("target", "position"), units.sum(-1), self.reading, units)


@dataclass(frozen=True, slots=True, eq=False)
class ImagePlace:
    """A picture [channels, height, width], or one of several crops of it that the model sees side by side."""

    leaf: str
    name: str
    within: int
    reading: ImageReading
    crop: int | None = None

    def part(self, relevance: Tensor) -> Part:
        """[targets, channels, height, width] as the relevance of each pixel; [targets, crops, ...] if there are crops."""
        picture = _wide(relevance if self.crop is None else relevance[:, self.crop])
        if picture.dim() != 4:
            raise InputError(f"{self.leaf}: relevance {list(relevance.shape)} is not one of [channels, height, width]")
        units = picture.permute(0, 2, 3, 1)
        return Part(self.name, ("target", "row", "column"), units.sum(-1), self.reading, units)


@dataclass(frozen=True, slots=True, eq=False)
class PatchGrid:
    """How a picture of `times` x `rows` x `columns` patches lies in a list of patches: those of a square of `merge` x
    `merge` follow one another. A patch is [channels, depth, side, side], flat; a still picture fills its whole depth."""

    times: int
    rows: int
    columns: int
    merge: int
    depth: int
    side: int

    @property
    def count(self) -> int:
        """How many patches there are."""
        return self.times * self.rows * self.columns

    def picture(self, patches: Tensor) -> Tensor:
        """[..., patches, values] as [..., channels, frames, height, width]."""
        lead, merge, depth, side = patches.shape[:-2], self.merge, self.depth, self.side
        channels, across = patches.shape[-1] // (depth * side**2), (self.rows // merge, self.columns // merge)
        blocks = patches.reshape(-1, self.times, *across, merge, merge, channels, depth, side, side)
        laid = blocks.permute(0, 6, 1, 7, 2, 4, 8, 3, 5, 9)
        return laid.reshape(*lead, laid.shape[1], self.times * self.depth, self.rows * side, self.columns * side)


@dataclass(frozen=True, slots=True, eq=False)
class PatchesPlace:
    """A picture, or a video, that the model takes as a list of flat patches."""

    leaf: str
    name: str
    within: slice
    reading: ImageReading
    grid: PatchGrid

    def part(self, relevance: Tensor) -> Part:
        """[targets, patches, values] as the relevance of each pixel; of each frame, if there are several."""
        laid = self.grid.picture(_wide(relevance))
        if self.grid.times == 1:
            units = laid.sum(2).permute(0, 2, 3, 1)
            return Part(self.name, ("target", "row", "column"), units.sum(-1), self.reading, units)
        units = laid.permute(0, 2, 3, 4, 1)
        return Part(self.name, ("target", "frame", "row", "column"), units.sum(-1), self.reading, units)


@dataclass(frozen=True, slots=True, eq=False)
class SoundPlace:
    """A sound. `time` is the dim of the leaf [batch, ...] that is time. Every `bin` of its entries are one place (1 for
    frames, many for single samples). `count` are the entries that are the sound's own and no padding.

    The silence up to the length that a model is made for (Whisper: 30 s) is no padding: the model hears it."""

    leaf: str
    name: str
    within: int
    reading: SoundReading
    time: int
    bin: int
    count: int

    def part(self, relevance: Tensor) -> Part:
        """[targets, *dims without the batch] as the relevance of each step of time."""
        units = _wide(relevance).movedim(self.time, 1)[:, : self.count]
        units = units.flatten(2) if units.dim() > 2 else units[..., None]
        by_time = units.sum(-1)
        if self.bin == 1:
            return Part(self.name, ("target", "time"), by_time, self.reading, units)
        bins = torch.nn.functional.pad(by_time, (0, -self.count % self.bin))
        bins = bins.reshape(len(bins), -1, self.bin)
        return Part(self.name, ("target", "time"), bins.sum(-1), self.reading, bins)


@dataclass(frozen=True, slots=True, eq=False)
class NumbersPlace:
    """Numbers of any other kind, as the model takes them."""

    leaf: str
    name: str
    within: int
    reading: NumbersReading

    def part(self, relevance: Tensor) -> Part:
        """[targets, *dims without the batch] with a name for each dim."""
        values = _wide(relevance)
        dims = values.dim() - 1
        inner = () if dims == 0 else ("feature",) if dims == 1 else ("position", "feature")
        axes = inner if dims <= 2 else tuple(f"dim {dim}" for dim in range(dims))
        return Part(self.name, ("target", *axes), values, self.reading)


def _wide(relevance: Tensor) -> Tensor:
    return at_least_float32(relevance.detach().cpu())
