"""Explanations made of what `answer_relevance` computed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lxt_fx.attribution.text_input import TextInput
from lxt_fx.compiler.record import Record
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.origin import ExplainedNumber, Origin
from lxt_fx.results.part import TARGET, Part
from lxt_fx.results.readings import TextReading


def origin_of(record: Record, seconds: float) -> Origin:
    """Where an explanation by an explained module with this record comes from."""
    return Origin(record.table_name, record.model_class, "", dict(record.versions), seconds)


def text_reading(read: TextInput, answer: int) -> TextReading:
    """The text as a person reads it; the last `answer` tokens were appended."""
    ids, types = read.id_list(), read.extras.get("token_type_ids")
    special = set(getattr(read.tokenizer, "all_special_ids", ())) if read.ids_known else set[int]()
    one_each = types is not None and list(types.shape) == [1, len(ids)]
    return TextReading(
        tokens=read.tokens,
        ids=tuple(ids),
        special=tuple(token in special for token in ids),
        segments=tuple(types[0].tolist()) if types is not None and one_each else (0,) * len(ids),
        answer=answer,
    )


def of_answer(read: TextInput, relevance: Tensor, logits: Sequence[float], origin: Origin) -> Explanation:
    """Of an answer: its relevance [answer, tokens], a number for each of the last tokens of the text."""
    reading = text_reading(read, len(logits))
    first = len(reading.tokens) - len(logits)
    numbers = tuple(
        ExplainedNumber(f"logit of {token!r} at position {first + at - 1}", value, token)
        for at, (token, value) in enumerate(zip(reading.tokens[first:], logits, strict=True))
    )
    return Explanation((Part("text", (TARGET, "position"), relevance, reading),), numbers, origin)
