"""The explained number of a case with some of its units replaced: asked once for all methods and metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lxt_fx.base.errors import NonFiniteError
from lxt_fx.faithfulness.batch_inputs import evaluating
from lxt_fx.faithfulness.removed_units import without_absent
from lxt_fx.referee.case import Case, Subject


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """The model's numbers for one case with units replaced. `draws` has, by the name of a replacement (`token`, `zero`,
    `mean`), what a replaced unit becomes: one tensor or more of the shape of the leaf, over which the number is averaged.
    `batch` is how many variants run at once."""

    subject: Subject
    case: Case
    draws: Mapping[str, Sequence[Tensor]]
    batch: int = 32
    known: dict[tuple[str, int, bytes], float] = field(default_factory=dict)

    @property
    def removable(self) -> Tensor:
        """[units]: the units that may be replaced."""
        return ~self.case.spared

    def whole(self) -> float:
        """The number for the whole input."""
        return float(self.numbers(torch.ones(1, len(self.case.labels), dtype=torch.bool), next(iter(self.draws))))

    def numbers(self, present: Tensor, replacement: str) -> Tensor:
        """The number [n] in float64 for `present` [n, units] bool: where a unit is absent it is replaced.

        Raises NonFiniteError where the model's answer is NaN or infinite.
        """
        baselines = self.draws[replacement]
        by_draw = [self._numbers(present, replacement, place, baseline) for place, baseline in enumerate(baselines)]
        return torch.stack(by_draw).mean(0)

    def of_leaves(self, leaves: Tensor) -> Tensor:
        """The number [n] in float64 for other values of the whole leaf [n, ...]."""
        with evaluating(self.subject.model):
            parts = [self.subject.numbers(self.case, part).double().cpu() for part in torch.split(leaves, self.batch)]
        return self._finite(torch.cat(parts))

    def _numbers(self, present: Tensor, name: str, place: int, baseline: Tensor) -> Tensor:
        keys = [(name, place, row.numpy().tobytes()) for row in present]
        keys = [("", 0, key[2]) if bool(row.all()) else key for key, row in zip(keys, present, strict=True)]
        missing = {key: row for row, key in enumerate(keys) if key not in self.known}
        if missing:
            leaf = self.subject.leaf(self.case)
            chosen = present[list(missing.values())]
            leaves = without_absent(self.subject.unit, leaf.expand(len(chosen), *leaf.shape[1:]), chosen, baseline)
            self.known.update(zip(missing, self.of_leaves(leaves).tolist(), strict=True))
        return torch.tensor([self.known[key] for key in keys], dtype=torch.float64)

    def _finite(self, numbers: Tensor) -> Tensor:
        if not bool(numbers.isfinite().all()):
            raise NonFiniteError(
                f"bench: {self.subject.name} answers {float(numbers[~numbers.isfinite()][0])} to a variant of case "
                f"{self.case.key}; take a wider dtype"
            )
        return numbers
