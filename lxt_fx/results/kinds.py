"""Names for kinds of explanations."""

from __future__ import annotations

from lxt_fx.results.explanation import Explanation
from lxt_fx.results.readings import TextReading


class _ByParts(type):
    """`isinstance` by what an explanation is about."""

    def __instancecheck__(cls, found: object) -> bool:
        return isinstance(found, Explanation) and bool(cls.is_one(found))  # type: ignore[attr-defined]


class ImageExplanation(Explanation, metaclass=_ByParts):
    """An explanation whose first part is a picture. A name for `isinstance` and for types; nothing is made of this
    class."""

    @staticmethod
    def is_one(found: Explanation) -> bool:
        """Whether an explanation is about a picture."""
        return found.parts[0].kind == "image"


class AnswerRelevance(Explanation, metaclass=_ByParts):
    """An explanation of the tokens of an answer: row i of the part that holds the answer explains the logit of answer token
    i. Of a model without a decoder of its own that is `relevance` [answer, prompt + answer]; of one with a decoder the part
    "answer". A name for `isinstance` and for types; nothing is made of this class."""

    @staticmethod
    def is_one(found: Explanation) -> bool:
        """Whether the explained numbers are the answer at the end of a text."""
        count = len(found.numbers)
        texts = (part.reading for part in found.parts if part.several)
        return any(isinstance(reading, TextReading) and reading.answer == count for reading in texts)
