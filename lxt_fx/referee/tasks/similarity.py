"""The task of similarity: two sentences that share a word, and how near the embedding of one is to that of the other."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import NotForThisError
from lxt_fx.referee.tasks.asking import ids_on_device, output_of, units_of
from lxt_fx.referee.tasks.candidate import Candidate, marked
from lxt_fx.referee.tasks.reading import Reading, read
from lxt_fx.referee.tasks.replacements import TokenDraws, text_replacements
from lxt_fx.referee.tasks.text_task import POOL
from lxt_fx.referee.tasks.word_lists import with_articles, words
from lxt_fx.tasks.likeness import pooling_of

WORDS = words("""
guitar|piano|violin|bicycle|horse|train|airplane|boat|elephant|tiger|parrot|spider|camera|computer|telephone|mirror
umbrella|hammer|candle|ladder|carpet|pumpkin|banana|chocolate|coffee|pizza|cheese|mushroom|lemon|rose|cactus|volcano
desert|waterfall|castle|lighthouse|church|prison|hospital|library|bakery|football|tennis|chess|knife|sword|helmet
diamond|necklace|crown
""")

EXPLAINED = (
    "On Sunday morning, my grandmother told me about a [{word}].",
    "The children in the picture are looking at a [{word}].",
    "There was a [{word}] on the cover of the magazine.",
    "He dreamed that night that somebody had stolen his [{word}].",
    "A tall man with a beard asked us for the [{word}].",
    "In the last chapter of the story, the [{word}] disappears.",
    "We waited an hour in the rain to see the [{word}].",
    "My teacher says that nobody needs a [{word}] these days.",
)

OTHERS = (
    "This is a short article about the {word}.",
    "Do you know the history of the {word}?",
    "She wrote her thesis on the {word}.",
    "An exhibition about the {word} opens this week.",
)


@dataclass(frozen=True, slots=True, eq=False)
class Nearness:
    """The explained number of an encoder's output: the mean of the tokens' last hidden states [examples, tokens, hidden]
    along `direction` [hidden], of length 1, in units of `length`, that of the whole text's mean.

    For the whole text that is the cosine of both embeddings. With replaced tokens the unit stays: a cosine would sum to no
    relevance at all, since a longer vector is no more similar. So the number is linear in the embedding, its gradient is
    that of a cosine whose length is held, as LRP has it in every norm, and every method explains one and the same function.
    """

    direction: Tensor
    length: float

    def __call__(self, output: Any) -> Tensor:
        mean = _hidden(output).mean(1)
        mean = mean.float() if mean.dtype in (torch.float16, torch.bfloat16) else mean
        return mean @ self.direction.to(mean) / self.length


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """Pairs of sentences for encoders of sentences that take the mean of their tokens. A model is asked where it finds the
    text nearer to the other sentence than to the same one about another thing. Gold is the word that both share;
    pairs with one word are a group."""

    name: str = "similarity"
    draws: int = 1

    def cases(self, subject: Subject, count: int, seed: int) -> Sequence[Case]:
        """The first `count` texts whose word brings them nearer. Raises NotForThisError for a model that embeds no text."""
        if subject.kind != "similarity" or not callable(subject.processor):
            raise NotForThisError(f"{self.name}: {subject.name} embeds no text; this task is for encoders of sentences")
        if (pooling := pooling_of(getattr(subject.model, "config", None))) != "mean":
            raise NotForThisError(f"{self.name}: {subject.name} embeds a text by its {pooling}, and this task by the mean")
        embedded = lru_cache(maxsize=None)(lambda text: _embedded(subject, read(subject.processor, text)))
        found = (_case(subject, pair, embedded) for pair in pairs(seed))
        return list(itertools.islice((case for case in found if case is not None), count))

    def replacements(self, subject: Subject, case: Case, seed: int) -> dict[str, Sequence[Tensor]]:
        """By name what removed tokens become: `token` (random ordinary tokens of the task, never those of the shared word),
        `zero`, `mean`."""
        texts = (pair.candidate.text for pair in itertools.islice(pairs(seed), POOL))
        pool = frozenset(token for text in texts for token in read(subject.processor, text).ordinary)
        shared = case.inputs["input_ids"][0][case.gold] if case.gold is not None else torch.tensor([])
        draws = TokenDraws(pool, frozenset(int(token) for token in shared), self.draws, seed)
        return text_replacements(subject, case, draws)


@dataclass(frozen=True, slots=True)
class Pair:
    """A text, the sentence that it is compared with, and the same one about another thing."""

    candidate: Candidate
    other: str
    unlike: str


def pairs(seed: int) -> Iterator[Pair]:
    """All pairs of the task, shuffled."""
    chance = random.Random(f"{seed} similarity")
    made = list(itertools.product(EXPLAINED, OTHERS, WORDS))
    chance.shuffle(made)
    for explained, other, word in made:
        text, gold = marked(with_articles(explained.format(word=word)))
        unlike = chance.choice([each for each in WORDS if each != word])
        sentence = other.format(word=word)
        candidate = Candidate(text, gold=gold, given_key=_key(text, sentence), group=word)
        yield Pair(candidate, sentence, other.format(word=unlike))


def _key(text: str, other: str) -> str:
    return Candidate(f"{text} / {other}").key


def _case(subject: Subject, pair: Pair, embedded: Any) -> Case | None:
    candidate, prompt = pair.candidate, read(subject.processor, pair.candidate.text)
    own, other, unlike = embedded(candidate.text), embedded(pair.other), embedded(pair.unlike)
    if float(own @ other / other.norm()) <= float(own @ unlike / unlike.norm()):
        return None
    return Case(
        candidate.key,
        {"input_ids": ids_on_device(subject, [prompt.ids])},
        Nearness(other / other.norm(), float(own.norm())),
        f"cosine of the embeddings with {pair.other!r}",
        units_of(subject, prompt.ids),
        torch.tensor(prompt.special),
        torch.tensor(prompt.gold_units(candidate.gold)),
        candidate.group,
    )


def _embedded(subject: Subject, prompt: Reading) -> Tensor:
    """The mean [hidden] of the last hidden states, float32 on the CPU."""
    output = output_of(subject, input_ids=ids_on_device(subject, [prompt.ids]))
    return _hidden(output)[0].float().mean(0).cpu()


def _hidden(output: Any) -> Tensor:
    found = getattr(output, "last_hidden_state", None)
    if not isinstance(found, Tensor) or found.dim() != 3:
        raise InputError("similarity: the model answers without last_hidden_state [examples, tokens, hidden]")
    return found
