"""Sanity checks (Adebayo et al. 2018): an explanation of a model must change with the model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lxt_fx.base.errors import NonFiniteError
from lxt_fx.passes.capture.example import token_embedding
from lxt_fx.referee.case import Subject
from lxt_fx.referee.contest import Judged, NotForThisError
from lxt_fx.referee.metrics.removal import mean_ranks, spearman


@dataclass(frozen=True, slots=True)
class RandomisedWeights:
    """The absolute rank correlation of relevance under the model and under a copy whose weights are shuffled, each tensor
    within itself, so that their distribution stays. Near 0 for what explains the model; a high number says that the
    explanation is of the input. An order that does not change at all gives 1, also one in which all units are equal."""

    name: str = "randomised_weights"
    seed: int = 0
    better: Literal["higher", "lower"] = "lower"
    made: WeakKeyDictionary[nn.Module, nn.Module] = field(default_factory=WeakKeyDictionary, compare=False, repr=False)

    def of(self, judged: Judged) -> float:
        """The absolute correlation over the units that may be removed, in [0, 1]. Raises NotForThisError where relevance is
        not finite under the other weights."""
        model = judged.subject.model
        if model not in self.made:
            self.made[model] = shuffled(model, self.seed)
        return _same(self.name, judged, replace(judged.subject, model=self.made[model]))


@dataclass(frozen=True, slots=True)
class OtherModel:
    """The absolute rank correlation of relevance under the model and under `other`, a model of the same inputs that learned
    something else: the same pictures with randomised labels."""

    other: nn.Module
    name: str = "randomised_labels"
    better: Literal["higher", "lower"] = "lower"

    def of(self, judged: Judged) -> float:
        """The absolute correlation over the units that may be removed, in [0, 1]. Raises NotForThisError where relevance is
        not finite under the other weights."""
        return _same(self.name, judged, replace(judged.subject, model=self.other))


def _same(name: str, judged: Judged, other: Subject) -> float:
    """Raises NotForThisError where the method gives NaN or infinity under the other model: weights that nobody trained may
    overflow, and say nothing of the explanation of those that somebody did."""
    ranked = ~judged.case.spared
    try:
        found = judged.explain_with(other)
    except NonFiniteError as error:
        raise NotForThisError(f"{name}: under the other weights relevance has NaN or infinity") from error
    own, others = mean_ranks(judged.relevance[ranked]), mean_ranks(found[ranked])
    return 1.0 if torch.equal(own, others) else abs(spearman(own, others))


@torch.no_grad()
def shuffled(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the model in which each floating-point parameter is shuffled within itself. Token embeddings stay, so that
    the leaf is the same; tied weights stay tied, and so an output matrix that is tied to them stays too."""
    made = copy.deepcopy(model)
    embedding = token_embedding(made)
    kept = set() if embedding is None else {id(p) for p in embedding.parameters()}
    random = torch.Generator().manual_seed(seed)
    for parameter in made.parameters():
        if id(parameter) not in kept and parameter.is_floating_point():
            order = torch.randperm(parameter.numel(), generator=random)
            parameter.copy_(parameter.flatten()[order.to(parameter.device)].view_as(parameter))
    return made
