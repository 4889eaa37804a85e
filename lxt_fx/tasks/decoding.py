"""Encoders with a decoder: the next token that the decoder writes, or a word that it has written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target_entry import logits_of
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.own_text import DECODER, OwnText, own_text
from lxt_fx.tasks.rows import row_of
from lxt_fx.tasks.task import Context, Number
from lxt_fx.tasks.token_logits import TokenLogits
from lxt_fx.tasks.words import Stretch, stretch_of


@dataclass(frozen=True, slots=True)
class Decoding(TokenLogits):
    """As `TokenLogits` for the decoder's text. A name that stands in that text, behind its first token, is explained where
    it was written: the sum of its tokens' log-probabilities, each given those before it (teacher forcing). Where an answer
    was given, the whole answer is explained by default."""

    def number(self, asked: Asked, output: Any, index: int, example: Example, context: Context) -> Number:
        """An entry of the logits, or the log-probability of a word of the decoder's text."""
        written = self.written(asked, index, example, context)
        if written is None:
            # `super()` without arguments does not work in a dataclass with slots
            return TokenLogits.number(self, asked, output, index, example, context)
        text, ids, stretch = written
        row = row_of(example, index, f"{DECODER}input_ids")
        value = _log_probability(logits_of(context.reading, output)[row], text, ids, stretch, context)
        which = f", the first of {stretch.times}" if stretch.times > 1 else ""
        several = len(stretch.positions) > 1
        span = f"positions {stretch.start} to {stretch.stop - 1}" if several else f"position {stretch.start}"
        said = f"log-probability of '{stretch.shown}' as written at {span}{which}, each token given those before"
        return Number(value, said, stretch.shown)

    def written(
        self, asked: Asked, index: int, example: Example, context: Context
    ) -> tuple[OwnText, list[int], Stretch] | None:
        """The word that a target means in what the decoder has written: the decoder's text without padding, the tokens
        written (one more than the text if an answer was given, whose last token is only predicted), and where in them the
        word stands. None if the target means no such word."""
        names_one = isinstance(asked.entry, str) or asked.entry is None and bool(example.answer)
        if not names_one or asked.minus is not None or asked.spot is not None:
            return None
        row = row_of(example, index, f"{DECODER}input_ids")
        text = own_text(context.inputs, context.tokenizer, row, DECODER)
        if text is None or not text.text.ids_known:
            return None
        ids = [*text.text.id_list(), *example.answer[-1:]]
        tokens = readable_tokens(context.tokenizer, ids)
        first = len(ids) - len(example.answer) if example.answer else 1
        if asked.entry is None:
            return text, ids, Stretch(first, len(ids), "".join(tokens[first:]).strip(), 1)
        found = stretch_of(str(asked.entry), tokens, first)
        return None if found is None else (text, ids, found)


def _log_probability(
    logits: Tensor, text: OwnText, ids: list[int], stretch: Stretch, context: Context
) -> Tensor:
    if len(logits) != text.width:
        raise InputError(
            f"{context.function}: {context.model_class} gives logits for {len(logits)} positions of a text of "
            f"{text.width} tokens; transform the model without positions=..., or give a function of the output"
        )
    places = [text.columns[position - 1] for position in stretch.positions]
    wide = logits[places].to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return wide[torch.arange(len(places)), [ids[position] for position in stretch.positions]].sum()
