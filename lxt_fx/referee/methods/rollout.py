"""Attention rollout (Abnar and Zuidema 2020): products of attention matrices, without values and without a target."""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.as_it_was import answer_of
from lxt_fx.faithfulness.batch_inputs import evaluating
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain, NotForThisError


@dataclass(frozen=True, slots=True)
class AttentionRollout:
    """The product over layers of half the heads' mean attention plus half the identity, at the position that answers: the
    last one of a language model, the class token of a model of pictures, the mean over positions of a text's embedding.
    The same for each target, and never negative."""

    name: str = "attention_rollout"

    def prepare(self, subject: Subject) -> Explain:
        """One forward a case, of a copy of the model that shares its parameters and returns its attention weights."""
        model = _eager(subject, self.name)

        def explain(case: Case) -> Tensor:
            leaf = subject.leaf(case)
            given = subject.called(case, leaf)
            with evaluating(model):
                output = answer_of(model, lambda: model(**given, output_attentions=True))
            weights = [w for w in getattr(output, "attentions", None) or () if w is not None]
            if not weights or any(w.dim() != 4 or w.shape[2] != w.shape[3] for w in weights):
                raise NotForThisError(f"{self.name}: {type(model).__name__} returns no attention weights of all its layers")
            return _at_answer(subject, case, _product(weights))

        return explain


def _eager(subject: Subject, name: str) -> nn.Module:
    model = subject.model
    if not callable(getattr(model, "set_attn_implementation", None)):
        raise NotForThisError(f"{name}: {type(model).__name__} has no set_attn_implementation, so no attention weights")
    parameters = inspect.signature(model.forward).parameters.values()
    if not any(p.name == "output_attentions" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise NotForThisError(f"{name}: {type(model).__name__} takes no output_attentions, so no attention weights")
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    copied: Any = copy.deepcopy(model, shared)
    try:
        copied.set_attn_implementation("eager")
    except (ValueError, KeyError, ImportError) as error:
        raise NotForThisError(f"{name}: {type(model).__name__} has no eager attention: {error}") from error
    made: nn.Module = copied
    return made


def _product(weights: list[Tensor]) -> Tensor:
    """[queries, keys]: rollout through all layers of `weights`, each [1, heads, queries, keys]."""
    identity = torch.eye(weights[0].shape[-1], dtype=torch.float64)
    found = identity
    for weight in weights:
        found = (0.5 * weight[0].double().cpu().mean(0) + 0.5 * identity) @ found
    return found


def _at_answer(subject: Subject, case: Case, rollout: Tensor) -> Tensor:
    units = len(case.labels)
    if subject.kind == "similarity":
        return rollout.mean(0)
    if subject.kind == "language":
        return rollout[-1]
    if rollout.shape[-1] <= units:
        raise NotForThisError("attention_rollout: the model has no class token, at which rollout is read")
    return rollout[0, rollout.shape[-1] - units :]  # class and register tokens stand before the patches
