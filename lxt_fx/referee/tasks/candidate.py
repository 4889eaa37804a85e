"""A prompt of a text task before any model has read it: its right and wrong continuations, and its gold characters."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from lxt_fx.base.errors import InputError

Span = tuple[int, int]
"""Where characters begin and end in a text."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A prompt, up to where the model answers.

    `right` are continuations of the text, each with its leading space, whose first tokens are right answers, and `wrong`
    those that it is contrasted with. Without both, whatever the model predicts is explained. A model is asked where its top
    token is right (`judged` by "top") or the right tokens have the larger mean logit ("contrast"), here and in each of
    `also`. `gold` are the spans on which the answer must rest. `most` tokens are read. `given_key` is the name that a file
    of public data gives the prompt. Prompts of one task that ask about the same have one `group`, empty for a prompt alone.

    Raises InputError for a gold span that holds no character of the text but spaces.
    """

    text: str
    right: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    gold: tuple[Span, ...] = ()
    judged: Literal["top", "contrast"] = "top"
    also: tuple[Candidate, ...] = ()
    most: int | None = None
    given_key: str = ""
    group: str = ""

    def __post_init__(self) -> None:
        for start, end in self.gold:
            if not 0 <= start < end <= len(self.text) or not self.text[start:end].strip():
                raise InputError(f"{self.key}: the gold span {start} to {end} holds no word of {self.text!r}")

    @property
    def key(self) -> str:
        """The name of the prompt within its task: it follows from the text alone, so that two seeds that draw one prompt
        give it one key."""
        return self.given_key or text_key(self.text)


def text_key(text: str) -> str:
    """A short name of a text: equal texts have one."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def marked(template: str) -> tuple[str, tuple[Span, ...]]:
    """A text, and the spans that stand in brackets in its template: `The capital of [France] is`.

    Raises InputError for brackets that do not match.
    """
    if not re.fullmatch(r"[^\[\]]*(\[[^\[\]]+\][^\[\]]*)*", template):
        raise InputError(f"brackets mark gold words, and they do not match in {template!r}")
    text, spans = "", []
    for place, part in enumerate(re.split(r"[\[\]]", template)):
        if place % 2:
            spans.append((len(text), len(text) + len(part)))
        text += part
    return text, tuple(spans)


def times_said(text: str, word: str) -> int:
    """How often a word stands in a text, with a capital or without."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def distinct(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """Each prompt once, in their order."""
    seen: set[str] = set()
    for candidate in candidates:
        if candidate.text not in seen:
            seen.add(candidate.text)
            yield candidate
