"""Which tokens of a text belong together: words, sentences, the texts of a pair, spans that a person names.

Every function returns ranges of tokens, in order, that cover the text.
"""

from __future__ import annotations

import operator
import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, SupportsIndex

from lxt_fx.base.errors import InputError
from lxt_fx.results.readings import TextReading

Span = tuple[SupportsIndex, SupportsIndex] | str
"""A range of tokens (start, end), or a string to find in the text."""

UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F), (0x20000, 0x3FFFF),
)  # fmt: skip
"""Scripts that write no space between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Han."""

APOSTROPHES, JOINER = "'’", "\u200d"
BREAKS = {"\n": "↵", "\t": "⇥"}
"""How tokens show line breaks and tabs."""

_PART = re.compile(r"(.*)\((\d)/(\d)\)", re.DOTALL)
_END = re.compile(r"[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*|↵+")
_TITLES = frozenset(["mr", "mrs", "ms", "dr", "prof", "st", "vs", "cf", "fig", "eq", "no", "e.g", "i.e"])


def shown_alone(tokens: Sequence[str]) -> tuple[str, ...]:
    """What each token adds to the text: of a character that several tokens share (`🦙(1/2)`, `🦙(2/2)`), the first gets the
    character and the others nothing."""
    found = list(tokens)
    at = 0
    while at < len(found):
        part = _PART.fullmatch(found[at])
        count = int(part[3]) if part and part[2] == "1" else 1
        base = part[1] if part else ""
        rest = [f"{base.lstrip(' ')}({k}/{count})" for k in range(2, count + 1)]
        if count > 1 and base and found[at + 1 : at + count] == rest:
            found[at : at + count] = [base, *[""] * (count - 1)]
            at += count
        else:
            at += 1
    return tuple(found)


def words(reading: TextReading) -> tuple[range, ...]:
    """Words by whitespace and punctuation; a run of one punctuation mark is a word, and `don't` and `3.14` are. A script
    without spaces goes by character. A token that belongs to two words joins them."""
    letters = _letters(reading)
    joined = set(_shared(reading))
    for at in range(1, len(letters)):
        (_, before), (_, token) = letters[at - 1], letters[at]
        if token != before and _continues(letters, at):
            joined.update(range(before + 1, token + 1))
    return _ranges(reading, joined)


def sentences(reading: TextReading) -> tuple[range, ...]:
    """Sentences by `.`, `!`, `?` before a space and no small letter, by their full-width forms, and by line ends. A token
    belongs to the sentence that it starts in; initials (`J. Smith`) and a few titles end none."""
    letters = _letters(reading)
    text = "".join(c for c, _ in letters)
    starts = set()
    for end in _END.finditer(text):
        following = next((at for at in range(end.end(), len(text)) if not (text[at].isspace() or text[at] == "↵")), None)
        if following is not None and _ends_sentence(text, end, following):
            starts.add(letters[following][1])
    return _ranges(reading, set(range(1, len(reading.tokens))) - starts)


def segments(reading: TextReading) -> tuple[range, ...]:
    """The texts of a pair."""
    return _ranges(reading, set(range(1, len(reading.tokens))))


def spans(reading: TextReading, wanted: Iterable[Span], where: str) -> tuple[tuple[range, ...], set[str]]:
    """The named spans, every other token alone; and the strings that are not in the text.

    Raises InputError for a span outside the text, an empty one, or spans that share a token.
    """
    count, found, lost = len(reading.tokens), list[range](), set[str]()
    for span in wanted:
        places = places_of(reading, span, where) if isinstance(span, str) else [_range(span, count, where)]
        found += places
        if isinstance(span, str) and not places:
            lost.add(span)
    taken = sorted(set(found), key=lambda r: (r.start, r.stop))
    for one, other in pairwise(taken):
        if other.start < one.stop:
            shared = reading.tokens[other.start]
            raise InputError(
                f"{where}: tokens {_said(one)} and {_said(other)} share {shared!r}; give spans that share no token"
            )
    joined = {at for span in taken for at in range(span.start + 1, span.stop)}
    cuts = [at for at in range(count) if at not in joined]
    return tuple(range(a, b) for a, b in pairwise([*cuts, count])), lost


