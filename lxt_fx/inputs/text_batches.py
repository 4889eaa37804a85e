"""Texts, pairs and chats as a batch, with the decoder's own texts where there is a decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.decoders import decoder_rows
from lxt_fx.inputs.facts import Facts
from lxt_fx.inputs.given import Example, Given
from lxt_fx.inputs.kinds import is_chat, is_message
from lxt_fx.inputs.padding import PaddingShows
from lxt_fx.inputs.text_rows import Row, row_of_chat, row_of_text
from lxt_fx.inputs.texts import batch_of_rows, by_token, padding_of, text_call, text_places
from lxt_fx.inputs.tools import Tools
from lxt_fx.inputs.with_pictures import from_text_and_pictures

IN_ONE_ROW = ("Classification", "QuestionAnswering", "MultipleChoice", "NextSentence", "MaskedLM", "PreTraining")
"""Parts of the names of classes that read two texts in one row."""

WRITES = ("CausalLM", "LMHead", "ConditionalGeneration", "DoubleHeads")
"""Parts of the names of classes that go on with a text, for which two texts are no pair."""


def of_texts(facts: Facts, tools: Tools, what: Sequence[Any], answer: Any, batched: bool) -> Given:
    """Texts, pairs or chats."""
    if not facts.reads_text:
        raise InputError(
            f"{facts.function}: {facts.model_class} takes no text, it takes {', '.join(facts.names)}; give one of these"
        )
    chats = [[one] if is_message(one) else list(one) for one in what if is_chat(one) or is_message(one)]
    if chats and any(_has_pictures(chat) for chat in chats):
        return from_text_and_pictures(facts, tools, chats, batched, answer, decoder_of(facts, tools))
    if chats:
        rows = [row_of_chat(facts, tools.tokenizer or tools.processor, chat) for chat in chats]
        return _of_rows(facts, tools, rows, answer, batched)
    if not isinstance(what[0], tuple):
        return _of_rows(facts, tools, [row_of_text(facts, tools.tokenizer, one) for one in what], answer, batched)
    if facts.decodes or any(part in facts.model_class for part in WRITES):
        raise InputError(
            f"{facts.function}: a tuple of two texts is a pair, and {facts.model_class} does not read pairs; join "
            "the texts to one, or give a list for a batch of two"
        )
    if any(part in facts.model_class for part in IN_ONE_ROW):
        return _of_rows(facts, tools, [row_of_text(facts, tools.tokenizer, *pair) for pair in what], answer, batched)
    rows = [row_of_text(facts, tools.tokenizer, text) for pair in what for text in pair]
    whole = _of_rows(facts, tools, rows, answer, batched)
    places: list[Any] = [example.places[0] for example in whole.examples]
    named = [replace(place, name=f"text {'ab'[at % 2]}") for at, place in enumerate(places)]
    return Given(whole.inputs, tuple(Example(tuple(named[at : at + 2])) for at in range(0, len(named), 2)), batched)


def _has_pictures(chat: Sequence[Mapping[str, Any]]) -> bool:
    parts = [part for message in chat if isinstance(message["content"], (list, tuple)) for part in message["content"]]
    return any(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


def _of_rows(facts: Facts, tools: Tools, rows: Sequence[Row], answer: Any, batched: bool) -> Given:
    """The batch of texts, with the decoder's own texts where there is a decoder. They are padded on the side on which the
    tokenizer pads, on the other one if the model would see the padding there."""
    side, _ = padding_of(facts, tools.tokenizer)
    try:
        return _of_fields(facts, tools, *batch_of_rows(facts, tools.tokenizer, rows, side), rows, answer, batched)
    except PaddingShows:
        other = batch_of_rows(facts, tools.tokenizer, rows, "right" if side == "left" else "left")
        return _of_fields(facts, tools, *other, rows, answer, batched)


def _of_fields(
    facts: Facts, tools: Tools, inputs: dict[str, Any], own: list[list[int]], rows: Sequence[Row | None], answer: Any,
    batched: bool,
) -> Given:  # fmt: skip
    decoder = decoder_rows(facts, tools.tokenizer, answer, len(own)) if facts.decodes else None
    more = {} if decoder is None else {"decoder_input_ids": torch.tensor([decoder[0].ids[:1]], device=facts.device)}
    called = text_call(facts, inputs, own, more)
    places = [[place] for place in text_places(facts, tools.tokenizer, called, own, rows, "text")]
    called, answers = with_decoder(facts, tools, called, places, decoder)
    return Given(called, tuple(Example(tuple(p), a) for p, a in zip(places, answers, strict=True)), batched)


def with_decoder(
    facts: Facts, tools: Tools, called: dict[str, Any], places: list[list[Any]], decoder: Sequence[Row] | None
) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
    """The inputs with the decoder's texts, whose places go behind the others; and the answers that they predict."""
    if decoder is None:
        return called, [()] * len(places)
    made, own = batch_of_rows(
        facts, tools.tokenizer, decoder, "right", "decoder_"
    )  # what is said depends on what is before
    if all(len(row.ids) == made["decoder_input_ids"].shape[1] for row in decoder):
        made.pop("decoder_attention_mask", None)
    made = {name: facts.on_device(value) for name, value in made.items()}
    counts = [max(0, len(row.answer) - 1) for row in decoder]
    texts = text_places(facts, tools.tokenizer, made, own, [None] * len(own), "answer", "decoder_", counts)
    for each, text in zip(places, texts, strict=True):
        each.append(text)
    return {**called, **made}, [row.answer for row in decoder]


def of_ids(facts: Facts, tools: Tools, ids: Any, answer: Any, batched: bool) -> Given:
    """Token ids [tokens] or [batch, tokens], or lists of them of different lengths."""
    if isinstance(ids, list) and len({len(row) for row in ids}) > 1:
        return _of_rows(facts, tools, [Row({"input_ids": [int(t) for t in row]}) for row in ids], answer, batched)
    tensor = by_token(facts, "input_ids", ids)
    inputs = {"input_ids": tensor}
    if facts.takes("attention_mask"):
        inputs["attention_mask"] = torch.ones_like(tensor)
    own = [list(range(tensor.shape[1])) for _ in tensor]
    return _of_fields(facts, tools, inputs, own, [None] * len(own), answer, batched)


def decoder_of(facts: Facts, tools: Tools) -> Any:
    def add(called: dict[str, Any], places: list[list[Any]], answer: Any) -> tuple[dict[str, Any], list[tuple[int, ...]]]:
        rows = decoder_rows(facts, tools.tokenizer, answer, len(places))
        return with_decoder(facts, tools, called, places, rows)

    return add
