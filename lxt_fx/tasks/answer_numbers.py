"""The numbers of answers: the logit of each token of each answer, where the model predicted it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.many_entries import Entries
from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target_entry import logits_of
from lxt_fx.attribution.target_names import TokenNames
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.entry import rank
from lxt_fx.tasks.own_text import OwnText, own_text, prefix_of
from lxt_fx.tasks.rows import of_input, row_of
from lxt_fx.tasks.task import Context, Number
from lxt_fx.tasks.token_logits import TextSpot, shown_positions


@dataclass(frozen=True, slots=True, eq=False)
class AnswerAt:
    """The answer of one example: its tokens `ids`, and `minus` the tokens that are subtracted. `text` is the text that
    predicts them, the decoder's if there is one, in entry `row` of the batch; its position `first` predicts the first token
    of the answer, and `shown` are its tokens and those of the answer, as a person reads them. `hidden` counts the tokens
    before that which stand for pictures or sounds, and are not shown."""

    ids: tuple[int, ...]
    minus: tuple[int, ...] | None
    text: OwnText
    row: int
    first: int
    shown: tuple[str, ...]
    hidden: int = 0

    def spot(self, at: int) -> TextSpot:
        """Where token `at` of the answer is predicted."""
        position = self.first + at
        return TextSpot(self.row, self.text, position, position - self.hidden)

    def number(self, at: int, value: Tensor, logits: Tensor, names: TokenNames) -> Number:
        """Token `at` of the answer as a number, with its rank in the logits [entries] of its position."""
        position, token = self.first + at, self.shown[self.first + 1 + at]
        said, label = f"logit of '{token}' (rank {rank(logits, self.ids[at])})", token
        if self.minus is not None:
            other = self.minus[at]
            said += f" minus logit of {names.show(other, rank(logits, other))}"
            label += f" minus {readable_tokens(names.tokenizer, [other])[0]}"
        return Number(value, f"{said} at position {position - self.hidden}, after '{self.shown[position]}'", label)


def answer_at(
    index: int, example: Example, ids: Sequence[int], minus: Sequence[int] | None, context: Context
) -> AnswerAt:
    """The answer of example `index`, whose text holds it; a decoder's text holds all but its last token."""
    prefix = prefix_of(context.inputs)
    row = row_of(example, index, f"{prefix}input_ids")
    text = own_text(context.inputs, context.tokenizer, row, prefix)
    assert text is not None, "the answer is a part of a text"
    own = text.text.id_list()
    read = [*own, *ids[-1:]] if prefix else own
    shown = readable_tokens(context.tokenizer, read)
    first = len(read) - len(ids) - 1
    hidden = first - sum(position < first for position in shown_positions(text, context))
    return AnswerAt(tuple(ids), None if minus is None else tuple(minus), text, row, first, shown, hidden)


@dataclass(eq=False)
class AnswerNumbers:
    """The tokens of an answer for each example of a batch. There are as many targets as the longest answer has tokens; a
    shorter one repeats its last token, which nobody reads. `numbers` [examples][tokens of its answer] are what was found,
    once the forward has run."""

    answers: Sequence[AnswerAt]
    context: Context
    numbers: list[list[Number]] = field(default_factory=list)

    @property
    def entries_only(self) -> bool:
        """True."""
        return True

    @property
    def longest(self) -> int:
        """The number of tokens of the longest answer."""
        return max(len(answer.ids) for answer in self.answers)

    def _each(self, answer: AnswerAt) -> list[int]:
        """The tokens of an answer that are the targets."""
        return [min(at, len(answer.ids) - 1) for at in range(self.longest)]

    def places(self, count: int, batch: int) -> Tensor:
        """The index of each target's position among those of the logits, [batch, targets]."""
        return torch.tensor(
            [[answer.spot(at).place(count, self.context) for at in self._each(answer)] for answer in self.answers]
        )

    def entries(self, logits: Tensor, part: range) -> Entries:
        """The entries of the targets of a part, in their logits [batch, targets, entries]."""
        size = logits.shape[-1]
        most = max(max((*answer.ids, *(answer.minus or ()))) for answer in self.answers)
        if most >= size:
            raise InputError(
                f"{self.context.function}: there is no logit of token {most}; {self.context.model_class} has {size} (0 to "
                f"{size - 1})"
            )
        device, contrast = logits.device, any(answer.minus is not None for answer in self.answers)
        each = [self._each(answer)[part.start : part.stop] for answer in self.answers]
        first = torch.tensor([[a.ids[at] for at in own] for a, own in zip(self.answers, each, strict=True)], device=device)
        second = [
            [-1 if a.minus is None else a.minus[at] for at in own] for a, own in zip(self.answers, each, strict=True)
        ]
        found = Entries(first, torch.tensor(second, device=device) if contrast else None)
        names = TokenNames(self.context.tokenizer, self.context.function)
        before = [[] for _ in self.answers] if part.start == 0 else self.numbers
        own_part = [[at for at in part if at < len(answer.ids)] for answer in self.answers]
        self.numbers = [
            [*earlier, *(answer.number(at, values[at - part.start], own[at - part.start], names) for at in ats)]
            for earlier, answer, ats, values, own in zip(
                before, self.answers, own_part, found.of(logits), logits.detach(), strict=True
            )
        ]
        return found

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        """The numbers summed over examples, [targets], and by example: [targets, batch]."""
        logits = logits_of(self.context.reading, output)
        if logits.dim() != 3:
            raise InputError(
                f"{self.context.function}: {self.context.model_class} gives logits {list(logits.shape)}, none for each "
                "token of a text; this needs a model that writes text"
            )
        places = self.places(logits.shape[1], len(logits)).to(logits.device)
        chosen = logits[torch.arange(len(logits), device=logits.device)[:, None], places]
        values = self.entries(chosen, range(self.longest)).of(chosen).T
        return values.sum(1), values

    def check_causal(self, relevance: Mapping[str, Tensor]) -> None:
        """Raises InputError where a token of an answer got relevance from itself or a later token. `relevance` is that of
        each input, of ids [targets, batch, tokens, units]."""
        name = of_input(relevance, f"{prefix_of(self.context.inputs)}input_ids")
        for answer in self.answers if name is not None else ():
            count, own = len(answer.ids), relevance[str(name)][:, answer.row, list(answer.text.columns)]
            before = torch.arange(answer.first, answer.first + count)
            later = torch.arange(len(answer.text.columns)) > before[:, None]
            if bool(own[:count][later].any()):
                raise InputError(
                    f"{self.context.function}: {self.context.model_class} looks ahead: an answer token got relevance from "
                    "itself or a later token, so its logit one position earlier already knew it; this needs a causal "
                    "language model"
                )
