"""A prompt as a tokenizer reads it: token ids, special tokens, gold units, and the tokens that continue it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.tasks.candidate import Span


@dataclass(frozen=True, slots=True)
class Reading:
    """A text as token ids. `spans` has the characters of each token, `special` whether the tokenizer added it (`<bos>`,
    `[CLS]`) or it is such a token written out."""

    text: str
    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    special: tuple[bool, ...]

    @property
    def ordinary(self) -> frozenset[int]:
        """The ids that are no special tokens."""
        return frozenset(token for token, special in zip(self.ids, self.special, strict=True) if not special)

    def gold_units(self, gold: Sequence[Span]) -> tuple[bool, ...]:
        """Which tokens have a character in one of these spans. Spaces do not count: a tokenizer may count the space before
        a word to its token. A special token is never gold."""
        wanted = {at for start, end in gold for at in range(start, end) if not self.text[at].isspace()}
        inside = [not wanted.isdisjoint(range(start, end)) for start, end in self.spans]
        return tuple(has and not special for has, special in zip(inside, self.special, strict=True))


def read(tokenizer: Any, text: str) -> Reading:
    """The text as it is given to the model, with the special tokens that the tokenizer adds.

    Raises NotForThisError for a tokenizer that does not say where its tokens stand in the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise NotForThisError(
            f"{type(tokenizer).__name__} does not say which characters a token has, so that gold words cannot be found; "
            "give a fast tokenizer (AutoTokenizer loads one)"
        )
    encoded = tokenizer(text, return_offsets_mapping=True)
    ids = tuple(int(token) for token in encoded["input_ids"])
    spans = tuple((int(start), int(end)) for start, end in encoded["offset_mapping"])
    special, unknown = set(tokenizer.all_special_ids), tokenizer.unk_token_id
    # An unknown word is a word of the text, although its id is that of a special token.
    marks = (
        token in special and not (token == unknown and end > start) for token, (start, end) in zip(ids, spans, strict=True)
    )
    return Reading(text, ids, spans, tuple(marks))


def read_prompt(tokenizer: Any, text: str, most: int | None = None) -> Reading:
    """The first `most` tokens of the text (all for None), without special tokens at its end: there a model continues it."""
    whole = read(tokenizer, text)
    count = len(whole.ids) if most is None else min(most, len(whole.ids))
    while count and whole.special[count - 1]:
        count -= 1
    return Reading(text, whole.ids[:count], whole.spans[:count], whole.special[:count])


def continuation(tokenizer: Any, prompt: Reading, answer: str) -> tuple[int, ...] | None:
    """The ids of the answer behind the prompt. None where the tokenizer joins the end of the prompt with the answer, or
    begins the answer with a token of spaces, which says nothing of it."""
    whole = read_prompt(tokenizer, prompt.text + answer)
    count = len(prompt.ids)
    if whole.ids[:count] != prompt.ids or len(whole.ids) == count:
        return None
    start, end = whole.spans[count]
    return whole.ids[count:] if whole.text[start:end].strip() else None


def first_tokens(tokenizer: Any, prompt: Reading, answers: Sequence[str]) -> tuple[int, ...] | None:
    """The first token of each answer, each once and in their order; None if one of the answers has none."""
    found = [continuation(tokenizer, prompt, answer) for answer in answers]
    firsts = dict.fromkeys(ids[0] for ids in found if ids is not None)
    return None if any(ids is None for ids in found) else tuple(firsts)
