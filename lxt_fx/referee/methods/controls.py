"""Methods that do not look at the model: what chance gives, and what the place of a unit gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lxt_fx.referee.case import Case, Subject, seed_of
from lxt_fx.referee.contest import Explain, NotForThisError


@dataclass(frozen=True, slots=True)
class RandomOrder:
    """Uniform random numbers, seeded by the key of the case: what chance gives."""

    name: str = "random"

    def prepare(self, subject: Subject) -> Explain:
        """No run of the model."""
        return lambda case: torch.rand(
            len(case.labels), dtype=torch.float64, generator=torch.Generator().manual_seed(seed_of(case.key))
        )


@dataclass(frozen=True, slots=True)
class ByPosition:
    """An order by position alone: the first tokens of a text first, the last ones first, or the centre of a picture first.
    All relevance is positive, so that metrics of sizes judge each of them alike. A metric that such a method does well in
    rewards positions."""

    name: str
    most: Literal["first", "last", "centre"]

    def prepare(self, subject: Subject) -> Explain:
        """No run of the model. Raises NotForThisError for a picture without a centre, or a text with one."""
        if (self.most == "centre") != (subject.kind == "image"):
            raise NotForThisError(f"{self.name}: for {'pictures' if self.most == 'centre' else 'texts'} only")
        return self._explain

    def _explain(self, case: Case) -> Tensor:
        units = len(case.labels)
        place = torch.arange(units, dtype=torch.float64)
        if self.most != "centre":
            return place + 1 if self.most == "last" else units - place
        side = math.isqrt(units)
        if side * side != units:
            raise NotForThisError(f"{self.name}: {units} patches form no square")
        middle = (side - 1) / 2
        return side**2 - (place // side - middle).square() - (place % side - middle).square()
