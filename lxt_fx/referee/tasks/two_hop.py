"""The task of two hops: two facts of a text that must both be read, among others and among sentences without any."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from lxt_fx.referee.tasks.candidate import Candidate, distinct, marked
from lxt_fx.referee.tasks.filler import hidden
from lxt_fx.referee.tasks.needle import NAMES, check_length
from lxt_fx.referee.tasks.reading import read
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import words

FRAMES = (
    ("{a} has a friend called {b}.", "{b} lives in {end}.", "The friend of {a} lives in", "cities"),
    ("{a} is married to {b}.", "{b} was born in {end}.", "{a} is married to a person who was born in", "cities"),
    ("{a} has a cousin, {b}.", "{b} works in {end}.", "The cousin of {a} works in", "cities"),
    ("The boss of {a} is {b}.", "{b} speaks {end}.", "The boss of {a} speaks", "languages"),
    ("{a} lives next door to {b}.", "{b} plays the {end}.", "The neighbor of {a} plays the", "instruments"),
    ("{a} gave the box to {b}.", "{b} put the box under the {end}.", "The box that {a} gave away is under the", "places"),
)

ENDS = {
    "cities": "Paris|London|Rome|Berlin|Madrid|Vienna|Tokyo|Moscow|Boston|Chicago|Dublin|Cairo|Athens|Lisbon|Prague|Oslo",
    "languages": "French|German|Spanish|Italian|Russian|Chinese|Japanese|Arabic|Greek|Dutch|Polish|Turkish",
    "instruments": "piano|violin|guitar|trumpet|flute|cello|drums|clarinet|harp|organ|saxophone|banjo",
    "places": "bed|table|tree|bridge|stairs|desk|chair|sofa|piano|carpet|bench|window",
}


def two_hop(length: int = 100) -> TextTask:
    """Prompts of about `length` tokens, 50 to 500, with two chains of two facts each: of whom one knows whom, and of where
    that one lives, say. The number is the logit of the answer less that of the other chain's.

    A model is asked where it answers right, and right again where the two first facts change their people, so that the
    answers change places. So it reads the first fact, and the second: no other sentence holds the answer. Gold is the
    person in the first fact and the answer in the second. Prompts that ask about one person are a group.

    Raises InputError for another length.
    """
    check_length("two_hop", length)
    return TextTask("two_hop", partial(_own, length))


def _own(length: int, tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(_drawn(length, tokenizer, random.Random(f"{seed} two_hop {length}")))


def _drawn(length: int, tokenizer: Any, chance: random.Random) -> Iterator[Candidate]:
    while True:
        link, second, question, ends = chance.choice(FRAMES)
        asked, other, one, two = chance.sample(NAMES, 4)
        right, wrong = chance.sample(words(ENDS[ends]), 2)
        seconds = [second.format(b=one, end="{one}"), second.format(b=two, end="{two}")]
        facts = [link.format(a=asked, b="{of_asked}"), link.format(a=other, b="{of_other}"), *seconds]
        chance.shuffle(facts)
        template = hidden(facts, question.format(a=asked), length, lambda text: len(read(tokenizer, text).ids), chance)
        text, gold = marked(template.format(of_asked=f"[{one}]", of_other=two, one=f"[{right}]", two=wrong))
        swapped, swapped_gold = marked(template.format(of_asked=f"[{two}]", of_other=one, one=right, two=f"[{wrong}]"))
        twin = Candidate(swapped, (f" {wrong}",), (f" {right}",), swapped_gold, judged="contrast")
        yield Candidate(text, (f" {right}",), (f" {wrong}",), gold, judged="contrast", also=(twin,), group=asked)
