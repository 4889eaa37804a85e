"""Removal curves: what the explained number becomes when the most, or the least, relevant parts of an input go first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetLike
from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.faithfulness.batch_inputs import Asked, RowInputs, ask, evaluating, row_inputs
from lxt_fx.faithfulness.removed_units import Unit, Units, units_of
from lxt_fx.ledger.run_audit import Inputs

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PerturbationCurves:
    """The explained number of each row while its units are removed, in float64 on the CPU.

    `morf` and `lerf` [rows, steps + 1]: most relevant first, least relevant first, from nothing removed to everything.
    `removed` [rows, steps + 1]: how many units are gone. `explained` says what the number is, for each row or for all.
    """

    morf: Tensor
    lerf: Tensor
    removed: Tensor
    units: str
    explained: tuple[str, ...]

    @property
    def area(self) -> Tensor:
        """[rows]: the mean height of `lerf` over `morf` (trapezoids), in units of the explained number. Larger is more
        faithful; 0 is what a random order gives."""
        return torch.trapezoid(self.lerf - self.morf, dim=1) / (self.morf.shape[1] - 1)

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        rows, steps = self.morf.shape[0], self.morf.shape[1] - 1
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for heading in ("removed", "most relevant first", "least relevant first"):
            table.add_column(heading, justify="right")
        for step in range(steps + 1):
            table.add_row(f"{100 * step / steps:.0f} %", written(self.morf[:, step]), written(self.lerf[:, step]))
        said = list(dict.fromkeys(self.explained))
        more = f" and {len(said) - 1} more" if len(said) > 1 else ""
        many = f"{rows} row{'s' if rows > 1 else ''}, {self.units} removed; {said[0]}{more}"
        return Group(many, "", table, "", f"area between the curves: {written(self.area)}")

    def __str__(self) -> str:
        from lxt_fx.views.terminal import plain

        return plain(self.__rich__())

    def __repr__(self) -> str:
        return f"PerturbationCurves({len(self.morf)} rows, {self.units}, area {written(self.area)})"


def written(numbers: Tensor) -> str:
    """The mean of `numbers` [rows] and its standard error, to two digits of that: `5.83 ± 0.71`."""
    mean, error = float(numbers.mean()), standard_error(numbers)
    if not error > 0:
        return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def standard_error(numbers: Tensor) -> float:
    """The standard error of the mean of `numbers` [rows]; NaN for one row."""
    return float(numbers.std() / len(numbers) ** 0.5) if len(numbers) > 1 else math.nan


def perturbation_curves(
    model: nn.Module,
    inputs: Inputs,
    relevance: Tensor,
    target: TargetLike | Sequence[TargetLike] = None,
    *,
    leaf: str | None = None,
    unit: Unit | None = None,
    spared: Tensor | None = None,
    baseline: float | Tensor = 0.0,
    steps: int = 8,
    batch: int = 32,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
) -> PerturbationCurves:
    """How the explained number of each row falls when its units are removed in the order of their relevance.

    A faithful relevance loses the number fast when the most relevant units go first (MoRF) and keeps it long when the
    least relevant go first (LeRF): `.area` is the mean distance of the two curves (AttnLRP, Achtibat et al. 2024, sec. 4;
    Samek et al. 2017). Units go in `steps` equal steps, to the nearest whole unit; a removed one is set to `baseline` (a
    number, or a tensor that broadcasts to one row of the leaf), its position stays.

    `model` is a module or what `transform` made from one; `inputs` [rows, ...] are those of the model, by name or in
    order; token ids are embedded. `relevance` has the shape of the leaf, or lacks the dimension that a unit sums over:
    [rows, tokens] for embeddings, [rows, height, width] for images. `target` is what `audit` takes: it is decided once for
    each row, on the whole input; a function gets the output of a batch of any rows and returns [batch].

    `leaf` names the input whose units are removed, where several are floating-point. `unit` is `"token"`, `"feature"` (a
    single element), or the side of a square patch of pixels; None takes tokens for [rows, tokens, hidden], the model's
    `patch_size` for [rows, channels, height, width], else features. `spared` [rows, units] or [units] marks what is never
    removed (`<bos>`, the mask that is filled); padding by `attention_mask` is always spared. Rows run in batches of
    `batch` and must not meet in the model. Gradients are off; grad mode and the modules' modes are as before afterwards.

    Raises InputError for arguments that do not fit, NonFiniteError where the model's answer is NaN or infinite.
    """
    given = row_inputs(model, inputs, leaf, tokenizer)
    check_counts(steps, batch)
    units = units_of(given, unit, spared, baseline)
    scores = units.scores(relevance, given.values)
    asked = ask(given, target, labels, batch)
    return Removal(given, asked, units, steps, batch).curves(scores)


def check_counts(steps: int, batch: int) -> None:
    """Raises InputError unless both are whole numbers of at least 1."""
    for name, count in (("steps", steps), ("batch", batch)):
        if not isinstance(count, int) or count < 1:
            raise InputError(f"perturbation: {name} must be a whole number of at least 1, got {count!r}")


@dataclass(frozen=True, slots=True, eq=False)
class Removal:
    """The model on its inputs without some of their units. What was computed once is kept, for the next relevance."""

    inputs: RowInputs
    asked: Asked
    units: Units
    steps: int
    batch: int
    known: dict[tuple[int, bytes], float] = field(default_factory=dict)

    def curves(self, scores: Tensor) -> PerturbationCurves:
        """The curves for relevance by unit [rows, units]."""
        removed, kept = self._orders(scores)
        masks = kept.flatten(0, 2)
        per_row = len(masks) // self.inputs.rows
        keys = [(place // per_row, mask.numpy().tobytes()) for place, mask in enumerate(masks)]
        missing = {key: place for place, key in enumerate(keys) if key not in self.known}
        self._answer(list(missing), masks[list(missing.values())])
        morf, lerf = torch.tensor([self.known[key] for key in keys], dtype=torch.float64).view(kept.shape[:3]).unbind(1)
        return PerturbationCurves(morf, lerf, removed, self.units.said, self.asked.said)

    def _orders(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """How many units are gone [rows, steps + 1], and what is kept [rows, 2, steps + 1, units]: MoRF, then LeRF."""
        removable = self.units.removable
        count = removable.sum(1, keepdim=True)
        removed = (torch.arange(self.steps + 1) * count / self.steps).round().long()
        ordered = scores.masked_fill(~removable, -math.inf).argsort(dim=1, descending=True, stable=True)
        rank = ordered.argsort(dim=1)[:, None]  # 0 is the most relevant, spared ones stand last
        gone = removed[..., None]
        morf, lerf = rank >= gone, (rank < count[..., None] - gone) | (rank >= count[..., None])
        return removed, torch.stack([morf, lerf], dim=1)

    def _answer(self, keys: Sequence[tuple[int, bytes]], kept: Tensor) -> None:
        leaf = self.inputs.values
        with evaluating(self.inputs.model):
            for places, count in self.inputs.batches(len(keys), self.batch):
                rows = [keys[place][0] for place in places]
                perturbed = self.units.without(kept[places], leaf[rows])
                output = self.inputs.model(**self.inputs.of(rows, perturbed))
                values = self.asked.values(output, rows).double().cpu()
                self._check(values, rows, kept[places])
                self.known.update(zip((keys[place] for place in places[:count]), values.tolist(), strict=False))

    def _check(self, values: Tensor, rows: Sequence[int], kept: Tensor) -> None:
        if bool(values.isfinite().all()):
            return
        worst = int((~values.isfinite()).nonzero()[0])
        gone = int((~kept[worst]).sum())
        raise NonFiniteError(
            f"perturbation: the model's answer for row {rows[worst]} is {float(values[worst])} with {gone} of "
            f"{kept.shape[1]} {self.units.said} set to the baseline; give another baseline, or a wider dtype"
        )
