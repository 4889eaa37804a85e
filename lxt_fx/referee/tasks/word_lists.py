"""Word lists of the templates, as they are written down: one string, with | or a line break between words."""

from __future__ import annotations

import re


def words(table: str) -> list[str]:
    """The words of a table; one may have spaces in it."""
    return [word for line in table.strip().splitlines() for word in line.split("|")]


def with_articles(sentence: str) -> str:
    """The sentence with `an` before words that begin with a vowel, in brackets or not; none of the lists has a word such as
    `unit`."""
    return re.sub(r"\b([Aa]) (?=\[?[aeiouAEIOU])", r"\1n ", sentence)
