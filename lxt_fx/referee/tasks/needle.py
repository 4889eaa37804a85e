"""The task of needles: a fact among sentences that say nothing of it, and a question at the end."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.referee.tasks.candidate import Candidate, distinct, marked, times_said
from lxt_fx.referee.tasks.filler import hidden
from lxt_fx.referee.tasks.reading import read
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import with_articles, words

LENGTHS = (50, 500)
"""A prompt has so many tokens at least and at most."""

FRAMES = (
    ("The password for the {place} is [{word}].", "The password for the {place} is"),
    (
        "The password for the {place} is [{word}].",
        "Question: What is the password for the {place}? Answer: The password is",
    ),
    ("The secret code word of the {place} is [{word}].", "The secret code word of the {place} is"),
    ("The treasure was hidden inside the [{word}].", "Question: Where was the treasure hidden? Answer: Inside the"),
    ("The dog of {name} is called [{Word}].", "Question: What is the dog of {name} called? Answer: The dog is called"),
    ("The favorite animal of {name} is the [{word}].", "The favorite animal of {name} is the"),
    ("{name} gave the {place} a new name, which is [{Word}].", "Question: What is the new name of the {place}? Answer:"),
    ("On the wall of the {place}, {name} drew a [{word}].", "On the wall of the {place}, {name} drew a"),
)

PLACES = words("""
cellar|tower|castle|garden|vault|attic|library|laboratory|workshop|ship|museum|station|theatre|school|hotel
""")

NAMES = words("""
Mary|John|Anna|Peter|Sarah|Tom|Emma|James|Laura|David|Alice|Julia|Robert|Daniel|Helen|Paul|Lucy|Simon|Jane
""")

WORDS = words("""
falcon|tiger|lion|eagle|wolf|bear|fox|dragon|snake|whale|shark|horse|monkey|elephant|zebra|camel|turtle|dolphin|spider
panther|banana|coconut|pepper|honey|cinnamon|coffee|chocolate|diamond|silver|copper|marble|crystal|thunder|river
mountain|forest|ocean|desert|island|volcano|comet|planet|shadow|winter|summer|piano|violin|trumpet|guitar|hammer
candle|mirror|ladder|bottle
""")


def needle(length: int = 100) -> TextTask:
    """Prompts of about `length` tokens, 50 to 500. The number is the logit of the word that is asked for; gold is that word
    in the fact, and stands nowhere else. Prompts whose questions name one place or person are a group.

    Raises InputError for another length.
    """
    check_length("needle", length)
    return TextTask("needle", partial(_own, length))


def check_length(task: str, length: int) -> None:
    """Raises InputError for what is no whole number of tokens from 50 to 500."""
    least, most = LENGTHS
    if not isinstance(length, int) or isinstance(length, bool) or not least <= length <= most:
        raise InputError(f"{task}: length must be a whole number of tokens from {least} to {most}, got {length!r}")


def _own(length: int, tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(_drawn(length, tokenizer, random.Random(f"{seed} needle {length}")))


def _drawn(length: int, tokenizer: Any, chance: random.Random) -> Iterator[Candidate]:
    while True:
        fact, question = chance.choice(FRAMES)
        word = chance.choice(WORDS)
        slots = {"place": chance.choice(PLACES), "name": chance.choice(NAMES), "word": word, "Word": word.capitalize()}
        template = hidden(
            [fact.format(**slots)], question.format(**slots), length, lambda text: len(read(tokenizer, text).ids), chance
        )
        named = re.findall(r"{(place|name)}", question)
        text, gold = marked(with_articles(template))
        if times_said(text, word) > 1:
            continue  # a sentence that says nothing of it names the word too, and the model may copy it from there
        group = slots[named[0]] if named else question
        yield Candidate(text, (f" {text[gold[0][0] : gold[0][1]]}",), gold=gold, group=group)
