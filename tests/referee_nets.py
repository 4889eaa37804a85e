"""Models of which every answer is known, and cases for them, for the tests of the referee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tiny
import torch
from torch import Tensor, nn

from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Judged


class Weighted(nn.Module):
    """The sum of inputs [batch, tokens, hidden] by weights [tokens], plus `pair` times the product of tokens 0 and 1."""

    def __init__(self, weights: Sequence[float], pair: float = 0.0) -> None:
        super().__init__()
        self.weights, self.pair = nn.Parameter(torch.tensor(weights, dtype=torch.float64)), pair

    def forward(self, x: Tensor) -> Tensor:
        summed = x.sum(-1)
        return (summed * self.weights).sum(-1) + self.pair * summed[:, 0] * summed[:, 1]


def weighted_case(tokens: int, spared: Sequence[int] = (), gold: Sequence[int] | None = None, key: str = "0") -> Case:
    """All inputs are 1 / 2, two hidden dimensions: each token counts 1."""
    marks = torch.zeros(tokens, dtype=torch.bool)
    marked = None if gold is None else marks.index_fill(0, torch.tensor(gold), True)
    spare = marks.index_fill(0, torch.tensor(spared, dtype=torch.long), True)
    x = torch.full((1, tokens, 2), 0.5, dtype=torch.float64)
    return Case(key, {"x": x}, lambda out: out, "the sum", tuple(f"t{i}" for i in range(tokens)), spare, marked)


def judged(
    weights: Sequence[float],
    relevance: Sequence[float],
    pair: float = 0.0,
    baselines: Sequence[float] = (0.0,),
    **case: Any,
) -> Judged:
    """What a metric judges, for `Weighted`. Absent tokens become `baselines` in both hidden dimensions, one draw each."""
    subject, asked = Subject("weighted", Weighted(weights, pair)), weighted_case(len(weights), **case)
    draws = {"token": [torch.tensor(value, dtype=torch.float64) for value in baselines], "zero": [torch.zeros(())]}
    answers = Answers(subject, asked, draws)
    found = torch.tensor(relevance, dtype=torch.float64)
    return Judged(subject, asked, found, answers, lambda other: other.model(asked.inputs["x"]) * found.flip(0))


def llama_subject() -> Subject:
    """A tiny random Llama."""
    return Subject("llama", tiny.llama().double(), constants={"logits_to_keep": 1})


def llama_case(ids: Sequence[int] = (5, 9, 17, 23, 4), key: str = "0", token: int = 7) -> Case:
    """The logit of `token` behind these ids."""
    labels = tuple(map(str, ids))
    spared = torch.zeros(len(ids), dtype=torch.bool)
    return Case(key, {"input_ids": torch.tensor([ids])}, lambda out: out.logits[:, -1, token], "a logit", labels, spared)
