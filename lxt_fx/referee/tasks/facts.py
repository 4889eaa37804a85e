"""The task of facts: prompts that ask what a model knows, whose answer must rest on their subject."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.referee.tasks import facts_data as data
from lxt_fx.referee.tasks.candidate import Candidate, distinct, marked, times_said
from lxt_fx.referee.tasks.public_files import Entry, entries
from lxt_fx.referee.tasks.text_task import TextTask
from lxt_fx.referee.tasks.word_lists import words

Pair = tuple[str, str]


def facts(path: str | Path | None = None) -> TextTask:
    """Facts of the project, or those of a file in the format of Known-1000 (ROME): JSON, a list of objects with `known_id`,
    `subject`, `prompt` and `attribute`. Gold is the subject; prompts about one subject are a group.

    Raises InputError for a file of another form; the message names the entry and the field.
    """
    given = None if path is None else [_known(entry) for entry in entries(path)]
    return TextTask("facts", partial(_candidates, given))


def _candidates(given: list[Candidate] | None, tokenizer: Any, seed: int) -> Iterator[Candidate]:
    found = list(distinct(_own())) if given is None else list(given)
    random.Random(f"{seed} facts").shuffle(found)
    yield from found


def _own() -> Iterator[Candidate]:
    for relation, pairs in pairs_by_relation().items():
        for template in data.RELATIONS[relation]:
            yield from asked_by(template, pairs)


def asked_by(template: str, pairs: Iterable[Pair]) -> Iterator[Candidate]:
    """The facts of these subjects and answers as a prompt of their relation asks for them. A prompt that says its answer
    (the opposite of `question`, behind `Question:`) is left out."""
    for subject, answer in pairs:
        text, gold = marked(template.format(subject))
        if not times_said(text, answer):
            yield Candidate(text[0].upper() + text[1:], (f" {answer}",), gold=gold, group=subject)


def pairs_by_relation() -> dict[str, list[Pair]]:
    """By relation its subjects with their answers."""
    countries = [line.split() for line in words(data.COUNTRIES)]
    return {
        "capital": [(country, capital) for country, capital, _, _ in countries if country != capital],
        "language": [(country, language) for country, _, language, _ in countries],
        "continent": [(country, continent) for country, _, _, continent in countries],
        "city": [(city, line.split()[0]) for line in words(data.CITIES) for city in line.split()[1:]],
        "kind": [(thing, line.split()[0]) for line in words(data.KINDS) for thing in line.split()[1:]],
        "opposite": _two(data.OPPOSITES) + [(answer, subject) for subject, answer in _two(data.OPPOSITES)],
        "young": _two(data.YOUNG),
        "symbol": _two(data.SYMBOLS),
        "colour": _two(data.COLOURS),
        "plural": _two(data.PLURALS),
        "past": _two(data.PASTS),
        "author": _two(data.AUTHORS),
        "next": _two(data.NEXT),
        "maker": _two(data.MAKERS),
        "work": _two(data.WORKS),
    }


def _two(table: str) -> list[Pair]:
    pairs = [line.split() for line in words(table)]
    return [(subject.replace("_", " "), answer.replace("_", " ")) for subject, answer in pairs]


def _known(entry: Entry) -> Candidate:
    subject, prompt, answer = entry.text("subject"), entry.text("prompt"), entry.text("attribute")
    start = prompt.find(subject)
    if start < 0:
        raise InputError(f"{entry.where}: the field 'subject' is {subject!r}, which the prompt {prompt!r} does not have")
    key = f"known-{entry.number('known_id')}"
    return Candidate(prompt, (f" {answer}",), gold=((start, start + len(subject)),), given_key=key, group=subject)
