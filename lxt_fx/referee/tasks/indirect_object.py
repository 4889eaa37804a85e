"""The task of indirect objects (Wang et al. 2022): two people, of whom one gives something to the other."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.referee.tasks.candidate import Candidate, distinct, marked
from lxt_fx.referee.tasks.public_files import Entry, entries
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import words

NAMES = words("""
Mary|John|Anna|Peter|Sarah|Tom|Emma|James|Laura|David|Alice|Michael|Julia|Robert|Kate|Daniel|Sophie|Mark|Helen|Paul
Lucy|Simon|Jane|Martin|Rachel|Andrew|Lisa|Kevin|Susan|Brian|Claire|Steven|Nancy|George|Karen|Henry|Linda|Frank|Maria
Jack|Diana|Adam|Rose|Victor|Amy|Eric|Grace|Oliver|Ruth|Philip|Carol|Edward|Megan|Justin|Donna|Ryan|Alison|Scott|Teresa
Patrick
""")

PLACES = words("""
store|park|station|library|school|office|garden|market|beach|museum|restaurant|hospital|airport|bakery|theatre|river
zoo|bank
""")

THINGS = words("""
drink|book|ring|letter|ball|key|flower|ticket|hat|map|camera|watch|necklace|sandwich|basket|present|photograph|coat
pen|lamp
""")

TEMPLATES = (
    "When {a} and {b} went to the {place}, {s} gave a {thing} to",
    "Then, {a} and {b} went to the {place}. {s} gave a {thing} to",
    "After {a} and {b} had met at the {place}, {s} handed a {thing} to",
    "While {a} and {b} were working at the {place}, {s} passed a {thing} to",
    "Last week, {a} and {b} had a long argument at the {place}. In the end, {s} said sorry to",
    "Friends {a} and {b} found a {thing} near the {place}. {s} decided to give it to",
    "{a} and {b} were thinking about a trip to the {place}. {s} offered a {thing} to",
    "One evening {a} and {b} stayed late at the {place}, and {s} told a story to",
    "Because {a} and {b} had lost a {thing} at the {place}, {s} wrote a message to",
    "At the {place}, {a} sat down next to {b}. Without a word, {s} threw the {thing} to",
    "The {thing} at the {place} belonged to {a} and {b}, but {s} wanted to sell it to",
    "Yesterday {a} invited {b} to the {place}. There, {s} showed a {thing} to",
    "It was raining when {a} and {b} left the {place}, so {s} lent a {thing} to",
    "Nobody at the {place} knew {a} and {b}. After a while, {s} brought a {thing} to",
)


def indirect_object(path: str | Path | None = None) -> TextTask:
    """Prompts of the project, or those of a file in the format of dual_path_attribution: JSON, a list of objects with
    `prompt` and `answer` (the indirect object), and the subject named twice in the prompt.

    The number is the logit of the indirect object less that of the subject. Gold is the indirect object's name, the one
    word that the answer copies; how a model finds which of the two names comes twice is left to it. Prompts about the same
    two people are a group.

    Raises InputError for a file of another form; the message names the entry and the field.
    """
    if path is None:
        return TextTask("indirect_object", _own)
    return TextTask("indirect_object", partial(_given, [_public(entry) for entry in entries(path)]))


def _own(tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(_drawn(random.Random(f"{seed} indirect_object")))


def _drawn(chance: random.Random) -> Iterator[Candidate]:
    while True:
        asked, subject = chance.sample(NAMES, 2)
        first, second = chance.choice(((f"[{asked}]", subject), (subject, f"[{asked}]")))
        slots = {"place": chance.choice(PLACES), "thing": chance.choice(THINGS)}
        text, gold = marked(chance.choice(TEMPLATES).format(a=first, b=second, s=subject, **slots))
        yield Candidate(text, (f" {asked}",), (f" {subject}",), gold, judged="contrast", group=_people(asked, subject))


def _given(found: list[Candidate], tokenizer: Any, seed: int) -> Iterator[Candidate]:
    shuffled = list(found)
    random.Random(f"{seed} indirect_object").shuffle(shuffled)
    yield from shuffled


def _public(entry: Entry) -> Candidate:
    prompt, asked = entry.text("prompt"), entry.text("answer")
    places = [place.start() for place in re.finditer(rf"\b{re.escape(asked)}\b", prompt)]
    if len(places) != 1:
        raise InputError(f"{entry.where}: the field 'answer' is {asked!r}, which must stand once in the prompt {prompt!r}")
    named = Counter(re.findall(r"\b[A-Z]\w+", prompt))
    twice = [name for name, count in named.items() if count == 2]
    if len(twice) != 1:
        raise InputError(f"{entry.where}: the field 'prompt' must name one person twice, the subject, got {prompt!r}")
    gold = ((places[0], places[0] + len(asked)),)
    key = f"ioi-{entry.number('case_id')}" if "case_id" in entry.fields else ""
    return Candidate(
        prompt, (f" {asked}",), (f" {twice[0]}",), gold, judged="contrast", given_key=key, group=_people(asked, twice[0])
    )


def _people(asked: str, subject: str) -> str:
    return " and ".join(sorted((asked, subject)))
