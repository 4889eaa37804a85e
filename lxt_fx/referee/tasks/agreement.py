"""The task of subject-verb agreement: which verb follows, whatever noun stands between it and its subject."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from lxt_fx.referee.tasks.candidate import Candidate, distinct, marked
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import words

THINGS = words("""
key keys|book books|car cars|picture pictures|letter letters|house houses|tree trees|chair chairs|flower flowers
cup cups|bottle bottles|window windows|computer computers|painting paintings|boat boats|bridge bridges|coat coats
bag bags|clock clocks|lamp lamps|machine machines|photograph photographs|garden gardens|road roads|tower towers
ship ships|shirt shirts|plate plates
""")

PEOPLE = words("""
teacher teachers|doctor doctors|student students|farmer farmers|author authors|pilot pilots|dancer dancers
singer singers|lawyer lawyers|nurse nurses|driver drivers|soldier soldiers|guard guards|officer officers
friend friends|neighbor neighbors|manager managers|painter painters|writer writers|engineer engineers|actor actors
player players|judge judges|girl girls|boy boys
""")

BESIDE = ("near", "behind", "next to", "beside", "in front of", "close to")

VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))

FRAMES = (
    "{start}the {subject} {beside} the {other}",
    "{start}the {subject} that came with the {other}",
    "{start}the {subject} of the {other}",
    "{start}the {subject} that belonged to the {other}",
)

FRAMES_OF_PEOPLE = (
    "{start}the {subject} {beside} the {other}",
    "{start}the {subject} who met the {other}",
    "{start}the {subject} that the {other} admired",
    "{start}the {subject} who talked to the {other}",
    "{start}the {subject} that worked for the {other}",
)

STARTS = ("", "I know that ", "She said that ", "Everyone thinks that ", "In the evening, ", "We heard that ", "Of course ")


def agreement() -> TextTask:
    """A subject, then another noun, most often of the other number, then the verb. The number is the mean logit of the
    verbs that agree with the subject less that of those that do not (is, was, has; are, were, have). Gold is the subject's
    noun; prompts with one noun as their subject are a group."""
    return TextTask("agreement", _own)


def _own(tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(_drawn(random.Random(f"{seed} agreement")))


def _drawn(chance: random.Random) -> Iterator[Candidate]:
    things, people = ([noun.split() for noun in nouns] for nouns in (THINGS, PEOPLE))
    while True:
        nouns, frames = chance.choice(((things, FRAMES), (people, FRAMES_OF_PEOPLE)))
        subject, other = chance.choice(nouns), chance.choice(things + people)
        if subject == other:
            continue
        many = chance.randrange(2)
        many_others = 1 - many if chance.random() < 0.75 else many
        slots = {"start": chance.choice(STARTS), "beside": chance.choice(BESIDE), "other": other[many_others]}
        text, gold = marked(chance.choice(frames).format(subject=f"[{subject[many]}]", **slots))
        right, wrong = (tuple(verbs[number] for verbs in VERBS) for number in (many, 1 - many))
        yield Candidate(text[0].upper() + text[1:], right, wrong, gold, judged="contrast", group=subject[0])
