"""Names for kinds of explanations."""

from __future__ import annotations

from lxt_fx.results.explanation import Explanation
from lxt_fx.results.readings import TextReading


class _ByFirstPart(type):
    """`isinstance` by what an explanation is about."""

    def __instancecheck__(cls, found: object) -> bool:
        return isinstance(found, Explanation) and bool(cls.is_one(found))  # type: ignore[attr-defined]


class ImageExplanation(Explanation, metaclass=_ByFirstPart):
    """An explanation whose first part is a picture. A name for `isinstance` and for types; nothing is made of this
    class."""

    @staticmethod
    def is_one(found: Explanation) -> bool:
        """Whether an explanation is about a picture."""
        return found.parts[0].kind == "image"


class AnswerRelevance(Explanation, metaclass=_ByFirstPart):
    """An explanation of the tokens of an answer: `relevance` [answer, prompt + answer], whose row i explains the logit of
    answer token i. A name for `isinstance` and for types; nothing is made of this class."""

    @staticmethod
    def is_one(found: Explanation) -> bool:
        """Whether the explained numbers are the answer at the end of the text."""
        reading = found.parts[0].reading
        return found.parts[0].several and isinstance(reading, TextReading) and reading.answer == len(found.numbers)
