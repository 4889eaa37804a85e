"""What a person asks of a view: where the colours end, which tokens are left out of them, and how large the places are."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, SupportsIndex, TypedDict

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.results.merging import GROUPS, merged_pixels, merged_tokens, need
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, TextReading
from lxt_fx.views.scaling import Ends, checked_ends

Muted = Literal["first", "last", "special"] | SupportsIndex
Units = Literal["tokens", "words", "sentences"]

VIEW, NAMES, UNITS = "views of an explanation", ("first", "last", "special"), ("tokens", "words", "sentences")


class Look(TypedDict, total=False):
    """The keywords of every view.

    `patch`: the side in pixels of the squares that relevance of a picture is summed over (by default the model's patches:
    single pixels within a patch are noisy). `scale`: where the colours end, "robust" (at the 99 % quantile of the absolute
    relevance, never below a tenth of the largest), "max" (at the largest) or "rank" (the colour is the rank). What goes
    beyond the end has a double edge. `mute`: tokens that have no colour and do not count for the scale, "first", "last",
    "special" (BOS, [CLS], marks of a chat template), positions, or a list of these. `units`: "tokens", or the sums of
    "words" or "sentences".
    """

    patch: int | None
    scale: Ends
    mute: Muted | Iterable[Muted]
    units: Units


@dataclass(frozen=True, slots=True)
class Asked:
    """A checked `Look`."""

    patch: int | None = None
    ends: Ends = "robust"
    mute: tuple[str | int, ...] = ()
    units: Units = "tokens"

    @property
    def place(self) -> str:
        """What one place of a text is called."""
        return self.units.removesuffix("s")


def asked(look: Look, parts: Sequence[Part]) -> Asked:
    """The keywords of a view of these parts, checked. Raises InputError for what they may not be, and for what is asked of
    a picture or text where there is none."""
    patch, units = look.get("patch"), look.get("units", "tokens")
    mute = checked_mute(look.get("mute", ()), VIEW, "mute")
    if patch is not None:
        need(parts, "image", VIEW)
    if units not in UNITS:
        raise InputError(f"{VIEW}: units must be one of {', '.join(map(repr, UNITS))}, got {units!r}")
    if mute or units != "tokens":
        need(parts, "text", VIEW)
    return Asked(patch, checked_ends(look.get("scale", "robust"), VIEW), mute, units)


def checked_mute(given: object, where: str, name: str) -> tuple[str | int, ...]:
    """The tokens that the argument `name` leaves out, as a tuple. Raises InputError for what is neither one of the words
    nor a position."""
    listed = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    found: list[str | int] = []
    for each in listed:
        if isinstance(each, str) and each in NAMES:
            found.append(each)
            continue
        try:
            found.append(operator.index(each))  # type: ignore[arg-type]
        except TypeError:
            raise InputError(
                f"{where}: {name} takes 'first', 'last', 'special' and positions, or a list of these, got {each!r}"
            ) from None
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """A part as a view shows it, merged as asked. `counts` and `read`, [numbers, *places], say which places count for the
    colours, and which the model had read when it computed a number: an answer token does not depend on itself. `left_out`
    is the relevance of each token that does not count though it was read."""

    part: Part
    counts: Tensor
    read: Tensor
    left_out: tuple[float, ...] = ()


def seen(parts: Sequence[Part], asked: Asked) -> tuple[Seen, ...]:
    """The parts as they are shown. Raises InputError for a position outside every text."""
    texts = [len(part.reading.tokens) for part in parts if isinstance(part.reading, TextReading)]
    for at in asked.mute:
        if isinstance(at, int) and not any(-count <= at < count for count in texts):
            raise InputError(f"{VIEW}: mute={at} is no position of a text of {max(texts)} tokens")
    return tuple(_seen(part, asked) for part in parts)


def _seen(part: Part, asked: Asked) -> Seen:
    reading = part.reading
    if isinstance(reading, TextReading):
        return _seen_text(part, reading, asked)
    part = in_patch(part, asked.patch)
    every = torch.ones_like(part.by_number(), dtype=torch.bool)
    return Seen(part, every, every)


def _seen_text(part: Part, reading: TextReading, asked: Asked) -> Seen:
    read = _read(part, reading)
    counts = read & ~torch.stack([muted(reading, asked.mute, int(row.sum())) for row in read])
    left_out = tuple(part.by_number()[read & ~counts].double().tolist())
    if asked.units == "tokens":
        return Seen(part, counts, read, left_out)
    groups = GROUPS[asked.units](reading)
    some = torch.stack([counts[:, group.start : group.stop].any(1) for group in groups], 1)
    values = part.by_number().clone()
    for group, counting in zip(groups, some.T, strict=True):  # what does not count is no part of a word that does
        own = slice(group.start, group.stop)
        values[:, own] = torch.where(counts[:, own] | ~counting[:, None], values[:, own], 0)
    shown = replace(part, values=values if part.several else values[0], units=None)
    was_read = torch.stack([read[:, group.start : group.stop].any(1) for group in groups], 1)
    return Seen(merged_tokens(shown, reading, groups), some, was_read, left_out)


def _read(part: Part, reading: TextReading) -> Tensor:
    """[numbers, tokens]: which tokens stand before what each number explains. All, unless number i explains token i of the
    answer at the end of the text."""
    numbers, count = part.by_number().shape
    read = torch.ones(numbers, count, dtype=torch.bool)
    if part.several and reading.answer == numbers:
        read = torch.arange(count)[None] < count - reading.answer + torch.arange(numbers)[:, None]
    return read


def muted(reading: TextReading, mute: Sequence[str | int], stop: int) -> Tensor:
    """[tokens]: which ones are left out, where the model had read the tokens before `stop`."""
    found = torch.zeros(len(reading.tokens), dtype=torch.bool)
    for each in mute:
        if each == "special":
            found |= torch.tensor(reading.special)
        elif isinstance(each, str):
            found[0 if each == "first" else max(stop - 1, 0)] = True
        elif -len(found) <= each < len(found):
            found[each] = True
    return found


def in_patches(parts: Sequence[Part], patch: int | None = None) -> tuple[Part, ...]:
    """The parts with pictures in squares of `patch` pixels, or of the model's own patches."""
    return tuple(in_patch(part, patch) for part in parts)


def in_patch(part: Part, patch: int | None) -> Part:
    """The part; a picture in squares of `patch` pixels, or of the model's own patches."""
    reading = part.reading
    if not isinstance(reading, ImageReading):
        return part
    if patch is None and (reading.patch <= reading.side or reading.patch % reading.side):
        return part
    return merged_pixels(part, reading, reading.patch if patch is None else patch, VIEW)
