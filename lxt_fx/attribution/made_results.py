"""Explanations made of what `explain` and `explain_image` computed."""

from __future__ import annotations

from torch import Tensor

from lxt_fx.attribution.text_input import TextInput
from lxt_fx.compiler.record import Record
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.origin import ExplainedNumber, Origin
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, TextReading
from lxt_fx.views.panels import displayed


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


def of_text(read: TextInput, attribution: Tensor, number: ExplainedNumber, origin: Origin, answer: int) -> Explanation:
    """Of one text: its relevance [tokens, hidden] is summed over the embedding."""
    part = Part("text", ("position",), attribution.sum(dim=-1), text_reading(read, answer), attribution)
    return Explanation((part,), (number,), origin)


def of_image(pixel_values: Tensor, attribution: Tensor, number: ExplainedNumber, origin: Origin) -> Explanation:
    """Of one image: its relevance [channels, height, width] is summed over channels."""
    reading = ImageReading(displayed(pixel_values), pixel_values=pixel_values)
    part = Part("image", ("row", "column"), attribution.sum(dim=0), reading, attribution.movedim(0, -1))
    return Explanation((part,), (number,), origin)
