"""A text, a pair of texts or a chat as tokens, each for itself: the rows that a batch is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import Facts

Message = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """The tokens of one text, without padding. `fields` are the numbers by token that the tokenizer returns, by the name
    of the model's input. `marks` says which tokens a chat template added; `segments`, `text` and `spans` are as in
    `TextReading`."""

    fields: Mapping[str, list[Any]]
    segments: tuple[int, ...] | None = None
    marks: tuple[bool, ...] | None = None
    text: str | None = None
    spans: tuple[tuple[int, int], ...] | None = None
    answer: tuple[int, ...] = field(default=())

    @property
    def ids(self) -> list[int]:
        return self.fields["input_ids"]


def row_of_text(facts: Facts, tokenizer: Any, text: str, second: str | None = None) -> Row:
    """A text, or a pair of texts in one row, with the special tokens that the tokenizer adds.

    Raises InputError for a text without characters, or of which no token is made.
    """
    for one in (text, second):
        if one is not None and not one.strip():
            raise InputError(
                f"{facts.function}: the text {one!r} is empty, so there is nothing to explain; give one that has words"
            )
    check_tokenizer(facts, tokenizer)
    encoded = _encoded(tokenizer, text, second)
    row = _row(encoded)
    if not row.ids:
        raise InputError(f"{facts.function}: the text {text!r} has no tokens, so there is nothing to explain; give another")
    spans = _spans(encoded)
    segments = _segments(encoded, row) if second is not None else None
    if second is None:
        return Row(row.fields, segments, None, text, spans)
    whole = f"{text}\n{second}"  # spans of the second text go on behind the first and a line break
    if spans is not None and segments is not None:
        shift = len(text) + 1
        spans = tuple(
            (start + shift, end + shift) if part and end > start else (start, end)
            for (start, end), part in zip(spans, segments, strict=True)
        )
    return Row(row.fields, segments, None, whole, spans)


def row_of_chat(facts: Facts, tokenizer: Any, chat: Sequence[Message]) -> Row:
    """A chat as its template writes it, up to where the model answers; behind an answer that was begun, up to its end.

    Raises InputError for a chat without messages and a tokenizer without a template.
    """
    check_tokenizer(facts, tokenizer)
    text = chat_text(facts, tokenizer, chat)
    encoded = _encoded(tokenizer, text, None, add_special_tokens=False)
    row, spans = _row(encoded), _spans(encoded)
    return Row(row.fields, None, marks_of(text, chat, spans), text, spans)


def chat_text(facts: Facts, templated: Any, chat: Sequence[Message]) -> str:
    """The chat as a text. `templated` is the tokenizer or processor that has the template."""
    if not chat or not any(contents(message) for message in chat):
        raise InputError(f"{facts.function}: the chat is empty, so there is nothing to explain; give it a message")
    if getattr(templated, "chat_template", None) is None:
        raise InputError(
            f"{facts.function}: {type(templated).__name__} has no chat template, so it is not known how a chat is written; "
            "give the text as the model expects it, or set tokenizer.chat_template"
        )
    begun = chat[-1]["role"] == "assistant"
    made = templated.apply_chat_template(
        [dict(message) for message in chat], tokenize=False, add_generation_prompt=not begun, continue_final_message=begun
    )
    return str(made)


def contents(message: Message) -> list[str]:
    """The texts of a message."""
    content = message.get("content")
    if isinstance(content, str):
        return [content] if content.strip() else []
    parts = content if isinstance(content, (list, tuple)) else []
    return [part["text"] for part in parts if isinstance(part, Mapping) and str(part.get("text", "")).strip()]


def check_tokenizer(facts: Facts, tokenizer: Any) -> None:
    """Raises InputError if there is none."""
    if not callable(tokenizer):
        raise InputError(
            f"{facts.function}: a text needs a tokenizer, and none was given; give the tokenizer of {facts.model_class} as "
            "processor, or token ids in the place of the text"
        )


def _encoded(tokenizer: Any, text: str, second: str | None, **settings: Any) -> Any:
    """What the tokenizer returns, with the place of each token in the text if it can say. No setting of it changes."""
    if getattr(tokenizer, "is_fast", False):
        settings["return_offsets_mapping"] = True
    return tokenizer(text, **settings) if second is None else tokenizer(text, second, **settings)


def _row(encoded: Any) -> Row:
    fields = {name: _plain(value) for name, value in encoded.items()}
    count = len(fields["input_ids"])
    return Row({name: value for name, value in fields.items() if len(value) == count and name != "offset_mapping"})


def _plain(value: Any) -> list[Any]:
    listed = value.tolist() if hasattr(value, "tolist") else list(value)
    return listed[0] if len(listed) == 1 and isinstance(listed[0], list) else listed


def _spans(encoded: Any) -> tuple[tuple[int, int], ...] | None:
    found = encoded.get("offset_mapping")
    return None if found is None else tuple((int(start), int(end)) for start, end in found)


def _segments(encoded: Any, row: Row) -> tuple[int, ...]:
    """0 for the tokens of the first text, 1 for the second; special tokens belong to the text before them."""
    if getattr(encoded, "is_fast", False):
        return running(encoded.sequence_ids(0))
    return tuple(int(part > 0) for part in row.fields.get("token_type_ids", [0] * len(row.ids)))


def running(parts: Sequence[int | None]) -> tuple[int, ...]:
    """The number of the text that each token belongs to, where None means that of the token before."""
    found, now = [], 0
    for part in parts:
        now = now if part is None else part
        found.append(now)
    return tuple(found)


def encoded_ids(tokenizer: Any, text: str) -> tuple[list[int], tuple[tuple[int, int], ...] | None]:
    """The ids of a text with the special tokens that the tokenizer adds, and the place of each in the text if it is
    known."""
    encoded = _encoded(tokenizer, text, None)
    return _row(encoded).ids, _spans(encoded)


def marks_of(text: str, chat: Sequence[Message], spans: tuple[tuple[int, int], ...] | None) -> tuple[bool, ...] | None:
    """Which tokens the template wrote: those that no message has. None if that is not known."""
    if spans is None:
        return None
    own, start = [False] * len(text), 0
    for content in (part for message in chat for part in contents(message)):
        for written in (content, content.strip()):
            at = text.find(written, start)
            if at >= 0:
                start = at + len(written)
                own[at:start] = [True] * len(written)
                break
        else:
            return None
    return tuple(not any(own[start:end]) for start, end in spans)
