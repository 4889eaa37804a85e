"""Generated prompts of two hops with a long answer that names the hops: what a prompt says, and which words answer."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.tasks.asking import ids_on_device, output_of, units_of
from lxt_fx.referee.tasks.candidate import Span, marked, text_key
from lxt_fx.referee.tasks.filler import hidden
from lxt_fx.referee.tasks.needle import NAMES
from lxt_fx.referee.tasks.reading import Reading, read, read_prompt
from lxt_fx.referee.tasks.two_hop import ENDS
from lxt_fx.referee.tasks.word_lists import words

FRAMES = (
    (
        "{a} has a friend called {b}.",
        "{b} lives in {end}.",
        "Where does the friend of {a} live?",
        "The friend of {a} is {b}.",
        "So the friend of {a} lives in",
        "cities",
    ),
    (
        "{a} is married to {b}.",
        "{b} was born in {end}.",
        "Where was the person born who is married to {a}?",
        "{a} is married to {b}.",
        "So the person who is married to {a} was born in",
        "cities",
    ),
    (
        "{a} has a cousin, {b}.",
        "{b} works in {end}.",
        "Where does the cousin of {a} work?",
        "The cousin of {a} is {b}.",
        "So the cousin of {a} works in",
        "cities",
    ),
    (
        "The boss of {a} is {b}.",
        "{b} speaks {end}.",
        "Which language does the boss of {a} speak?",
        "The boss of {a} is {b}.",
        "So the boss of {a} speaks",
        "languages",
    ),
    (
        "{a} lives next door to {b}.",
        "{b} plays the {end}.",
        "Which instrument does the neighbor of {a} play?",
        "The neighbor of {a} is {b}.",
        "So the neighbor of {a} plays the",
        "instruments",
    ),
)
"""The two facts of the prompt, its question, the first hop of the answer, its last sentence, and what answers. The second
hop of the answer is the second fact."""


@dataclass(frozen=True, slots=True)
class Hops:
    """A prompt and its answer. `gold` are the characters of the prompt that the answer must rest on: the person in the
    first fact, and what is said of that person in the second. `named` are those of the same words in the
    answer, and of its last word, which is what was asked for. Prompts that ask about one person are a `group`."""

    prompt: str
    answer: str
    gold: tuple[Span, ...]
    named: tuple[Span, ...]
    group: str


@dataclass(frozen=True, slots=True, eq=False)
class AnswerNumbers:
    """The log-probability of the whole answer given what stands before it, [examples]. `named` collects that of the named
    words alone for the same examples, so that one forward gives both. `ids` [answer] are the tokens, `marked` [answer] says
    which belong to the named words."""

    ids: Tensor
    marked: Tensor
    named: list[Tensor]

    def __call__(self, output: Any) -> Tensor:
        logits = output.logits[:, -len(self.ids) - 1 : -1].float()
        found = logits.gather(2, self.ids.expand(len(logits), -1)[..., None])[..., 0] - logits.logsumexp(2)
        self.named.append(found[:, self.marked].sum(1).double())
        return found.sum(1)


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredCase:
    """A prompt with its answer as a case in which tokens of the prompt are removed and ranked. The model gives the last
    token right; `hops` says whether it also gives the first token of both named words before it."""

    case: Case
    subject: Subject
    ids: tuple[int, ...]
    prompt: int
    hops: bool


def drawn(length: int, prompt: int, tokenizer: Any, seed: int) -> Iterator[Hops]:
    """Prompts of about `prompt` tokens with answers of about `length`, without end: two chains of two facts each among
    sentences that say nothing of them; the answer names both hops of one chain among further such sentences."""
    chance = random.Random(f"{seed} answered hops {length} {prompt}")

    def count(text: str) -> int:
        return len(read(tokenizer, text).ids)

    while True:
        link, second, question, first, last, ends = chance.choice(FRAMES)
        asked, other, one, two = chance.sample(NAMES, 4)
        right, wrong = chance.sample(words(ENDS[ends]), 2)
        facts = [link.format(a=asked, b=f"[{one}]"), link.format(a=other, b=two)]
        facts += [second.format(b=one, end=f"[{right}]"), second.format(b=two, end=wrong)]
        chance.shuffle(facts)
        text, gold = marked(hidden(facts, f"Question: {question.format(a=asked)} Answer:", prompt, count, chance))
        steps = [first.format(a=asked, b=f"[{one}]"), second.format(b=one, end=f"[{right}]")]
        answer, named = marked(hidden(steps, f"{last.format(a=asked)} [{right}]", length, count, chance))
        yield Hops(text, f" {answer}", gold, tuple((start + 1, end + 1) for start, end in named), asked)


def answered(subject: Subject, length: int, prompt: int, count: int, seed: int) -> Iterator[AnsweredCase]:
    """The first `count` cases whose last token is one word, and the model's own most likely one."""
    found = 0
    for hops in drawn(length, prompt, subject.processor, seed):
        made = _case(subject, hops)
        if made is not None:
            yield made
            found += 1
        if found == count:
            return


def _case(subject: Subject, hops: Hops) -> AnsweredCase | None:
    reading = read_prompt(subject.processor, hops.prompt + hops.answer)
    before = sum(end <= len(hops.prompt) for _, end in reading.spans)
    start, end = reading.spans[-1]
    last = hops.answer[slice(*hops.named[-1])]
    if reading.text[start:end].strip() != last or reading.spans[before][0] < len(hops.prompt):
        return None
    marks = _marks(reading, hops)
    tokens = torch.tensor(reading.ids[before:])
    right = _right(subject, reading.ids, tokens)
    if not bool(right[-1]):
        return None
    asked = Subject(
        subject.name, subject.model, "language", subject.processor, constants={"logits_to_keep": len(tokens) + 1}
    )
    spared = torch.tensor(reading.special)
    spared[before:] = True
    gold = torch.tensor(reading.gold_units(hops.gold))
    number = AnswerNumbers(tokens, torch.stack(marks).any(0)[before:], [])
    said = "log-probability of the answer"
    inputs = {"input_ids": ids_on_device(subject, [reading.ids])}
    key = text_key(hops.prompt + hops.answer)
    case = Case(key, inputs, number, said, units_of(subject, reading.ids), spared, gold, hops.group)
    firsts = [int(mark[before:].nonzero()[0]) for mark in marks[:2]]
    return AnsweredCase(case, asked, reading.ids, before, bool(right[firsts].all()))


def _marks(reading: Reading, hops: Hops) -> list[Tensor]:
    """For each named word of the answer its tokens, [tokens] bool."""
    shift = len(hops.prompt)
    return [torch.tensor(reading.gold_units([(start + shift, end + shift)])) for start, end in hops.named]


def _right(subject: Subject, ids: tuple[int, ...], tokens: Tensor) -> Tensor:
    """Which tokens of the answer are the model's most likely ones, [answer] bool."""
    logits = output_of(subject, input_ids=ids_on_device(subject, [ids])).logits[0, -len(tokens) - 1 : -1]
    return logits.argmax(1).cpu() == tokens
