"""Texts of a batch with tokens appended to each: a name that is explained, or an answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import PICTURES, SOUNDS
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.texts import are_special
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading
from lxt_fx.tasks.own_text import OwnText, prefix_of
from lxt_fx.tasks.task import Context


@dataclass(frozen=True, slots=True, eq=False)
class Followed:
    """A text that tokens of an answer were appended to: `place` is the text itself, whose last token stands in column
    `last` of the batch, and `tokens` and `ids` what was appended, of which some are `special`."""

    place: Any
    last: int
    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    special: tuple[bool, ...]

    @property
    def leaf(self) -> str:
        """That of the text."""
        return str(self.place.leaf)

    @property
    def name(self) -> str:
        """That of the text."""
        return str(self.place.name)

    @property
    def within(self) -> int | slice:
        """That of the text."""
        found: int | slice = self.place.within
        return found

    def part(self, relevance: Tensor) -> Part:
        """The part of the text, with the appended tokens behind it as its answer."""
        start, stop = self.last + 1, self.last + 1 + len(self.ids)
        part: Part = self.place.part(torch.cat([relevance[:, :start], relevance[:, stop:]], 1))
        reading, own = part.reading, relevance[:, start:stop]
        assert isinstance(reading, TextReading), f"{self.name} is given as ids, and is no text"
        units = None if part.units is None else torch.cat([part.units, own], 1)
        values = torch.cat([part.values, own.sum(-1)], 1)
        text = with_answer(reading, self.tokens, self.ids, self.special)
        return replace(part, values=values, units=units, reading=text)


def with_answer(
    reading: TextReading, tokens: Sequence[str], ids: Sequence[int], special: Sequence[bool]
) -> TextReading:
    """The text with these tokens behind it as (the end of) its answer."""
    return replace(
        reading,
        tokens=(*reading.tokens, *tokens),
        ids=None if reading.ids is None else (*reading.ids, *ids),
        special=(*reading.special, *special),
        segments=(*reading.segments, *[reading.segments[-1]] * len(ids)),
        answer=reading.answer + len(ids),
        text=None,
        spans=None,
    )


def followed(given: Given, more: Sequence[Sequence[int]], texts: Sequence[OwnText], context: Context) -> Given:
    """The inputs with these tokens behind the last token of each text. Every text is as long as before plus the most that
    is appended to one; masks and token types go on as at the last token (as in an answer where that is another type),
    positions count on.

    Raises InputError if it is not known how another input goes on.
    """
    prefix = prefix_of(context.inputs)
    why = not_followed(given.inputs, prefix)
    if why:
        raise InputError(
            f"{context.function}: tokens are appended to the text, and {why}; leave it out, or append the tokens yourself "
            "and give a function of the output"
        )
    examples = tuple(
        replace(example, places=tuple(_place(place, f"{prefix}input_ids", each, text, context) for place in example.places))
        for example, each, text in zip(given.examples, more, texts, strict=True)
    )
    return replace(given, inputs=followed_inputs(given.inputs, more, texts, context), examples=examples)


def not_followed(inputs: Mapping[str, Any], prefix: str = "") -> str:
    """Why it is not known what an input is for tokens behind the text of this prefix; empty if it is known of all."""
    ids = list(inputs[f"{prefix}input_ids"].shape)
    for key, value in inputs.items():
        name = key.removeprefix(prefix)
        if not isinstance(value, Tensor) or not key.startswith(prefix):
            continue
        if list(value.shape[:2]) == ids and name not in (*FILLS, *_BESIDE):
            return f"it is not known how {name} goes on"
        if list(value.shape) != ids and name in FILLS:
            return f"it is not known how {name} {list(value.shape)} goes on behind a text {ids}"
    return ""


def followed_inputs(
    inputs: Mapping[str, Any], more: Sequence[Sequence[int]], texts: Sequence[OwnText], context: Context
) -> dict[str, Any]:
    """The inputs of `followed` alone, of which `not_followed` knows each."""
    prefix = prefix_of(context.inputs)
    longest, found = max(map(len, more)), dict(inputs)
    lasts = [text.columns[-1] for text in texts]
    ids = found[f"{prefix}input_ids"]
    if any(len(each) < longest for each in more) and f"{prefix}attention_mask" not in found:
        found[f"{prefix}attention_mask"] = torch.ones_like(ids)
    for key, value in found.items():
        if isinstance(value, Tensor) and key.startswith(prefix) and list(value.shape) == list(ids.shape):
            fill, rows = FILLS[key.removeprefix(prefix)], zip(value, lasts, more, strict=True)
            found[key] = torch.stack([fill(row, last, each, longest, context) for row, last, each in rows])
    return found


ANSWER_TYPES = {"paligemma": 1}
"""The token type of an answer, of models that read the prompt in both directions and an answer from left to right, and know
by these types which is which."""


def _ids(row: Tensor, last: int, more: Sequence[int], longest: int, context: Context) -> Tensor:
    padding = getattr(context.tokenizer, "pad_token_id", None) or 0
    return _inserted(row, last, row.new_tensor(list(more)), longest, padding)


def _mask(row: Tensor, last: int, more: Sequence[int], longest: int, context: Context) -> Tensor:
    return _inserted(row, last, row.new_ones(len(more)), longest, 0)


def _positions(row: Tensor, last: int, more: Sequence[int], longest: int, context: Context) -> Tensor:
    return _inserted(row, last, row[last] + torch.arange(1, len(more) + 1, device=row.device), longest, 1)


def _types(row: Tensor, last: int, more: Sequence[int], longest: int, context: Context) -> Tensor:
    kind = ANSWER_TYPES.get(getattr(context.config, "model_type", ""))
    return _inserted(row, last, (row[last] if kind is None else row.new_tensor(kind)).expand(len(more)), longest, 0)


def _no_picture(row: Tensor, last: int, more: Sequence[int], longest: int, context: Context) -> Tensor:
    return _inserted(row, last, row.new_zeros(len(more)), longest, 0)


Fill = Callable[[Tensor, int, Sequence[int], int, Context], Tensor]
"""One text's values of an input [columns], longer by so many columns: its last token's column, the ids to append."""

FILLS: Mapping[str, Fill] = {
    "input_ids": _ids, "attention_mask": _mask, "position_ids": _positions, "token_type_ids": _types,
    "mm_token_type_ids": _no_picture,
}  # fmt: skip
"""How each input that has an entry for each token goes on."""

_BESIDE = (*PICTURES, "pixel_values_videos", *SOUNDS)
"""Inputs that have no entry for each token, however many channels or frames they have."""


def _inserted(row: Tensor, last: int, more: Tensor, longest: int, filler: int) -> Tensor:
    rest = row.new_full((longest - len(more),), filler)
    return torch.cat([row[: last + 1], more, row[last + 1 :], rest])


def _place(place: Any, leaf: str, more: Sequence[int], text: OwnText, context: Context) -> Any:
    if place.leaf != leaf:
        return place
    whole = readable_tokens(context.tokenizer, [*text.text.id_list(), *more])
    return Followed(place, text.columns[-1], whole[text.text.count :], tuple(more), are_special(context.tokenizer, more))
