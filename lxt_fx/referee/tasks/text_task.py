"""A task of prompts that a language model continues: the prompts that it continues right, as cases."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.tasks.asking import ids_on_device, output_of, units_of
from lxt_fx.referee.tasks.candidate import Candidate, text_key
from lxt_fx.referee.tasks.reading import Reading, first_tokens, read, read_prompt
from lxt_fx.referee.tasks.replacements import TokenDraws, text_replacements

CHUNK = 64
"""So many candidates are tried at once, whatever the count of cases: a larger count begins with the same cases."""

POOL = 300
"""Removed tokens become tokens of so many texts of the task."""

PATIENCE, RAREST = 256, 50
"""After so many prompts, a model that answers fewer than one of so many right is asked no more."""

DEVELOPMENT = 5
"""One of so many groups of prompts is for development."""

LONGEST_SAID = 6
"""So many answers are written out."""


@dataclass(frozen=True, slots=True)
class NextToken:
    """The explained number of a language model's output: the mean logit of the `right` next tokens less that of the `wrong`
    ones, [examples]. It is linear in the logits, so that relevance can be conserved. float16 and bfloat16 logits become
    float32."""

    right: tuple[int, ...]
    wrong: tuple[int, ...] = ()

    def __call__(self, output: Any) -> Tensor:
        logits: Tensor = output.logits[:, -1]
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        right = logits[:, list(self.right)].mean(-1)
        return right - logits[:, list(self.wrong)].mean(-1) if self.wrong else right


@dataclass(frozen=True, slots=True)
class Asked:
    """A candidate as one tokenizer reads it: the prompt, and the explained number (None: the logit of the top token)."""

    candidate: Candidate
    prompt: Reading
    value: NextToken | None

    def answered(self, logits: Tensor) -> bool:
        """Whether the next-token logits [vocabulary] are right."""
        if self.value is None:
            return True
        if self.candidate.judged == "top":
            return int(logits.argmax()) in self.value.right
        return bool(logits[list(self.value.right)].mean() > logits[list(self.value.wrong)].mean())


@dataclass(frozen=True, slots=True, eq=False)
class TextTask:
    """Prompts for language models. `candidates` makes them, endless or not, of a tokenizer and a seed; at most `tried` of
    them are read. Removed tokens become `draws` random tokens each: one, since a further case costs as much as a further
    draw, and makes a mean more certain.

    `part` is for those who choose a method by its results: a fifth of the prompts is for the choice ("development"), and
    the others ("test") for what is said of it. Which part a prompt belongs to follows from its group, or its key, not from
    the seed, so no draw of prompts has one in both.
    """

    name: str
    candidates: Callable[[Any, int], Iterator[Candidate]]
    draws: int = 1
    tried: int = 4096
    part: Literal["all", "development", "test"] = "all"
    _pools: WeakKeyDictionary[Any, dict[int, frozenset[int]]] = field(default_factory=WeakKeyDictionary, repr=False)

    def cases(self, subject: Subject, count: int, seed: int) -> Sequence[Case]:
        """The first `count` prompts that the model continues right; fewer where no more are among those that are tried, and
        where it hardly ever is right.

        Raises NotForThisError for a model that predicts no next token, a tokenizer that does not say where its tokens
        stand, and one that joins the ends of all prompts with the answers.
        """
        return list(itertools.islice(self.answered(subject, seed), count))

    def answered(self, subject: Subject, seed: int) -> Iterator[Case]:
        """All prompts that the model continues right, one after the other."""
        self._check(subject)
        made = itertools.islice(self._of_part(self.candidates(subject.processor, seed)), self.tried)
        read_ones, right = 0, 0
        while chunk := list(itertools.islice(made, CHUNK)):
            found = [asked for each in chunk if (asked := ask(subject.processor, each)) is not None]
            read_ones += len(found)
            for case in right_cases(subject, found):
                right += 1
                yield case
            if read_ones >= PATIENCE and right * RAREST < read_ones:
                return
        if not read_ones:
            raise NotForThisError(
                f"{self.name}: {type(subject.processor).__name__} of {subject.name} writes right and wrong answers with "
                "the same first token, or joins it with the prompt, so that no next token is an answer"
            )

    def _of_part(self, made: Iterator[Candidate]) -> Iterator[Candidate]:
        wanted = self.part == "development"
        return made if self.part == "all" else (each for each in made if is_development(each) == wanted)

    def replacements(self, subject: Subject, case: Case, seed: int) -> dict[str, Sequence[Tensor]]:
        """By name what removed tokens become: `token` (random ordinary tokens of the task, never the answers), `zero`,
        `mean`."""
        value = case.value
        answers = (*value.right, *value.wrong) if isinstance(value, NextToken) else ()
        draws = TokenDraws(self._pool(subject.processor, seed), frozenset(answers), self.draws, seed)
        return text_replacements(subject, case, draws)

    def _pool(self, tokenizer: Any, seed: int) -> frozenset[int]:
        known = self._pools.setdefault(tokenizer, {})
        if seed not in known:
            texts = (each.text for each in itertools.islice(self.candidates(tokenizer, seed), POOL))
            known[seed] = frozenset(token for text in texts for token in read(tokenizer, text).ordinary)
        return known[seed]

    def _check(self, subject: Subject) -> None:
        if subject.kind != "language":
            raise NotForThisError(f"{self.name}: {subject.name} predicts no next token; this task is for language models")
        if not callable(subject.processor):
            raise NotForThisError(f"{self.name}: {subject.name} has no tokenizer, so that it cannot read a prompt")


def is_development(candidate: Candidate) -> bool:
    """Whether a prompt is one of those by which a method may be chosen. All prompts of a group are, or none."""
    return int(text_key(candidate.group or candidate.key), 16) % DEVELOPMENT == 0


def ask(tokenizer: Any, candidate: Candidate) -> Asked | None:
    """A candidate as this tokenizer reads it. A token that begins right and wrong answers says nothing and is left out.
    None if no right token is left or, where there are wrong answers, no wrong one, and if gold words lie behind the last
    token that is read."""
    prompt = read_prompt(tokenizer, candidate.text, candidate.most)
    if not prompt.ids or all(prompt.special):
        return None
    if candidate.gold and not any(prompt.gold_units(candidate.gold)):
        return None
    if not candidate.right:
        return Asked(candidate, prompt, None)
    right = first_tokens(tokenizer, prompt, candidate.right)
    wrong = first_tokens(tokenizer, prompt, candidate.wrong)
    if right is None or wrong is None:
        return None
    value = NextToken(tuple(x for x in right if x not in wrong), tuple(x for x in wrong if x not in right))
    if not value.right or (candidate.wrong and not value.wrong):
        return None
    return Asked(candidate, prompt, value)


def right_cases(subject: Subject, found: Sequence[Asked]) -> Iterator[Case]:
    """The cases of these that the model answers right, in their order."""
    logits = next_logits(subject, [asked.prompt for asked in found])
    for asked, own in zip(found, logits, strict=True):
        if asked.answered(own) and _also_answered(subject, asked):
            yield case_of(subject, asked, own)


def _also_answered(subject: Subject, asked: Asked) -> bool:
    twins = [ask(subject.processor, each) for each in asked.candidate.also]
    read_ones = [twin for twin in twins if twin is not None]
    if len(read_ones) < len(twins):
        return False
    logits = next_logits(subject, [twin.prompt for twin in read_ones])
    return all(twin.answered(own) for twin, own in zip(read_ones, logits, strict=True))


def next_logits(subject: Subject, prompts: Sequence[Reading]) -> list[Tensor]:
    """The logits [vocabulary] of the next token of each prompt, float32 on the CPU. Prompts of one length run together."""
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, prompt in enumerate(prompts):
        by_length[len(prompt.ids)].append(place)
    found: dict[int, Tensor] = {}
    for places in by_length.values():
        ids = ids_on_device(subject, [prompts[place].ids for place in places])
        logits = getattr(output_of(subject, input_ids=ids), "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            raise InputError(f"bench: {subject.name} answers without logits [examples, tokens, vocabulary]")
        found |= dict(zip(places, logits[:, -1].float().cpu(), strict=True))
    return [found[place] for place in range(len(prompts))]


def case_of(subject: Subject, asked: Asked, logits: Tensor) -> Case:
    """The case of a prompt, whose next token has these logits [vocabulary]."""
    prompt, candidate = asked.prompt, asked.candidate
    value = asked.value or NextToken((int(logits.argmax()),))
    return Case(
        candidate.key,
        {"input_ids": ids_on_device(subject, [prompt.ids])},
        value,
        _said(subject.processor, value),
        units_of(subject, prompt.ids),
        torch.tensor(prompt.special),
        torch.tensor(prompt.gold_units(candidate.gold)) if candidate.gold else None,
        candidate.group,
    )


def _said(tokenizer: Any, value: NextToken) -> str:
    def logit(ids: tuple[int, ...]) -> str:
        shown = [repr(readable_tokens(tokenizer, [token])[0]) for token in ids[:LONGEST_SAID]]
        more = f" and {len(ids) - LONGEST_SAID} more" if len(ids) > LONGEST_SAID else ""
        return f"{'logit' if len(ids) == 1 else 'mean logit'} of {', '.join(shown)}{more}"

    return f"{logit(value.right)} less {logit(value.wrong)}" if value.wrong else logit(value.right)
