"""Logits [batch, positions, entries] of a text: next tokens, masked tokens, tags, and the text that a decoder writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.many_entries import Entries
from lxt_fx.attribution.target_entry import logits_of, position_of
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.inputs.places import TextPlace
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.entry import NamedEntry, entry_in
from lxt_fx.tasks.own_text import OwnText, own_text, prefix_of
from lxt_fx.tasks.rows import of_leaf, row_of
from lxt_fx.tasks.task import Context, Number


@dataclass(frozen=True, slots=True)
class TokenLogits:
    """A token or a tag by index or name, at a position of the example's own text: 0 is its first token and -1 its last,
    whatever the padding. By default the largest logit after the last token; of a masked model at the first mask; of a
    tagger at the last token that is not special."""

    name: str

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """An entry of the logits at one position, or the difference of two."""
        logits, spot = logits_of(context.reading, output), self.spot(asked, index, example, context)
        own = logits[spot.row, spot.place(logits.shape[1], context)]
        return self.entry(asked, own, spot, context).of(own)

    def spot(self, asked: Asked, index: int, example: Example, context: Context) -> TextSpot:
        """Where the target lies. Raises InputError for a position that the text does not have."""
        prefix = prefix_of(context.inputs)
        row = row_of(example, index, f"{prefix}input_ids")
        text = own_text(context.inputs, context.tokenizer, row, prefix)
        if text is None:
            raise InputError(
                f"{context.function}: {context.model_class} has logits for each position, and no input is a "
                "text whose positions these are; give a function of the output"
            )
        wanted, shown = asked.at_position(context.function), shown_positions(text, context)
        if wanted.position is not None and len(shown) < text.text.count:
            if not -len(shown) <= wanted.position < len(shown):
                raise InputError(
                    f"{context.function}: position {wanted.position} is not in the text, which has {len(shown)} tokens (0 "
                    f"to {len(shown) - 1}) beside those that stand for pictures or sounds"
                )
            wanted = replace(wanted, position=shown[wanted.position])
        position = position_of(context.reading, wanted, text.text)
        known = next((place for place in of_leaf(example, f"{prefix}input_ids") if isinstance(place, TextPlace)), None)
        token = None if known is None else known.token_at(text.columns[position])
        return TextSpot(row, text, position, shown.index(position) if position in shown else position, token)

    def entry(self, asked: Asked, logits: Tensor, spot: TextSpot, context: Context) -> NamedEntry:
        """The entry in the logits of one position, [entries]."""
        names = context.reading.names(spot.text.text)
        return entry_in(asked, logits, names, f" {spot.said('after' if context.reading.predicts_next else 'for')}")


def shown_positions(text: OwnText, context: Context) -> list[int]:
    """The positions of a text's tokens that a person reads: without those that stand for pictures or sounds."""
    if not text.text.ids_known or not context.hidden:
        return list(range(text.text.count))
    return [position for position, token in enumerate(text.text.id_list()) if token not in context.hidden]


@dataclass(frozen=True, slots=True, eq=False)
class TextSpot:
    """A position of a text, counted from 0 in the text itself, and the entry of the batch that the text stands in.
    `shown` is the position without the tokens that stand for pictures or sounds, which are not shown; `token` is what
    stands there, if that was read already: to read it takes the whole text."""

    row: int
    text: OwnText
    position: int
    shown: int
    token: str | None = None

    @property
    def column(self) -> int:
        """Where the position stands in the batch."""
        return self.text.columns[self.position]

    def said(self, word: str) -> str:
        """`at position 3, after ' is'`."""
        token = self.text.text.tokens[self.position] if self.token is None else self.token
        return f"at position {self.shown}, {word} '{token}'"

    def place(self, count: int, context: Context) -> int:
        """The index of the position among the `count` positions that the logits have. Raises InputError where they do not
        have it."""
        return place_of(self.column, self.position, self.text.width, count, context)


def place_of(column: int, position: int, width: int, count: int, context: Context) -> int:
    """The index of a column of a batch of texts, which is this position of its own text, among the `count` positions that
    the logits have.

    Raises InputError where they do not have it.
    """
    reading = context.reading
    answered = list(range(width)) if reading.positions is None else [each % width for each in reading.positions]
    if count != len(answered):
        raise InputError(
            f"{reading.function}: {reading.model_class} gives logits for {count} positions of a text of {width} "
            "tokens; give a function of the output"
        )
    if column not in answered:
        raise InputError(
            f"{reading.function}: the target is at position {position}, and this module was made to answer at "
            f"{', '.join(map(str, answered))} only; transform the model with this position, or without positions=..."
        )
    return answered.index(column)


@dataclass(eq=False)
class EntryNumbers:
    """The entries of the logits that all examples are explained for, [examples][targets], for a head that runs at these
    positions alone. `numbers` [examples][targets] are what was found, once the forward has run."""

    task: TokenLogits
    asked: Sequence[Sequence[Asked]]
    examples: Sequence[Example]
    context: Context
    numbers: list[list[Number]] = field(default_factory=list)

    @property
    def entries_only(self) -> bool:
        """True."""
        return True

    def places(self, count: int, batch: int) -> Tensor:
        """The index of each target's position among those of the logits, [batch, targets]."""
        return torch.tensor([[spot.place(count, self.context) for spot in spots] for spots in self._spots()])

    def entries(self, logits: Tensor, part: range) -> Entries:
        """The entries of the targets of a part, in their logits [batch, targets, entries]."""
        chosen = slice(part.start, part.stop)
        found = [
            [
                self.task.entry(ask, row, spot, self.context)
                for ask, row, spot in zip(asked[chosen], own, spots[chosen], strict=True)
            ]
            for asked, own, spots in zip(self.asked, logits, self._spots(), strict=True)
        ]
        before = [[] for _ in found] if part.start == 0 else self.numbers
        self.numbers = [
            [*earlier, *(entry.of(row) for entry, row in zip(entries, own.detach(), strict=True))]
            for earlier, entries, own in zip(before, found, logits, strict=True)
        ]
        first = [[entry.indices[0] for entry in entries] for entries in found]
        second = [[entry.indices[1] if len(entry.indices) > 1 else -1 for entry in entries] for entries in found]
        device, contrast = logits.device, any(index >= 0 for indices in second for index in indices)
        return Entries(torch.tensor(first, device=device), torch.tensor(second, device=device) if contrast else None)

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        """The numbers summed over examples, [targets], and by example: [targets, batch]."""
        self.numbers = [
            [self.task.number(ask, output, index, example, self.context) for ask in asked]
            for index, (asked, example) in enumerate(zip(self.asked, self.examples, strict=True))
        ]
        values = torch.stack([torch.stack([number.value for number in numbers]) for numbers in self.numbers], 1)
        return values.sum(1), values

    @property
    def width(self) -> int:
        """How many columns the batch of texts has."""
        return self._spots()[0][0].text.width

    def columns(self) -> set[int]:
        """The columns of the batch at which logits are needed."""
        return {spot.column for spots in self._spots() for spot in spots}

    def _spots(self) -> list[list[TextSpot]]:
        return [
            [self.task.spot(ask, index, example, self.context) for ask in asked]
            for index, (asked, example) in enumerate(zip(self.asked, self.examples, strict=True))
        ]
