"""What a removed token becomes: a random ordinary token of the task, zeros, or the mean of the vocabulary."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lxt_fx.attribution.embeddings import embed
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import version_of
from lxt_fx.passes.capture.example import token_embedding
from lxt_fx.referee.case import Case, Subject

BLOCK = 8192
"""So many tokens of the vocabulary are looked up at once."""

_MEANS: WeakKeyDictionary[nn.Module, tuple[tuple[tuple[int, int], ...], Tensor]] = WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class TokenDraws:
    """How random tokens are drawn for one case: from `pool`, ordinary tokens of the texts of the task, never one of
    `excluded` (the answers). There are `count` draws, each with one token for each unit."""

    pool: frozenset[int]
    excluded: frozenset[int]
    count: int
    seed: int

    def of(self, case: Case, draw: int) -> tuple[int, ...]:
        """The ids of the case with another token at each unit that may be removed. No token comes twice before all came
        once. The same seed, key and draw give the same tokens in every process.

        Raises InputError if there are fewer than two tokens to draw from.
        """
        drawn_from = sorted(self.pool - self.excluded)
        if len(drawn_from) < 2:
            raise InputError(
                f"case {case.key}: the texts of the task have {len(drawn_from)} tokens besides the answers, so that none "
                "can replace another; give more texts"
            )
        chance = random.Random(f"{self.seed} {case.key} {draw}")
        found, left = [], list[int]()
        for own, spared in zip(case.inputs["input_ids"][0].tolist(), case.spared.tolist(), strict=True):
            if spared:
                found.append(own)
                continue
            if not left or left == [own]:
                left = chance.sample(drawn_from, len(drawn_from))
            found.append(left.pop(-2 if left[-1] == own else -1))
        return tuple(found)


def text_replacements(subject: Subject, case: Case, draws: TokenDraws) -> dict[str, Sequence[Tensor]]:
    """By name what removed tokens become, each of the shape of the leaf [1, tokens, hidden]: `token`, several draws of
    random ordinary tokens; `zero`; `mean`, of what the model looks its vocabulary up as."""
    leaf, ids = subject.leaf(case), case.inputs["input_ids"]
    drawn = [torch.tensor([draws.of(case, draw)], device=ids.device) for draw in range(draws.count)]
    mean = mean_embedding(subject.model).to(leaf).expand_as(leaf)
    return {
        "token": tuple(embed(subject.model, tokens).detach() for tokens in drawn),
        "zero": (torch.zeros_like(leaf),),
        "mean": (mean,),
    }


def mean_embedding(model: nn.Module) -> Tensor:
    """The mean [hidden], in float64, of what the model looks the tokens of its vocabulary up as (in Gemma scaled, as its
    layers read them).

    Raises InputError for a model without a token embedding.
    """
    embedding = token_embedding(model)
    count = getattr(embedding, "num_embeddings", None)
    if embedding is None or not isinstance(count, int):
        raise InputError(
            f"bench: {type(model).__name__} names no token embedding with a vocabulary, so there is no mean of it"
        )
    weights = tuple(embedding.parameters())
    state = tuple((weight.data_ptr(), 0 if weight.is_inference() else version_of(weight)) for weight in weights)
    known = _MEANS.get(model)
    if known is not None and known[0] == state:
        return known[1]
    device = next(embedding.parameters()).device
    blocks = torch.split(torch.arange(count, device=device), BLOCK)
    total = torch.stack([embed(model, block[None])[0].detach().double().sum(0) for block in blocks]).sum(0)
    mean = total / count
    _MEANS[model] = (state, mean)
    return mean
