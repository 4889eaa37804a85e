"""Soft comprehensiveness and sufficiency: each unit stays with a probability that follows its relevance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lxt_fx.referee.contest import Judged
from lxt_fx.referee.metrics.removal import FLOOR, height_of, replacement_of


@dataclass(frozen=True, slots=True)
class SoftRemoval:
    """How much the number falls when units stay at random, `keep` of them on average, relevant ones more often
    (sufficiency) or less often (comprehensiveness), as a share of what it loses when all are removed.

    Soft-NC and Soft-NS (Zhao and Aletras 2023) keep more units for a method with larger scores. Here every method keeps the
    same number on average (pi-Soft, arXiv 2601.03089): scores scaled to [0, 1], plus the one offset for which the
    probabilities, cut to [0, 1], have the mean `keep`. Whole units stay or are replaced, and all methods share the random
    numbers.
    """

    name: str
    kind: Literal["comprehensiveness", "sufficiency"]
    keep: float = 0.5
    draws: int = 16
    replacement: str = "token"
    better: Literal["higher", "lower"] = "higher"
    floor: float = FLOOR

    def of(self, judged: Judged) -> float:
        """The share lost (comprehensiveness), or the share that is not lost (sufficiency); neither is cut to [0, 1].

        Raises NotForThisError where the number loses less than `floor` in all.
        """
        answers = judged.answers
        replacement, removable = replacement_of(answers, self.replacement), answers.removable
        scores = judged.relevance[removable]
        stays = probabilities(scores if self.kind == "sufficiency" else -scores, self.keep)
        random = torch.rand(self.draws, len(scores), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        present = torch.ones(self.draws, len(removable), dtype=torch.bool)
        present[:, removable] = random < stays
        whole, none = answers.whole(), float(answers.numbers((~removable)[None], replacement))
        height = height_of(whole, none, self.floor, self.name)
        lost = (whole - float(answers.numbers(present, replacement).mean())) / height
        return lost if self.kind == "comprehensiveness" else 1 - lost


def probabilities(scores: Tensor, mean: float) -> Tensor:
    """Probabilities [units] that grow with `scores`: these scaled to [0, 1] plus an offset, cut to [0, 1], of this mean.
    Equal scores all get the mean."""
    width = float(scores.max() - scores.min())
    if width == 0:
        return torch.full_like(scores, mean)
    scaled = (scores - scores.min()) / width
    low, high = -1.0, 1.0  # offsets at which all are 0, or all are 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float((scaled + middle).clamp(0, 1).mean()) < mean else (low, middle)
    return (scaled + high).clamp(0, 1)
