"""Some of the places of a part: tokens from one to another, a piece of a picture, seconds of a sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, Reading, SoundReading, TextReading


def of_number(part: Part, number: int | slice) -> Part:
    """The part for one explained number, without their axis; or for a slice of them."""
    axes = part.axes if isinstance(number, slice) else part.axes[1:]
    return replace(part, axes=axes, values=part.values[number], units=None if part.units is None else part.units[number])


def of_places(part: Part, slices: Sequence[slice], where: str) -> Part:
    """The part with the places of these slices, one for each axis of the places.

    Raises InputError for a slice without a place, a negative step, and a step where places must touch one another.
    """
    picked = tuple(slices) + (slice(None),) * (len(part.place_shape) - len(slices))
    ranges = [range(size)[s] for size, s in zip(part.place_shape, picked, strict=True)]
    touching = isinstance(part.reading, (ImageReading, SoundReading))
    if any(r.step < 1 or touching and r.step > 1 and len(r) > 1 for r in ranges):
        raise InputError(f"{where}: the places of {part.name!r} are sliced in steps of 1{'' if touching else ' or more'}")
    if not all(ranges):
        raise InputError(f"{where}: the slice holds no place of {part.name!r}, which has {list(part.place_shape)}")
    before = (slice(None),) if part.several else ()
    units = None if part.units is None else part.units[before + picked]
    return replace(part, values=part.values[before + picked], units=units, reading=_reading(part, ranges))


def _reading(part: Part, ranges: Sequence[range]) -> Reading:
    reading = part.reading
    if isinstance(reading, TextReading):
        return _tokens(reading, ranges[0])
    if isinstance(reading, ImageReading):
        return _crop(reading, *ranges)
    if isinstance(reading, SoundReading):
        return _piece(reading, ranges[0])
    if not reading.names:
        return reading
    index = torch.arange(len(reading.names)).reshape(part.place_shape)
    for axis, r in enumerate(ranges):
        index = index.index_select(axis, torch.tensor(list(r)))
    return NumbersReading(tuple(reading.names[i] for i in index.flatten().tolist()))


def _tokens(reading: TextReading, at: range) -> TextReading:
    first = len(reading.tokens) - reading.answer
    return replace(
        reading,
        tokens=tuple(reading.tokens[i] for i in at),
        ids=reading.ids and tuple(reading.ids[i] for i in at),
        special=tuple(reading.special[i] for i in at),
        segments=tuple(reading.segments[i] for i in at),
        answer=sum(i >= first for i in at),
        spans=reading.spans and tuple(reading.spans[i] for i in at),
    )


def _crop(reading: ImageReading, rows: range, columns: range) -> ImageReading:
    side = reading.side
    down, across = (slice(r.start * side, r.stop * side) for r in (rows, columns))
    on_grid = down.start % reading.patch == across.start % reading.patch == 0
    pixels: Tensor | None = None if reading.pixel_values is None else reading.pixel_values[:, down, across]
    patch = reading.patch if on_grid else side
    return replace(reading, shown=reading.shown[down, across], patch=patch, pixel_values=pixels)


def _piece(reading: SoundReading, steps: range) -> SoundReading:
    start = reading.start + steps.start * reading.step
    if reading.waveform is None or reading.rate is None:
        return replace(reading, start=start)
    samples = slice(*(round(at * reading.step * reading.rate) for at in (steps.start, steps.stop)))
    return replace(reading, waveform=reading.waveform[samples], start=start)
