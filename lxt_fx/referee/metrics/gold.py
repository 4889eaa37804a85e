"""Metrics against the units on which an answer must rest, where a task knows them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lxt_fx.referee.contest import Judged, NotForThisError


def gold_of(judged: Judged, name: str) -> tuple[Tensor, Tensor]:
    """Relevance and gold marks of the units that may be ranked. Raises NotForThisError for a case without gold units."""
    gold = judged.case.gold
    ranked = ~judged.case.spared
    if gold is None or not bool((gold & ranked).any()):
        raise NotForThisError(f"{name}: the task does not say on which units its answers must rest")
    return judged.relevance[ranked], gold[ranked]


def gold_among(relevance: Tensor, gold: Tensor, count: int) -> float:
    """How many gold units are among the `count` most relevant ones. Of equally relevant units, of which only some fit, each
    is as likely as another: what they hold is expected, so that no order of positions decides."""
    least = relevance.sort(descending=True).values[count - 1]
    above, equal = relevance > least, relevance == least
    return float(gold[above].sum()) + (count - int(above.sum())) * float(gold[equal].double().mean())


@dataclass(frozen=True, slots=True)
class GoldRecall:
    """The share of gold units among the most relevant `share` of all units (at least one), out of as many gold units as fit
    there."""

    name: str = "gold_recall"
    share: float = 0.1
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        """The recall, in [0, 1]."""
        relevance, gold = gold_of(judged, self.name)
        count = max(1, math.ceil(self.share * len(gold) - 1e-9))
        return gold_among(relevance, gold, count) / min(count, int(gold.sum()))


@dataclass(frozen=True, slots=True)
class GoldMass:
    """The share of positive relevance that lies on gold units (relevance mass accuracy, Arras et al. 2022); 0 where no
    relevance is positive."""

    name: str = "gold_mass"
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        """The share, in [0, 1]."""
        relevance, gold = gold_of(judged, self.name)
        positive = relevance.clamp(min=0)
        whole = float(positive.sum())
        return float(positive[gold].sum()) / whole if whole > 0 else 0.0


@dataclass(frozen=True, slots=True)
class GoldRank:
    """The share of gold units among as many most relevant units (relevance rank accuracy, Arras et al. 2022)."""

    name: str = "gold_rank"
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        """The share, in [0, 1]."""
        relevance, gold = gold_of(judged, self.name)
        count = int(gold.sum())
        return gold_among(relevance, gold, count) / count


@dataclass(frozen=True, slots=True)
class Pointing:
    """Whether the most relevant unit is a gold one (pointing game, Zhang et al. 2018)."""

    name: str = "pointing"
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        """1 or 0; between them where gold and other units share the largest relevance."""
        return gold_among(*gold_of(judged, self.name), 1)
