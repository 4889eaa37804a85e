"""The task of sentiment: short reviews whose judgement stands in a few words."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from lxt_fx.referee.tasks.candidate import Candidate, distinct, marked
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import with_articles, words

GOOD = words("""
wonderful|excellent|fantastic|delightful|amazing|brilliant|superb|beautiful|charming|perfect|great|lovely|impressive
outstanding|enjoyable
""")

BAD = words("""
terrible|awful|horrible|dreadful|boring|disappointing|ugly|poor|disgusting|annoying|bad|miserable|useless|pathetic
unpleasant
""")

PARTS = {
    "movie": ["story", "acting", "music", "plot", "dialogue", "ending", "cast", "script"],
    "restaurant": ["food", "service", "soup", "dessert", "waiter", "menu", "coffee", "pasta"],
    "hotel": ["room", "breakfast", "staff", "view", "pool", "bed", "location", "lobby"],
    "book": ["story", "language", "characters", "plot", "ending", "dialogue", "style", "cover"],
    "concert": ["band", "singer", "sound", "stage", "audience", "music", "show", "drummer"],
}

BODIES = (
    "The {part} was [{one}] and the {other} was [{two}].",
    "We went there on {day}. The {part} was [{one}], and in the end I found the {other} [{two}].",
    "I saw this {thing} with my {friend}. What a [{one}] {part}, and such a [{two}] {other}.",
    "My {friend} told me about this {thing}. I thought that the {part} was [{one}].",
    "This {thing} has a [{one}] {part} and a [{two}] {other}. I was there on {day}.",
    "On {day} I tried the {thing} in our street. It was [{one}], above all the {part}.",
)

FRAMES = (
    "Review: {body}\nSentiment:",
    "Review of a {thing}: {body}\nIs this review positive or negative? Answer:",
    "{body} The sentiment of this review of a {thing} is",
    "Text: {body}\nLabel (positive or negative):",
)

DAYS = words("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
FRIENDS = words("sister|brother|mother|father|neighbor|cousin|friend|uncle|aunt")


def sentiment() -> TextTask:
    """Reviews that are good or bad throughout. The number is the mean logit of the right label less that of the wrong one
    (positive, negative, in small letters and with a capital). A model is asked where it is right, and right again where the
    words that judge become their opposites: otherwise a leaning to one label would do. Gold is these words."""
    return TextTask("sentiment", _own)


def _own(tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(_drawn(random.Random(f"{seed} sentiment")))


def _drawn(chance: random.Random) -> Iterator[Candidate]:
    labels = ((" positive", " Positive"), (" negative", " Negative"))
    while True:
        thing = chance.choice(sorted(PARTS))
        part, other = chance.sample(PARTS[thing], 2)
        slots = {"thing": thing, "part": part, "other": other, "day": chance.choice(DAYS), "friend": chance.choice(FRIENDS)}
        body, frame = chance.choice(BODIES), chance.choice(FRAMES)
        chosen = [(chance.sample(found, 2), right) for found, right in zip((GOOD, BAD), labels, strict=True)]
        chance.shuffle(chosen)
        (own, right), (opposite, wrong) = chosen
        written = [frame.format(body=body.format(one=one, two=two, **slots), thing=thing) for one, two in (own, opposite)]
        (text, gold), (turned, turned_gold) = (marked(with_articles(each)) for each in written)
        twin = Candidate(turned, wrong, right, turned_gold, judged="contrast")
        yield Candidate(text, right, wrong, gold, judged="contrast", also=(twin,))
