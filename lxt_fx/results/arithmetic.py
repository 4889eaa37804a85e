"""Differences and sums of explanations, place by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.results.origin import ExplainedNumber
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, SoundReading, TextReading

WORDS = {1: ("plus", "+"), -1: ("minus", "−")}
CLOSE = 3
"""Two pictures are the same if no channel differs by more than this of 255: each model rounds in its own way."""


def combined_parts(one: Sequence[Part], other: Sequence[Part], sign: int) -> tuple[Part, ...]:
    """The sum (`sign` 1) or difference (-1) of parts. Raises InputError that says how the places differ."""
    if (why := mismatch(one, other)) is not None:
        raise InputError(
            f"explanation {WORDS[sign][0]} explanation: {why}; only relevance of the same places can be compared"
        )
    return tuple(_combined(a, b, sign) for a, b in zip(one, other, strict=True))


def combined_numbers(
    one: Sequence[ExplainedNumber], other: Sequence[ExplainedNumber], sign: int
) -> tuple[ExplainedNumber, ...]:
    """The explained numbers of a sum or difference."""
    word, mark = WORDS[sign]
    return tuple(
        ExplainedNumber(
            f"{a.said} {word} {_after(a.said, b.said)}", a.value + sign * b.value, f"{a.label} {mark} {b.label}"
        )
        for a, b in zip(one, other, strict=True)
    )


def mismatch(one: Sequence[Part], other: Sequence[Part]) -> str | None:
    """How the places of two explanations differ; None if they are the same."""
    names, others = [part.name for part in one], [part.name for part in other]
    if names != others:
        return f"one is about {', '.join(names)}, the other about {', '.join(others)}"
    return next((why for a, b in zip(one, other, strict=True) if (why := _part_mismatch(a, b)) is not None), None)


def _combined(a: Part, b: Part, sign: int) -> Part:
    units = None
    if a.units is not None and b.units is not None and a.units.shape == b.units.shape:
        units = a.units + sign * b.units
    return replace(a, values=a.values + sign * b.values, units=units)


def _part_mismatch(a: Part, b: Part) -> str | None:
    if a.several != b.several or a.several and len(a.values) != len(b.values):
        numbers = [f"{len(part.values)} numbers" if part.several else "one number" for part in (a, b)]
        return f"one explains {numbers[0]}, the other {numbers[1]}"
    one, other = a.reading, b.reading
    if isinstance(one, TextReading) and isinstance(other, TextReading):
        return _token_mismatch(a.name, one.tokens, other.tokens)
    if type(one) is not type(other) or a.place_axes != b.place_axes:
        kinds = [f"{part.kind} with the axes {list(part.place_axes)}" for part in (a, b)]
        return f"{a.name!r} is {kinds[0]} in one and {kinds[1]} in the other"
    if a.place_shape != b.place_shape:
        return f"{a.name!r} has {_size(a)} in one and {_size(b)} in the other"
    if isinstance(one, ImageReading) and isinstance(other, ImageReading):
        return _picture_mismatch(a.name, one, other)
    if isinstance(one, SoundReading) and isinstance(other, SoundReading):
        return _sound_mismatch(a.name, one, other)
    if isinstance(one, NumbersReading) and isinstance(other, NumbersReading):
        return _token_mismatch(a.name, one.names, other.names)
    return None


def _token_mismatch(name: str, one: Sequence[str], other: Sequence[str]) -> str | None:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return f"place {at} of {name!r} is {a!r} in one and {b!r} in the other"
    if len(one) != len(other):
        longer, at = max(one, other, key=len), min(len(one), len(other))
        return (
            f"{name!r} has {len(one)} places in one and {len(other)} in the other; place {at} is {longer[at]!r} in one only"
        )
    return None


def _picture_mismatch(name: str, one: ImageReading, other: ImageReading) -> str | None:
    if one.shown.shape != other.shown.shape or one.side != other.side:
        sizes = [f"{list(r.shown.shape[:2])} pixels in squares of {r.side}" for r in (one, other)]
        return f"{name!r} has {sizes[0]} in one and {sizes[1]} in the other"
    apart = (one.shown.int() - other.shown.int()).abs().amax(-1)
    if int(apart.max()) <= CLOSE:
        return None
    row, column = (int(i) for i in torch.unravel_index(apart.argmax(), apart.shape))
    return f"{name!r} shows another picture in one than in the other, most at row {row}, column {column}"


def _sound_mismatch(name: str, one: SoundReading, other: SoundReading) -> str | None:
    if (one.step, one.start) != (other.step, other.start):
        return f"{name!r} has steps of {one.step:.4g} s in one and of {other.step:.4g} s in the other, or starts elsewhere"
    if one.waveform is not None and other.waveform is not None and not _same(one.waveform, other.waveform):
        return f"{name!r} is another sound in one than in the other"
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), atol=1e-4)


def _size(part: Part) -> str:
    return " x ".join(f"{n} {axis}s" for n, axis in zip(part.place_shape, part.place_axes, strict=True))


def _after(one: str, said: str) -> str:
    """What the second number is called beside the first: two models or tables are often asked for the same."""
    if one == said:
        return "the same"
    return f"({said})" if " minus " in f" {said}" or " plus " in said else said
