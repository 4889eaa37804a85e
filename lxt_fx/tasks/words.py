"""Where a word, or several, stand in a text of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stretch:
    """Tokens `start` to `stop` - 1 of a text spell what was looked for, which the text has so many `times`. `shown` is how
    the text writes it."""

    start: int
    stop: int
    shown: str
    times: int

    @property
    def positions(self) -> range:
        """The positions of its tokens."""
        return range(self.start, self.stop)


def stretch_of(wanted: str, tokens: Sequence[str], first: int = 0, stop: int | None = None) -> Stretch | None:
    """The first tokens that spell `wanted` whole, with capital letters or without, from token `first` to `stop` - 1; None
    if there are none. The stretch starts and ends with whole tokens and whole words, and spaces at its ends do not
    count."""
    end, found = len(tokens) if stop is None else stop, []
    sought = wanted.strip().casefold()
    for start in (start for start in range(first, end) if tokens[start].strip()):
        spelled = ""
        for after in range(start, end):
            spelled += tokens[after]
            if spelled.strip().casefold() == sought and _begins(tokens, start, first) and _ends(tokens, after + 1, end):
                found.append((start, after + 1, spelled.strip()))
                break
            if len(spelled.strip()) > len(sought):
                break
    if not sought or not found:
        return None
    return Stretch(*found[0], times=len(found))


def _begins(tokens: Sequence[str], start: int, first: int) -> bool:
    """Whether a word begins at this token."""
    return start == first or not (tokens[start][:1].isalnum() and tokens[start - 1][-1:].isalnum())


def _ends(tokens: Sequence[str], stop: int, end: int) -> bool:
    """Whether a word ends before this token."""
    return stop == end or not (tokens[stop][:1].isalnum() and tokens[stop - 1][-1:].isalnum())
