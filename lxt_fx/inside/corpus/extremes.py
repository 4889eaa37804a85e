"""The samples with the largest values of each unit: a bounded heap for all units of a place at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

NONE = -1
"""The number of no sample, and the position of a value that has none."""


@dataclass(slots=True, eq=False)
class Extremes:
    """For each unit the `top` samples with the largest value: `values`, the numbers of the `samples`, and the `positions`
    in them, each [units, top], the largest first. Of two equal values that of the earlier sample comes first, so the result
    does not depend on the order or the batches in which samples came. Where there are fewer samples, values are -inf."""

    values: Tensor
    samples: Tensor
    positions: Tensor

    @classmethod
    def empty(cls, units: int, top: int, dtype: torch.dtype, device: torch.device) -> Extremes:
        """No sample yet; values in this dtype."""
        return cls(
            torch.full((units, top), -torch.inf, dtype=dtype, device=device),
            torch.full((units, top), NONE, dtype=torch.int64, device=device),
            torch.full((units, top), NONE, dtype=torch.int32, device=device),
        )

    def add(self, values: Tensor, samples: Tensor) -> Tensor:
        """Takes in the largest of the values [batch, positions, units] of each of further `samples` [batch], with its
        position. Returns which of these samples some unit has now, [batch]."""
        new = values.amax(1).T
        touched = (new.amax(1) >= self.values[:, -1]).nonzero()[:, 0]  # most units are not, behind the first samples
        if len(touched):
            numbers, positions = samples.expand(len(touched), -1), values[..., touched].max(1).indices.T
            self._take(touched, new[touched], numbers, positions.to(torch.int32))
        return torch.isin(samples, self.samples[touched])

    def merge(self, other: Extremes) -> None:
        """Takes in what another one found in other samples."""
        everyone = torch.arange(len(self.values), device=self.values.device)
        self._take(everyone, other.values, other.samples, other.positions)

    def _take(self, units: Tensor, values: Tensor, samples: Tensor, positions: Tensor) -> None:
        """The `top` largest of what these units have and further ones, each [units, count]."""
        values = torch.cat([self.values[units], values], 1)
        samples = torch.cat([self.samples[units], samples], 1)
        positions = torch.cat([self.positions[units], positions], 1)
        by_sample = samples.argsort(1)
        largest = values.gather(1, by_sample).sort(dim=1, descending=True, stable=True).indices
        order = by_sample.gather(1, largest[:, : self.values.shape[1]])
        self.values[units] = values.gather(1, order)
        self.samples[units] = samples.gather(1, order)
        self.positions[units] = positions.gather(1, order)

    def to(self, device: torch.device) -> Extremes:
        """The same on this device."""
        return Extremes(self.values.to(device), self.samples.to(device), self.positions.to(device))

    def numbers(self) -> Tensor:
        """The numbers of all samples that some unit has, sorted."""
        found = distinct(self.samples)
        return found[found != NONE].cpu()

    def tensors(self) -> dict[str, Tensor]:
        """The three tensors by name, on the CPU."""
        named = {"values": self.values, "samples": self.samples, "positions": self.positions}
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    @classmethod
    def of_tensors(cls, found: Mapping[str, Tensor]) -> Extremes:
        """What `tensors` gave."""
        return cls(found["values"].clone(), found["samples"].clone(), found["positions"].clone())


def distinct(numbers: Tensor) -> Tensor:
    """The numbers without those that come again, sorted."""
    found: Tensor = torch.unique(numbers)
    return found
