"""Tokens as a person reads them: no tokenizer marks, no byte noise, every control character visible."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lxt_fx.base.transformers_internals import exact_text

BROKEN = "\ufffd"
LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character: the most tokens that can share one character."""

MARKS = {"\n": "↵", "\t": "⇥"}
JOINERS = "\u200c\u200d"
"""Zero-width characters that shape their neighbours (emoji families, Persian). Only a token of nothing else is marked."""


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that lxt_fx uses."""

    def __call__(self, text: str, *, return_tensors: str) -> Mapping[str, Any]: ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, token_ids: list[int], *, clean_up_tokenization_spaces: bool) -> str: ...

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]: ...

    def get_vocab(self) -> dict[str, int]: ...

    @property
    def all_special_ids(self) -> list[int]: ...


def readable_tokens(tokenizer: Tokenizer, input_ids: Sequence[int]) -> tuple[str, ...]:
    """One string for each id, with a leading space where a word starts.

    A character that several tokens share is written on each of them with its part: `🦙(1/2)`, `🦙(2/2)`. An id that the
    tokenizer does not know is its number.
    """
    ids = list(input_ids)
    known = tokenizer.convert_ids_to_tokens(ids)
    pieces = [str(token) if piece is None else piece for token, piece in zip(ids, known, strict=True)]
    tokens: list[str] = []
    while len(tokens) < len(ids):
        start = len(tokens)
        text, count = _decode_whole(tokenizer, ids, start)
        shown = visible(text) or visible(pieces[start].replace("▁", " "))
        tokens += [shown] if count == 1 else _parts(shown, count)
    return tuple(tokens)


def _parts(shown: str, count: int) -> list[str]:
    bare = shown.lstrip(" ")
    return [f"{shown if part == 1 else bare}({part}/{count})" for part in range(1, count + 1)]


def visible(text: str) -> str:
    """The text with visible signs for line breaks, tabs and other characters that draw nothing."""
    if len(text.strip(JOINERS)) == 0:
        return "".join(_code_point(c) for c in text)
    return "".join(_visible(c) for c in text)


def _visible(character: str) -> str:
    if character in MARKS:
        return MARKS[character]
    if character in JOINERS or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp"):
        return character
    return chr(0x2400 + ord(character)) if ord(character) < 32 else _code_point(character)


def _code_point(character: str) -> str:
    return f"⟨U+{ord(character):04X}⟩"


def _decode_whole(tokenizer: Tokenizer, ids: list[int], start: int) -> tuple[str, int]:
    """The text of the fewest tokens from `start` on that spell whole characters, and how many tokens these are."""
    for count in range(1, LONGEST_CHARACTER + 1):
        text = _decode_after(tokenizer, ids, start, start + count)
        if BROKEN not in text:
            return text, min(count, len(ids) - start)
    return _decode_after(tokenizer, ids, start, start + 1), 1


def _decode_after(tokenizer: Tokenizer, ids: list[int], start: int, stop: int) -> str:
    """What the tokens add to the text of the token before them. Decoded alone, a SentencePiece token loses its leading
    space."""
    before, own = ids[max(0, start - 1) : start], ids[start:stop]
    prefix = exact_text(tokenizer, before)
    both = exact_text(tokenizer, before + own)
    if both.startswith(prefix) and BROKEN not in prefix:
        return both[len(prefix) :]
    return exact_text(tokenizer, own)
