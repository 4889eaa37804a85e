"""The planted models with their pairs, and with the heads that are known to do the work."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent))
from planted_models import (  # noqa: E402
    PLAIN,
    WORDS,
    Texts,
    accuracy,
    accuracy_without,
    attention_to,
    first_again,
    heads_that,
    marked,
    marked_answers,
    marked_tokens,
    next_tokens,
    repeated,
    trained,
)

PERIODS, LENGTH = (24, 32), 40


@dataclass(frozen=True, slots=True, eq=False)
class Planted:
    """A trained model, its pairs [pairs, tokens] with the contrast that each is asked for, and its known heads by job: in
    the first layer those that say what stood before, in the second those that look there. `keys` [pairs] are the places
    that the latter look at. Of marked texts also where the token stands that is asked for, and the one that distracts,
    [pairs] each."""

    name: str
    model: Any
    accuracy: float
    clean: Tensor
    corrupted: Tensor
    targets: list[Any]
    heads: Mapping[str, tuple[str, ...]]
    keys: Tensor
    marked: tuple[Tensor, Tensor] | None = None

    @property
    def known(self) -> set[str]:
        """The known heads."""
        return {head for heads in self.heads.values() for head in heads}

    @property
    def given(self) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Any]]:
        """What functions for circuits take."""
        return {"input_ids": self.clean}, {"input_ids": self.corrupted}, self.targets


def induction(steps: int, pairs: int, seed: int = 0) -> tuple[Planted]:
    """The model of repeated texts: heads that look at the previous token, and heads that look behind the earlier A."""
    model = trained([(repeated, next_tokens), (first_again, next_tokens)], steps, seed)
    chance = torch.Generator().manual_seed(seed + 1000)
    texts = repeated(256, chance)
    found, places = accuracy(model, texts, next_tokens), torch.arange(texts.ids.shape[1]).expand_as(texts.ids)
    drops = found - accuracy_without(model, texts, next_tokens)
    heads = {
        "previous token": heads_that(attention_to(model, texts, places - 1), drops, 0),
        "behind the earlier one": heads_that(attention_to(model, texts, places - period_of(texts.ids) + 1), drops, 1),
    }
    clean = repeated(pairs, chance, PERIODS, LENGTH).ids
    period, corrupted = period_of(clean), clean.clone()
    unused = torch.stack([_unused(each, chance) for each in clean])
    corrupted.scatter_(1, LENGTH - 1 - period, unused[:, None])
    answers = clean.gather(1, LENGTH - period)[:, 0]
    targets = list(zip(answers.tolist(), clean[:, 3].tolist(), strict=True))
    return (
        Planted(
            "induction, earlier token replaced", model, found, clean, corrupted, targets, heads, (LENGTH - period)[:, 0]
        ),
    )


def period_of(ids: Tensor) -> Tensor:
    """After how many tokens a repeated text begins again, [texts, 1]."""
    return (ids[:, 1:] == ids[:, :1]).int().argmax(1, keepdim=True) + 1


def _unused(ids: Tensor, chance: torch.Generator) -> Tensor:
    free = torch.tensor(sorted(set(range(PLAIN, WORDS)) - set(ids.tolist())))
    return free[torch.randint(len(free), (), generator=chance)]


def copying(steps: int, pairs: int, seed: int = 0) -> tuple[Planted, Planted]:
    """The model of marked texts, with two kinds of pairs. Where the marked token is replaced, only what copies it differs;
    where its marker is, the head by which a token knows its marker does, too."""
    model = trained([(marked, marked_tokens), (first_again, next_tokens)], steps, seed)
    chance = torch.Generator().manual_seed(seed + 1000)
    texts = marked(512, chance)
    found, asked = accuracy(model, texts, marked_tokens), marked_answers(texts)[0]
    drops = found - accuracy_without(model, texts, marked_tokens)
    behind = Texts(texts.ids, torch.zeros_like(texts.asked).scatter(1, asked, True))
    to_marked = torch.zeros_like(texts.ids)
    to_marked[:, -2:] = asked
    places = torch.arange(texts.ids.shape[1]).expand_as(texts.ids)
    copies = heads_that(attention_to(model, texts, to_marked), drops, 1)
    knows = heads_that(attention_to(model, behind, places - 1), drops, 0)
    some = marked(pairs, chance)
    (wanted, _), (beside, _) = (each.unbind(1) for each in marked_answers(some))
    clean = some.ids[:, :-1].clone()
    unused = torch.stack([_unused(each, chance) for each in clean])[:, None]
    answers, others = (clean.gather(1, at[:, None])[:, 0].tolist() for at in (wanted, beside))
    targets = list(zip(answers, others, strict=True))
    token, marker = (clean.scatter(1, at[:, None], unused) for at in (wanted, wanted - 1))
    return (
        Planted(
            "copying, token replaced", model, found, clean, token, targets, {"copying": copies}, wanted, (wanted, beside)
        ),
        Planted(
            "copying, marker replaced", model, found, clean, marker, targets, {"marker": knows, "copying": copies}, wanted
        ),
    )
