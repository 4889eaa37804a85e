"""Agreement with Shapley values: what a unit adds, on average, to whatever else is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import seed_of
from lxt_fx.referee.contest import Judged
from lxt_fx.referee.metrics.removal import ranked_units, replacement_of, spearman


@dataclass(frozen=True, slots=True)
class ShapleyCorrelation:
    """Spearman's correlation of relevance with the Shapley values of the units, estimated from `permutations` random orders
    and their reverses (Castro et al. 2009; antithetic, Mitchell et al. 2022). The estimate is the same for all methods of a
    case and is asked once: `2 * permutations * units` variants. What two units do only together is shared between them,
    where leaving out one at a time gives it to both or to neither. Cases with fewer than three units that may be removed
    cannot be judged."""

    name: str = "shapley_spearman"
    replacement: str = "token"
    permutations: int = 4
    better: Literal["higher", "lower"] = "higher"

    def of(self, judged: Judged) -> float:
        """The correlation; 0 where all relevances, or all values, are equal."""
        answers = judged.answers
        removable = ranked_units(answers, self.name)
        found = shapley(answers, replacement_of(answers, self.replacement), self.permutations)
        return spearman(judged.relevance[removable], found[removable])


def shapley(answers: Answers, replacement: str, permutations: int) -> Tensor:
    """Shapley values [units] in float64, in the unit of the explained number; 0 for spared units. They add up to the whole
    number less that with all units replaced, whatever the number of `permutations`."""
    removable = answers.removable.nonzero().flatten()
    chance = torch.Generator().manual_seed(seed_of(f"{answers.case.key} shapley"))
    drawn = torch.stack([torch.randperm(len(removable), generator=chance) for _ in range(permutations)])
    orders = torch.cat([drawn, drawn.flip(1)])
    entered = orders.argsort(1)  # [orders, removable]: when each unit enters
    present = torch.ones(len(orders), len(removable) + 1, len(answers.removable), dtype=torch.bool)
    present[..., removable] = entered[:, None] < torch.arange(len(removable) + 1)[:, None]
    numbers = answers.numbers(present.flatten(0, 1), replacement).view(len(orders), -1)
    found = torch.zeros(len(answers.removable), dtype=torch.float64)
    found[removable] = numbers.diff(dim=1).gather(1, entered).mean(0)
    return found
