"""Statistics of every unit of a place over all positions of a corpus, in one pass and in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = ("mean", "squares", "active", "largest", "smallest", "relevance", "absolute")


@dataclass(slots=True, eq=False)
class UnitStatistics:
    """Over `count` positions, each [units] in float64: the `mean` activation, the sum of `squares` of what differs from it,
    at how many positions the unit is `active` (above 0), its `largest` and `smallest` activation, the mean `relevance` and
    the mean `absolute` relevance.

    Batches are joined by Chan, Golub and LeVeque 1979 (eq. 2.1): no large sums are subtracted from one another.
    """

    count: int
    mean: Tensor
    squares: Tensor
    active: Tensor
    largest: Tensor
    smallest: Tensor
    relevance: Tensor
    absolute: Tensor

    @classmethod
    def empty(cls, units: int, device: torch.device) -> UnitStatistics:
        """Over no position."""
        zeros = [torch.zeros(units, dtype=torch.float64, device=device) for _ in NAMES]
        found = cls(0, *zeros)
        found.largest -= torch.inf
        found.smallest += torch.inf
        return found

    @classmethod
    def of(cls, activation: Tensor, relevance: Tensor) -> UnitStatistics:
        """Over the positions of activation and relevance, both [positions, units]."""
        count, wide = len(activation), activation.double()
        ones = wide.new_ones(1, count)  # a product with ones is the fastest sum over the first dim
        mean = (ones @ wide)[0] / count
        active = (activation > 0).sum(0, dtype=torch.int32).double()
        small, large = activation.amin(0).double(), activation.amax(0).double()
        squares = (ones @ wide.sub_(mean).square_())[0]
        wide = relevance.double()
        signed, absolute = (ones @ wide)[0] / count, (ones @ wide.abs_())[0] / count
        return cls(count, mean, squares, active, large, small, signed, absolute)

    def finite(self) -> bool:
        """Whether all activations and relevances were finite."""
        return bool(torch.isfinite(self.mean + self.absolute).all())

    def merge(self, other: UnitStatistics) -> None:
        """Takes in the statistics over other positions."""
        count = self.count + other.count
        if other.count == 0:
            return
        share, between = other.count / count, other.mean - self.mean
        self.squares += other.squares + between**2 * (self.count * share)
        self.mean += between * share
        self.relevance += (other.relevance - self.relevance) * share
        self.absolute += (other.absolute - self.absolute) * share
        self.active += other.active
        self.largest = torch.maximum(self.largest, other.largest)
        self.smallest = torch.minimum(self.smallest, other.smallest)
        self.count = count

    def to(self, device: torch.device) -> UnitStatistics:
        """The same on this device."""
        return UnitStatistics(self.count, *(getattr(self, name).to(device) for name in NAMES))

    def deviation(self) -> Tensor:
        """The standard deviation of the activation over all positions, [units]."""
        return (self.squares / max(self.count, 1)).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """All numbers by name, on the CPU."""
        found = {name: getattr(self, name).cpu().contiguous() for name in NAMES}
        return {"count": torch.tensor(self.count), **found}

    @classmethod
    def of_tensors(cls, found: Mapping[str, Tensor]) -> UnitStatistics:
        """What `tensors` gave."""
        return cls(int(found["count"]), *(found[name].clone() for name in NAMES))
