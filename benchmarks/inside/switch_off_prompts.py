"""The prompts of switch_off.py: those that the model answers right, each with a control answer."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lxt_fx.referee.tasks.facts import asked_by, pairs_by_relation
from lxt_fx.referee.tasks.facts_data import RELATIONS

A_RELATION = 5
"""At most so many facts of each relation count, of those that the model knows."""

OPPOSITE = "The opposite of {word} is"
OPPOSITES = (
    "hot cold", "big small", "tall short", "fast slow", "light dark", "good bad", "up down", "old new", "rich poor",
    "open closed", "hard soft", "wet dry", "strong weak", "high low", "dirty clean", "war peace", "black white",
    "true false", "long short", "thick thin", "north south", "life death", "young old", "heavy light", "left right",
    "inside outside", "male female", "increase decrease", "positive negative", "maximum minimum",
)  # fmt: skip

SINGULAR = (
    "The key to the cabinets", "The result of the studies", "The reason for the changes", "The cost of the houses",
    "The cause of the problems", "The color of the flowers", "The price of the cars", "The purpose of the rules",
    "The size of the boxes", "The title of the songs", "The goal of the projects", "The smell of the flowers",
    "The taste of the apples", "The value of the coins", "The king of the animals",
)  # fmt: skip
PLURAL = (
    "The keys to the cabinet", "The children in the garden", "The pictures on the wall", "The people in the village",
    "The names of the winner", "The colors of the flag", "The members of the team", "The walls of the castle",
    "The players on the team", "The windows of the room", "The sides of the box", "The goals of the project",
    "The workers in the factory", "The roads to the city", "The results of the study",
)  # fmt: skip
"""The noun before the verb has the other number, so the verb must agree with the first one."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt `ids` of one kind, the first tokens of its answer and of the control answer, and the index of the prompt of
    the same relation that has the control as its answer: None where there is none of as many tokens."""

    kind: str
    relation: str
    text: str
    ids: tuple[int, ...]
    answer: int
    control: int = -1
    other: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as it is written, what it asks for, and the answers that are right, each with its control if that is known
    by now."""

    kind: str
    relation: str
    text: str
    answers: tuple[tuple[str, str | None], ...]


def questions() -> list[Question]:
    """All prompts: facts, which come in another order, numbers of verbs, and opposites."""
    found = []
    for relation, known in pairs_by_relation().items():
        if relation != "opposite":
            asked = asked_by(RELATIONS[relation][0], known)
            found += [Question("facts", relation, each.text, ((each.right[0].strip(), None),)) for each in asked]
    random.Random(0).shuffle(found)
    found += [Question("number", "number", text, (("is", "are"), ("was", "were"))) for text in SINGULAR]
    found += [Question("number", "number", text, (("are", "is"), ("were", "was"))) for text in PLURAL]
    pairs = [tuple(pair.split()) for pair in OPPOSITES]
    return found + [Question("opposites", "opposite", OPPOSITE.format(word=a), ((b, None),)) for a, b in pairs]


@torch.no_grad()
def answered(model: Any, tokenizer: Any, asked: Sequence[Question]) -> list[Prompt]:
    """The prompts whose answer's first token has the largest logit, of facts some of each relation, with their controls."""
    found = []
    for question in asked:
        ids = tokenizer(question.text).input_ids
        best = int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())
        for answer, control in question.answers:
            if first_token(tokenizer, answer) == best:
                other = -1 if control is None else first_token(tokenizer, control)
                found.append(Prompt(question.kind, question.relation, question.text, tuple(ids), best, other))
    return with_controls(some_facts(found))


def some_facts(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Of each relation the first facts with different answers, if there are two, and all other prompts."""
    chosen: dict[str, dict[int, Prompt]] = defaultdict(dict)
    for prompt in prompts:
        if prompt.kind == "facts" and len(chosen[prompt.relation]) < A_RELATION:
            chosen[prompt.relation].setdefault(prompt.answer, prompt)
    facts = [prompt for own in chosen.values() if len(own) > 1 for prompt in own.values()]
    return facts + [prompt for prompt in prompts if prompt.kind != "facts"]


def first_token(tokenizer: Any, word: str) -> int:
    """The first token of a word that follows another one."""
    return int(tokenizer(f" {word}", add_special_tokens=False).input_ids[0])


def with_controls(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts with the answer of the next prompt of their relation as a control, where they have none: the next one of
    as many tokens if there is one."""
    found = []
    for index, prompt in enumerate(prompts):
        if prompt.control >= 0:
            found.append(prompt)
            continue
        behind = [*range(index + 1, len(prompts)), *range(index)]
        fitting = [i for i in behind if prompts[i].relation == prompt.relation and prompts[i].answer != prompt.answer]
        if not fitting:
            raise SystemExit(f"{prompt.text!r} has the only answer of its kind, so there is no control; ask more prompts")
        same = [i for i in fitting if len(prompts[i].ids) == len(prompt.ids)]
        found.append(replace(prompt, control=prompts[(same or fitting)[0]].answer, other=same[0] if same else None))
    return found
