"""The task of greater-than (Hanna et al. 2023): a year that must be later than another one of the same century."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.referee.tasks.candidate import Candidate, Span, distinct
from lxt_fx.referee.tasks.public_files import Entry, lines_of_table
from lxt_fx.referee.tasks.reading import continuation, read_prompt
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import words

NOUNS = words("""
war|strike|siege|reign|project|voyage|drought|alliance|dispute|famine|truce|expedition|trial|rebellion|campaign
construction|peace|festival|marriage|treaty|journey|contest|dynasty|epidemic|crisis|negotiation|occupation|restoration
conflict|exile
""")

FRAMES = (
    "The {noun} lasted from {year} to {century}",
    "The {noun} lasted from the year {year} to the year {century}",
    "The {noun} began in {year} and ended in {century}",
    "The {noun} went on from {year} until {century}",
    "It is known that the {noun}, which began in {year}, was over by {century}",
)


@dataclass(frozen=True, slots=True)
class Years:
    """A prompt whose last word is the century, `14`, and where the later two digits of its year stand."""

    text: str
    within: Span
    key: str = ""

    def candidate(self, tokenizer: Any) -> Candidate:
        """The number is the mean logit of the continuations after the year less that of those up to it. Where a token is
        one digit, these are the tens: the tens of the year itself are both and are left out, and only that digit of the
        year is gold. Prompts with one year are a group."""
        start, end = self.within
        year = int(self.text[start:end])
        ids = continuation(tokenizer, read_prompt(tokenizer, self.text), "50")
        gold = ((start, end if ids is not None and len(ids) == 1 else start + 1),)
        later = tuple(f"{each:02}" for each in range(year + 1, 100))
        others = tuple(f"{each:02}" for each in range(year + 1))
        return Candidate(
            self.text, later, others, gold, judged="contrast", given_key=self.key, group=self.text[start - 2 : end]
        )


def greater_than(path: str | Path | None = None) -> TextTask:
    """Prompts of the project, or those of a file in the format of EAP-IG: CSV with `clean`, a prompt that ends with the
    century, and `label`, the later two digits of its first year. Gold is these digits, or the tens where a token is one
    digit.

    Raises InputError for a file of another form; the message names the line and the field.
    """
    if path is None:
        return TextTask("greater_than", _own)
    return TextTask("greater_than", partial(_given, [_public(line) for line in lines_of_table(path)]))


def _own(tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(years.candidate(tokenizer) for years in _drawn(random.Random(f"{seed} greater_than")))


def _drawn(chance: random.Random) -> Iterator[Years]:
    while True:
        century, later = str(chance.randrange(11, 20)), f"{chance.randrange(2, 90):02}"
        frame = chance.choice(FRAMES)
        text = frame.format(noun=chance.choice(NOUNS), year=century + later, century=century)
        start = text.index(century + later) + 2
        yield Years(text, (start, start + 2))


def _given(found: list[Years], tokenizer: Any, seed: int) -> Iterator[Candidate]:
    shuffled = list(found)
    random.Random(f"{seed} greater_than").shuffle(shuffled)
    return distinct(years.candidate(tokenizer) for years in shuffled)


def _public(line: Entry) -> Years:
    prompt, later = line.text("clean"), f"{line.number('label'):02}"
    century = re.search(r"(?<!\d)\d\d$", prompt)
    if century is None:
        raise InputError(f"{line.where}: the field 'clean' must end with the two digits of a century, got {prompt!r}")
    year = re.search(rf"(?<!\d){century[0]}{later}(?!\d)", prompt)
    if year is None:
        raise InputError(f"{line.where}: the year {century[0]}{later}, by the field 'label', is not in {prompt!r}")
    return Years(prompt, (year.end() - 2, year.end()), f"greater-{line.where.rsplit(' ', 1)[1]}")