def _range(span: Any, count: int, where: str) -> range:
    try:
        first, stop = span
        start, end = operator.index(first), operator.index(stop)
    except (TypeError, ValueError):
        raise InputError(
            f"{where}: a span is (start, end) in tokens, or a string of the text, got {span!r}; or say 'words', "
            "'sentences' or 'segments'"
        ) from None
    if not 0 <= start < end <= count:
        raise InputError(f"{where}: the span ({start}, {end}) is not within the {count} tokens of the text, or is empty")
    return range(start, end)


def _said(span: range) -> str:
    return f"{span.start} to {span.stop - 1}"


def places_of(reading: TextReading, wanted: str, where: str) -> list[range]:
    """The tokens of each place where the string stands in the text. Raises InputError for an empty string."""
    if not wanted.strip():
        raise InputError(f"{where}: an empty string is no span of the text")
    found = []
    if reading.text is not None and reading.spans is not None:
        for hit in re.finditer(re.escape(wanted), reading.text):
            pairs = enumerate(reading.spans)
            found.append([at for at, (start, end) in pairs if start < hit.end() and end > hit.start()])
    if not any(found):
        letters = _letters(reading)
        bare = "".join(BREAKS.get(c, c) for c in wanted.strip(" "))
        for hit in re.finditer(re.escape(bare), "".join(c for c, _ in letters)):
            found.append([token for _, token in letters[hit.start() : hit.end()]])
    return [range(min(tokens), max(tokens) + 1) for tokens in found if tokens]


def _ranges(reading: TextReading, joined: set[int]) -> tuple[range, ...]:
    """The text cut before each token that is not joined to the one before it. Special tokens stay alone, and nothing
    reaches from one text of a pair to the next or into the answer."""
    count, special, segment = len(reading.tokens), reading.special, reading.segments
    cuts = [
        at
        for at in range(count)
        if at == 0
        or at not in joined
        or special[at]
        or special[at - 1]
        or segment[at] != segment[at - 1]
        or at == count - reading.answer
    ]
    return tuple(range(a, b) for a, b in pairwise([*cuts, count]))


def _letters(reading: TextReading) -> list[tuple[str, int]]:
    """Each character of the text with its token; a special token is one character that belongs to no word."""
    found = []
    for at, token in enumerate(shown_alone(reading.tokens)):
        found += [("\0", at)] if reading.special[at] else [(c, at) for c in token]
    return found


def _shared(reading: TextReading) -> list[int]:
    """The tokens that go on with a character of the token before them."""
    return [at for at, token in enumerate(shown_alone(reading.tokens)) if token == "" and reading.tokens[at]]


def _continues(letters: Sequence[tuple[str, int]], at: int) -> bool:
    """Whether a character belongs to the word of the one before it."""
    before, here = letters[at - 1][0], letters[at][0]
    after = letters[at + 1][0] if at + 1 < len(letters) else " "
    earlier = letters[at - 2][0] if at > 1 else " "
    kind, last = _kind(here), _kind(before)
    if "space" in (kind, last):
        return False
    if kind == "mark" or before == JOINER:
        return True
    if kind == "word":
        return last in ("word", "mark") or _inside(earlier, before, here)
    return here == before if kind == "sign" and not _inside(before, here, after) else kind == "sign"


def _inside(before: str, sign: str, after: str) -> bool:
    """Whether a sign between two characters stands inside a word: an apostrophe, or the point of a number."""
    if sign in APOSTROPHES:
        return _kind(before) == _kind(after) == "word"
    return sign in ".," and before.isdecimal() and after.isdecimal()


def _kind(c: str) -> str:
    if c.isspace() or c in "\0↵⇥":
        return "space"
    category = unicodedata.category(c)
    if category[0] == "M" or category == "Cf" or 0x1F3FB <= ord(c) <= 0x1F3FF:
        return "mark"
    if any(low <= ord(c) <= high for low, high in UNSPACED):
        return "character"
    return "word" if c.isalnum() or c == "_" else "sign"


def _ends_sentence(text: str, end: re.Match[str], following: int) -> bool:
    if end[0][0] not in ".!?…":
        return True
    if text[following].islower():
        return False
    word = text[: end.start()].split()[-1:] if end[0] == "." else []
    return not word or not (len(word[0]) == 1 and word[0].isupper() or word[0].lower() in _TITLES)
