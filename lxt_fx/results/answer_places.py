"""The places of the matrix of an answer: where the answer stands among them, and one row of numbers as parts again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.results.answer_flow import AnswerFlow
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.kinds import AnswerRelevance
from lxt_fx.results.look import muted
from lxt_fx.results.part import TARGET, Part
from lxt_fx.results.readings import TextReading
from lxt_fx.results.selecting import of_places
from lxt_fx.results.words import Span, sentences, spans, words

AnswerUnits = Literal["tokens", "words", "sentences"]


def parts_of(matrix: Explanation, values: Tensor) -> tuple[Part, ...]:
    """Values [places] or [numbers, places] of all parts one after another, as parts."""
    several, sizes = values.dim() > 1, [part.values[0].numel() for part in matrix.parts]
    return tuple(
        replace(
            part, axes=(TARGET, *part.place_axes) if several else part.place_axes, units=None,
            values=own.reshape(*values.shape[:-1], *part.place_shape),
        )
        for part, own in zip(matrix.parts, torch.split(values, sizes, -1), strict=True)
    )  # fmt: skip


def holder(matrix: Explanation, where: str) -> Part:
    """The part with the answer at its end."""
    if not isinstance(matrix, AnswerRelevance):
        raise InputError(
            f"{where}: what flows through an answer needs its matrix, one explained number for each of its tokens, as "
            "answer_relevance returns it; it must not be merged or cut"
        )
    return matrix.parts[holder_index(matrix)]


def holder_index(found: Explanation) -> int:
    """Which part has the answer: the last text with one."""
    texts = [at for at, part in enumerate(found.parts) if isinstance(part.reading, TextReading) and part.reading.answer]
    return texts[-1]


def first_of(found: Explanation) -> int:
    """The first place of the answer among those of all parts."""
    at = holder_index(found)
    held, before = found.parts[at], found.parts[:at]
    places = sum(part.by_number()[0].numel() for part in before)
    return places + held.place_shape[0] - reading_of(held).answer


def flow_of(matrix: Explanation, without: tuple[str | int, ...], where: str) -> AnswerFlow:
    """The matrix as M. Raises InputError where it is not finite, where a token of the answer has relevance from itself or a
    later one, and for a position in `without` that the text does not have."""
    held = holder(matrix, where)
    count = len(matrix.numbers)
    if not all(bool(part.values.isfinite().all()) for part in matrix.parts):
        raise InputError(f"{where}: the relevance is not finite, so it has no shares")
    if bool(held.values[:, -count:].triu().any()):
        raise InputError(
            f"{where}: an answer token has relevance from itself or a later one, so there is no order to go by"
        )
    check_without(without, held.place_shape[0], where)
    left_out = torch.cat([_left_out_of(part, part is held, without) for part in matrix.parts])
    return AnswerFlow([part.values for part in matrix.parts], first_of(matrix), left_out)


def check_without(without: Sequence[str | int], count: int, where: str) -> None:
    """Raises InputError for "last", and for a position that a text of so many tokens does not have."""
    if "last" in without:
        raise InputError(
            f"{where}: without='last' is another token for each token of the answer, and a column of the matrix is left "
            "out for all of them; give its position"
        )
    if outside := [at for at in without if isinstance(at, int) and not -count <= at < count]:
        raise InputError(f"{where}: without={outside[0]} is no position of a text of {count} tokens")


def _left_out_of(part: Part, held: bool, without: tuple[str | int, ...]) -> Tensor:
    """[places]: those through which nothing flows. Positions are of the text that holds the answer."""
    if not isinstance(part.reading, TextReading):
        return torch.zeros(part.values[0].numel(), dtype=torch.bool)
    own = [each for each in without if held or isinstance(each, str)]
    return muted(part.reading, own, len(part.reading.tokens))


def of_input(matrix: Explanation, values: Tensor) -> tuple[Part, ...]:
    """The parts with these values [numbers, places], without the answer."""
    at = holder_index(matrix)
    found = list(parts_of(matrix, values))
    reading = reading_of(found[at])
    found[at] = of_places(found[at], [slice(0, len(reading.tokens) - reading.answer)], "the input of an answer")
    return tuple(found)


def groups_of(reading: TextReading, units: AnswerUnits | Iterable[Span], where: str) -> list[range]:
    """The tokens of the answer, counted from its first, by unit. Raises InputError for other units, and for spans that are
    not in the text."""
    first = len(reading.tokens) - reading.answer
    if not isinstance(units, str):
        found, lost = spans(reading, units, where)
        if lost:
            raise InputError(f"{where}: {sorted(lost)[0]!r} is not in the text")
    elif units not in ("tokens", "words", "sentences"):
        raise InputError(f"{where}: units are tokens, words, sentences or a list of spans, got {units!r}")
    else:
        one_each = tuple(range(at, at + 1) for at in range(len(reading.tokens)))
        found = one_each if units == "tokens" else words(reading) if units == "words" else sentences(reading)
    return [range(max(group.start, first) - first, group.stop - first) for group in found if group.stop > first]


def reading_of(part: Part) -> TextReading:
    """The text of a part that has an answer."""
    assert isinstance(part.reading, TextReading), "an answer stands at the end of a text"
    return part.reading
