"""Places that are summed: tokens to words, pixels to patches, steps of a sound to longer ones. Sums stay what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.results.part import Part, named_part
from lxt_fx.results.readings import ImageReading, Reading, SoundReading, TextReading
from lxt_fx.results.words import Span, segments, sentences, shown_alone, spans, words

Merge = Literal["words", "sentences", "segments", "patches"]

GROUPS = {"words": words, "sentences": sentences, "segments": segments}

MERGE = "Explanation.merge"


def merged_parts(
    parts: Sequence[Part], what: Merge | Sequence[Span] | None, patch: int | None, seconds: float | None, name: str | None
) -> tuple[Part, ...]:
    """The parts with larger places, as `Explanation.merge` describes it."""
    if isinstance(what, str) and what not in (*GROUPS, "patches"):
        raise InputError(f"{MERGE}: {what!r} is not words, sentences, segments or patches; spans are a list: [{what!r}]")
    if what is None and patch is None and seconds is None:
        raise InputError(f"{MERGE}: say what: 'words', 'sentences', a list of spans, patch=16, seconds=0.5")
    chosen = [named_part(parts, name)] if name is not None else list(parts)
    merged: dict[str, Part] = {}
    if what is not None and what != "patches":
        merged |= _texts(chosen, what)
    if patch is not None or what == "patches":
        merged |= _pictures(chosen, patch)
    if seconds is not None:
        need(chosen, "sound", MERGE)
        sounds = [(part, part.reading) for part in chosen if isinstance(part.reading, SoundReading)]
        merged |= {part.name: merged_steps(part, reading, seconds, MERGE) for part, reading in sounds}
    return tuple(merged.get(part.name, part) for part in parts)


def need(parts: Sequence[Part], kind: str, where: str) -> None:
    """Raises InputError where no part is of this kind."""
    if all(part.kind != kind for part in parts):
        said = ", ".join(f"{part.name!r} ({part.kind})" for part in parts)
        raise InputError(f"{where}: there is no {kind} in this explanation; the parts are {said}")


def _texts(parts: Sequence[Part], what: Merge | Sequence[Span]) -> dict[str, Part]:
    need(parts, "text", MERGE)
    texts = [(part, part.reading) for part in parts if isinstance(part.reading, TextReading)]
    if isinstance(what, str):
        return {part.name: merged_tokens(part, reading, GROUPS[what](reading)) for part, reading in texts}
    wanted = list(what)
    if not wanted:
        raise InputError(f"{MERGE}: the list of spans is empty")
    if len(texts) > 1 and any(not isinstance(span, str) for span in wanted):
        names = [part.name for part, _ in texts]
        raise InputError(f"{MERGE}: the spans (start, end) may be of any of the texts {names}; give part={names[0]!r}, say")
    found, lost = {}, []
    for part, reading in texts:
        groups, missing = spans(reading, wanted, MERGE)
        found[part.name] = merged_tokens(part, reading, groups)
        lost.append(missing)
    if nowhere := set.intersection(*lost):
        raise InputError(f"{MERGE}: {sorted(nowhere)[0]!r} is not in the text; strings are found as they stand there")
    return found


def _pictures(parts: Sequence[Part], patch: int | None) -> dict[str, Part]:
    need(parts, "image", MERGE)
    images = [(part, part.reading) for part in parts if isinstance(part.reading, ImageReading)]
    sides = {part.name: patch if patch is not None else max(reading.patch, reading.side) for part, reading in images}
    return {part.name: merged_pixels(part, reading, sides[part.name], MERGE) for part, reading in images}


def merged_tokens(part: Part, reading: TextReading, groups: Sequence[range]) -> Part:
    """The text part whose places are these groups of tokens."""
    whole = shown_alone(reading.tokens)
    first = len(reading.tokens) - reading.answer
    one_each = len(groups) == len(reading.tokens)
    spans = reading.spans and tuple(_span([reading.spans[at] for at in group]) for group in groups)
    merged = replace(
        reading,
        tokens=tuple(
            "".join(whole[at] for at in group) if len(group) > 1 else reading.tokens[group[0]] for group in groups
        ),
        ids=reading.ids if one_each else None,
        special=tuple(all(reading.special[at] for at in group) for group in groups),
        segments=tuple(reading.segments[group.start] for group in groups),
        answer=sum(group.start >= first for group in groups),
        spans=spans,
    )
    index = torch.tensor([number for number, group in enumerate(groups) for _ in group])
    axis = len(part.axes) - 1
    return _summed(part, lambda values: _index_sum(values, index, len(groups), axis), merged)


def merged_pixels(part: Part, reading: ImageReading, patch: int, where: str) -> Part:
    """The image part whose places are squares of `patch` x `patch` pixels; those at the right and lower edges may be
    smaller."""
    if patch < 1:
        raise InputError(f"{where}: patch must be at least 1 pixel, got {patch}")
    if patch % reading.side:
        raise InputError(
            f"{where}: a place is a square of {reading.side} x {reading.side} pixels already; give a patch that is a "
            f"multiple of {reading.side}, got {patch}"
        )
    times = patch // reading.side
    rows = torch.arange(part.place_shape[0]) // times
    columns = torch.arange(part.place_shape[1]) // times
    axis = len(part.axes) - 2

    def squares(values: Tensor) -> Tensor:
        down = _index_sum(values, rows, int(rows[-1]) + 1, axis)
        return _index_sum(down, columns, int(columns[-1]) + 1, axis + 1)

    return _summed(part, squares, replace(reading, side=patch)) if times > 1 else part


def merged_steps(part: Part, reading: SoundReading, seconds: float, where: str) -> Part:
    """The sound part whose places are as many steps as come nearest to `seconds`."""
    if not seconds > 0:
        raise InputError(f"{where}: seconds must be more than 0, got {seconds}")
    times = max(1, round(min(seconds / reading.step, 2**31)))
    index = torch.arange(part.place_shape[0]) // times
    axis = len(part.axes) - 1
    longer = replace(reading, step=reading.step * times)
    return _summed(part, lambda values: _index_sum(values, index, int(index[-1]) + 1, axis), longer) if times > 1 else part


def _summed(part: Part, total: Callable[[Tensor], Tensor], reading: Reading) -> Part:
    return replace(
        part, values=total(part.values), units=None if part.units is None else total(part.units), reading=reading
    )


def _index_sum(values: Tensor, index: Tensor, count: int, axis: int) -> Tensor:
    """Sums in float64, where the sum of a few float32 numbers is exact."""
    shape = list(values.shape)
    shape[axis] = count
    return torch.zeros(shape, dtype=torch.float64).index_add_(axis, index, values.double())


def _span(spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    real = [span for span in spans if span != (0, 0)]
    return (min(start for start, _ in real), max(end for _, end in real)) if real else (0, 0)
