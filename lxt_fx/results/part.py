"""One input of an explanation: its relevance with named axes, and the input as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.one_line import one_line
from lxt_fx.results.readings import ImageReading, NumbersReading, Reading, SoundReading, TextReading

TARGET = "target"
"""The axis of the explained numbers."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Part:
    """The relevance of each place of one input.

    `name` is what a person calls the input (`text`, `image`, `sound`, `answer`, `text a`), or its name in the model where
    there is no better one. `axes` names the dimensions of `values`: ("position",) for a text, ("row", "column") for pixels,
    ("time",) for a sound, ("feature",) for numbers, and before it "target" where a list of targets was explained. `values`
    is on the CPU and at least float32. `units` is the same before it was summed over what stands at a place (hidden units
    of an embedding, colour channels, mel bands), with the last axis "unit"; None where it was not asked for.

    Raises InputError where these do not fit one another.
    """

    name: str
    axes: tuple[str, ...]
    values: Tensor
    reading: Reading
    units: Tensor | None = None

    def __post_init__(self) -> None:
        shape, places = list(self.values.shape), self.place_shape
        if len(self.axes) != self.values.dim() or not places:
            self._refuse(f"values of shape {shape} have the axes {list(self.axes)}")
        if self.values.dtype not in (torch.float32, torch.float64) or self.values.device.type != "cpu":
            self._refuse(f"values are {self.values.dtype} on {self.values.device}, not float32 or float64 on the CPU")
        if not self.values.numel():
            self._refuse("there is no place")
        if self.units is not None and list(self.units.shape[:-1]) != shape:
            self._refuse(f"units of shape {list(self.units.shape)} do not belong to values of shape {shape}")
        wanted = _shape_of(self.reading)
        if wanted is not None and wanted != places:
            self._refuse(f"the reading has {list(wanted)} places, and the values {list(places)}")

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(f"part {self.name!r} of an explanation: {why}")

    @property
    def several(self) -> bool:
        """Whether the first axis is that of the explained numbers."""
        return self.axes[:1] == (TARGET,)

    @property
    def place_axes(self) -> tuple[str, ...]:
        """The axes of the places alone."""
        return self.axes[1:] if self.several else self.axes

    @property
    def place_shape(self) -> tuple[int, ...]:
        """The number of places along each of their axes."""
        return tuple(self.values.shape[1:] if self.several else self.values.shape)

    @property
    def kind(self) -> str:
        """`text`, `image`, `sound` or `numbers`."""
        return KINDS[type(self.reading)]

    def by_number(self) -> Tensor:
        """The values with the axis of the numbers, of length 1 where there is none."""
        return self.values if self.several else self.values[None]

    def place(self, flat: int) -> tuple[int | tuple[int, ...], str]:
        """The place with this index in order: its position along its axis (along each, if there are several), and its name
        for a person: the token, `row 3, column 5`, `0.32 s`."""
        found = tuple(int(i) for i in torch.unravel_index(torch.tensor(flat), self.place_shape))
        return (found[0] if len(found) == 1 else found), place_name(self, found)

    def __repr__(self) -> str:
        size = " x ".join(
            f"{n} {axis}s" if n != 1 else f"1 {axis}" for n, axis in zip(self.values.shape, self.axes, strict=True)
        )
        return f"Part({one_line(self.name, 60)!r}, {size})"


KINDS: dict[type, str] = {TextReading: "text", ImageReading: "image", SoundReading: "sound", NumbersReading: "numbers"}


def place_name(part: Part, index: Sequence[int]) -> str:
    """What a person calls the place with this index along each axis."""
    if isinstance(part.reading, TextReading):
        return part.reading.tokens[index[0]]
    if isinstance(part.reading, SoundReading):
        return f"{part.reading.start + index[0] * part.reading.step:.4g} s"
    if isinstance(part.reading, NumbersReading) and part.reading.names:
        flat = 0
        for i, size in zip(index, part.place_shape, strict=True):
            flat = flat * size + i
        return part.reading.names[flat]
    return ", ".join(f"{axis} {i}" for axis, i in zip(part.place_axes, index, strict=True))


def _shape_of(reading: Reading) -> tuple[int, ...] | None:
    """The number of places that a reading has along each axis; None where it does not say."""
    if isinstance(reading, TextReading):
        count = len(reading.tokens)
        tuples = (reading.ids, reading.special, reading.segments, reading.spans)
        if any(found is not None and len(found) != count for found in tuples) or not 0 <= reading.answer <= count:
            raise InputError(
                f"reading of a text of {count} tokens: ids, special, segments, spans or answer have another length"
            )
        return (count,)
    if isinstance(reading, ImageReading):
        height, width, _ = reading.shown.shape
        return -(-height // reading.side), -(-width // reading.side)
    return None


def named_part(parts: Sequence[Part], name: str) -> Part:
    """The part with this name. Raises InputError that lists the names."""
    found = next((part for part in parts if part.name == name), None)
    if found is None:
        raise InputError(
            f"an explanation has no part {name!r}; the parts are {', '.join(repr(part.name) for part in parts)}"
        )
    return found
