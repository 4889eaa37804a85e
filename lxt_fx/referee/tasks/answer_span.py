"""The task of answer spans: a passage and a question whose answer stands in it, as in SQuAD."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.referee.tasks.candidate import Candidate, distinct, marked, text_key
from lxt_fx.referee.tasks.public_files import Entry, entries
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import with_articles, words

PROMPT = "{passage}\nQuestion: {question}"

SLOTS = {
    "town": "Ashford|Milbrook|Carden|Westhaven|Norwood|Elmsley|Harlow|Kingsport|Redmond|Silverton|Dunmore|Fairview",
    "person": """Mary Baker|John Carter|Anna Fischer|Peter Hill|Sarah Moore|Thomas Reed|Emma Stone|James Walker
Laura Bennett|David Brooks|Alice Cooper|Robert Hayes|Julia Mason|Daniel Price|Helen Shaw|Martin Wells|Clara Young
Simon Drake""",
    "friend": "Victor Lane|Rose Palmer|Oscar Finch|Nora Blake|Felix Grant|Ida Marsh|Hugo Barnes|Vera Holt|Ella Frost",
    "material": "stone|wood|brick|marble|glass|steel|iron|copper|concrete|granite",
    "river": "Thames|Danube|Rhine|Nile|Amazon|Volga|Seine|Mississippi|Ganges|Elbe",
    "month": "January|February|March|April|May|June|July|August|September|October|November|December",
    "colour": "red|blue|green|yellow|white|black|purple|orange|brown|pink",
    "animal": "lion|eagle|horse|bear|wolf|dragon|swan|deer|fox|owl|elephant|tiger",
    "crop": "wheat|rice|corn|potatoes|apples|grapes|olives|cotton|coffee|tea|sugar|barley",
    "illness": "fever|plague|cholera|measles|smallpox|malaria|pneumonia|influenza",
    "sport": "football|tennis|cricket|hockey|rugby|basketball|golf|chess|swimming|baseball",
    "country": "France|Germany|Italy|Spain|Sweden|Poland|Greece|Japan|China|India|Brazil|Mexico|Egypt|Canada",
}

PASSAGES = (
    (
        "The old bridge in {town} crosses the river {river}. It was designed by {person} and is made of {material}. In "
        "{month}, visitors come from {country} to see the {colour} lamps on it.",
        (
            ("person", "Who designed the bridge?\nAnswer: The bridge was designed by"),
            ("material", "What is the bridge made of?\nAnswer: The bridge is made of"),
            ("river", "Which river does the bridge cross?\nAnswer: The bridge crosses the river"),
            ("month", "In which month do visitors come?\nAnswer: Visitors come in the month of"),
            ("country", "From which country do visitors come?\nAnswer: Visitors come from"),
            ("colour", "What color are the lamps?\nAnswer: The color of the lamps is"),
        ),
    ),
    (
        "{person} was the first mayor of {town}. Farmers of the region grew {crop}, which was sold to merchants from "
        "{country}. The flag of the town shows a {animal} on a {colour} field. The mayor died of {illness} and was "
        "followed by {friend}.",
        (
            ("person", "Who was the first mayor?\nAnswer: The first mayor was"),
            ("crop", "What did farmers grow?\nAnswer: Farmers grew"),
            ("country", "Where did the merchants come from?\nAnswer: The merchants came from"),
            ("animal", "Which animal does the flag show?\nAnswer: The animal on the flag is the"),
            ("illness", "What did the mayor die of?\nAnswer: The mayor died of"),
            ("friend", "Who followed the first mayor?\nAnswer: The first mayor was followed by"),
        ),
    ),
    (
        "Every {month}, a large {sport} tournament takes place in {town}. It was founded by {person}. The winner gets a "
        "statue of a {animal}, which is made of {material}. Last time, the final was won by {friend} from {country}.",
        (
            ("month", "In which month does the tournament take place?\nAnswer: The tournament takes place every"),
            ("sport", "Which sport is played?\nAnswer: The sport that is played is"),
            ("person", "Who founded the tournament?\nAnswer: The tournament was founded by"),
            ("animal", "Which animal does the statue show?\nAnswer: The animal of the statue is the"),
            ("material", "What is the statue made of?\nAnswer: The statue is made of"),
            ("friend", "Who won the final?\nAnswer: The final was won by"),
            ("country", "Which country does the winner come from?\nAnswer: The winner comes from"),
        ),
    ),
    (
        "The novel tells the story of {person}, a doctor who leaves {country} to treat people with {illness}. In a village "
        "by the {river}, the doctor meets {friend}, who breeds a {animal} and plays {sport}. The cover of the book is "
        "{colour}.",
        (
            ("person", "What is the name of the doctor?\nAnswer: The name of the doctor is"),
            ("country", "Which country does the doctor leave?\nAnswer: The doctor leaves"),
            ("illness", "Which illness do the people have?\nAnswer: The people have"),
            ("river", "By which river is the village?\nAnswer: The village is by the"),
            ("friend", "Whom does the doctor meet?\nAnswer: The doctor meets"),
            ("colour", "What color is the cover of the book?\nAnswer: The cover of the book is"),
        ),
    ),
)
"""Passages, each with what is asked
        about it: the slot that answers, and the question."""


def answer_span(path: str | Path | None = None) -> TextTask:
    """Passages of the project, or those of a file of short SQuAD questions: JSON, a list of objects with `context`,
    `question`, `answer` and `answer_span`, the characters of the context that answer.

    The number is the logit of the answer's first token. Gold is the answer in the passage. Questions about one passage
    are a group.

    Raises InputError for a file of another form; the message names the entry and the field.
    """
    if path is None:
        return TextTask("answer_span", _own)
    return TextTask("answer_span", partial(_given, [_public(entry) for entry in entries(path)]))


def _own(tokenizer: Any, seed: int) -> Iterator[Candidate]:
    return distinct(_drawn(random.Random(f"{seed} answer_span")))


def _drawn(chance: random.Random) -> Iterator[Candidate]:
    slots = {slot: words(table) for slot, table in SLOTS.items()}
    while True:
        passage, questions = chance.choice(PASSAGES)
        chosen = {slot: chance.choice(slots[slot]) for slot in slots}
        slot, question = chance.choice(questions)
        written = passage.format(**chosen | {slot: f"[{chosen[slot]}]"})
        text, gold = marked(with_articles(PROMPT.format(passage=written, question=question)))
        yield Candidate(text, (f" {chosen[slot]}",), gold=gold, group=text_key(marked(written)[0]))


def _given(found: list[Candidate], tokenizer: Any, seed: int) -> Iterator[Candidate]:
    shuffled = list(found)
    random.Random(f"{seed} answer_span").shuffle(shuffled)
    yield from shuffled


def _public(entry: Entry) -> Candidate:
    passage, answer = entry.text("context"), entry.text("answer")
    span = entry.span("answer_span", passage)
    written = passage[slice(*span)]
    if written.casefold() != answer.casefold():
        raise InputError(f"{entry.where}: the field 'answer_span' {list(span)} is {written!r}, the answer {answer!r}")
    prompt = PROMPT.format(passage=passage, question=f"{entry.text('question').strip()}\nAnswer:")
    key = f"squad-{entry.text('id')}" if "id" in entry.fields else ""
    return Candidate(prompt, (f" {written}",), gold=(span,), given_key=key, group=text_key(passage))
