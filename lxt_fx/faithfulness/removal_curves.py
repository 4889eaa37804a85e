"""Removal curves: the explained number as the most, or the least, relevant parts of an input are removed first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Never

import torch
from torch import Tensor, nn

from lxt_fx.attribution.embeddings import Inputs
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.base.errors import NonFiniteError
from lxt_fx.base.progress import lasting, steps
from lxt_fx.base.public_door import public
from lxt_fx.faithfulness.batch_inputs import BatchInputs, ExplainedNumber, batch_inputs, evaluating, explained_number
from lxt_fx.faithfulness.removed_units import Removal, Units, check_removal, units_of
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType

DEFAULT = Removal()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PerturbationCurves(Listed):
    """The explained number of each example while its units are removed, in float64 on the CPU.

    `morf` and `lerf` [examples, steps + 1]: most relevant units first, least relevant first, from nothing removed to all.
    `removed` [examples, steps + 1]: the number of removed units. `explained` says which number is explained, for each
    example or once for all.
    """

    morf: Tensor
    lerf: Tensor
    removed: Tensor
    units: str
    explained: tuple[str, ...]

    @property
    def area(self) -> Tensor:
        """[examples]: the mean height of `lerf` above `morf` (trapezoidal rule), in units of the explained number. Larger
        is more faithful; a random order gives 0."""
        return torch.trapezoid(self.lerf - self.morf, dim=1) / (self.morf.shape[1] - 1)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page in which the course of the number is explored (`lxt_fx.explore`)."""
        public("explore")(self, path=path)

    def __rich__(self) -> RenderableType:
        from rich import box
        from rich.console import Group
        from rich.table import Table

        examples, steps = self.morf.shape[0], self.morf.shape[1] - 1
        table = Table(box=box.SIMPLE_HEAD, show_edge=False)
        for heading in ("removed", "most relevant first", "least relevant first"):
            table.add_column(heading, justify="right")
        for step in range(steps + 1):
            table.add_row(f"{100 * step / steps:.0f} %", written(self.morf[:, step]), written(self.lerf[:, step]))
        said = list(dict.fromkeys(self.explained))
        more = f" and {len(said) - 1} more" if len(said) > 1 else ""
        many = f"{examples} example{'s' if examples > 1 else ''}, {self.units} removed; {said[0]}{more}"
        return Group(many, "", table, "", f"area between the curves: {written(self.area)}")

    def __repr__(self) -> str:
        return f"PerturbationCurves({len(self.morf)} examples, {self.units}, area {written(self.area)})"


def written(numbers: Tensor) -> str:
    """The mean of `numbers` [examples] and its standard error, to two digits of the error: `5.83 ± 0.71`."""
    mean, error = float(numbers.mean()), standard_error(numbers)
    if not error > 0:
        return f"{mean:.4g}" if math.isnan(error) else f"{mean:.4g} ± 0"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def standard_error(numbers: Tensor) -> float:
    """The standard error of the mean of `numbers` [examples]; NaN for one example."""
    return float(numbers.std() / len(numbers) ** 0.5) if len(numbers) > 1 else math.nan


@lasting
def perturbation_curves(
    model: nn.Module,
    inputs: Inputs,
    relevance: Tensor,
    target: TargetsLike = None,
    *,
    leaf: str | None = None,
    removal: Removal = DEFAULT,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
    progress: bool | None = None,
    **moved: Never,
) -> PerturbationCurves:
    """The explained number of each example as its units are removed in the order of their relevance.

    If relevance is faithful, the number falls fast when the most relevant units are removed first (MoRF) and late when the
    least relevant are removed first (LeRF). `.area` is the mean distance of the two curves (AttnLRP, Achtibat et al. 2024,
    sec. 4; Samek et al. 2017). `removal` says what a unit is, what replaces it, and in how many steps all are removed.

    `model` is a module or what `transform` made from one. `inputs` [examples, ...] are the inputs of the model, by name or
    in order; token ids are embedded. `relevance` has the shape of the leaf, or the same without the dimension that a unit
    sums over: [examples, tokens] for embeddings, [examples, height, width] for images. `target` is as in `audit`. It is
    decided once for each example, on the whole input; a function gets the output of any batch of examples and returns
    [batch].

    `leaf` names the input whose units are removed, if there are several floating-point inputs. Examples of a batch must be
    independent (no batch statistics). Gradients are off and modules in evaluation mode; both are restored afterwards.
    `progress` is as in `lxt_fx.progress`, for this call.

    Raises InputError for arguments that do not fit, and NonFiniteError if the model's output is NaN or infinite.
    """
    check_removal(removal, moved, "perturbation_curves")
    given = batch_inputs(model, inputs, leaf, tokenizer, "perturbation_curves")
    units = units_of(given, removal)
    scores = units.scores(relevance, given.values)
    asked = explained_number(given, target, labels, removal.batch)
    return AnswersWithout(given, asked, units, removal.steps, removal.batch).curves(scores)


def orders(scores: Tensor, removable: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """The number of removed units [examples, steps + 1], and which units are still present [examples, 2, steps + 1, units]:
    first when the most relevant are removed first (MoRF), then the least relevant (LeRF). `scores` and `removable` are
    [examples, units]; of equal scores the earlier unit counts as more relevant."""
    count = removable.sum(1, keepdim=True)
    removed = (torch.arange(steps + 1) * count / steps).round().long()
    ordered = scores.masked_fill(~removable, -math.inf).argsort(dim=1, descending=True, stable=True)
    rank = ordered.argsort(dim=1)[:, None]  # 0 is the most relevant, spared units come last
    gone = removed[..., None]
    morf, lerf = rank >= gone, (rank < count[..., None] - gone) | (rank >= count[..., None])
    return removed, torch.stack([morf, lerf], dim=1)


@dataclass(frozen=True, slots=True, eq=False)
class AnswersWithout:
    """The model's outputs for inputs without some of their units. `known` caches them for the next relevance."""

    inputs: BatchInputs
    asked: ExplainedNumber
    units: Units
    steps: int
    batch: int
    known: dict[tuple[int, bytes], float] = field(default_factory=dict)

    def curves(self, scores: Tensor) -> PerturbationCurves:
        """The curves for relevance by unit [examples, units]."""
        removed, present = orders(scores, self.units.removable, self.steps)
        masks = present.flatten(0, 2)
        per_example = len(masks) // self.inputs.examples
        keys = [(place // per_example, mask.numpy().tobytes()) for place, mask in enumerate(masks)]
        missing = {key: place for place, key in enumerate(keys) if key not in self.known}
        self._answer(list(missing), masks[list(missing.values())])
        morf, lerf = torch.tensor([self.known[key] for key in keys], dtype=torch.float64).view(present.shape[:3]).unbind(1)
        return PerturbationCurves(morf, lerf, removed, self.units.said, self.asked.said)

    def _answer(self, keys: Sequence[tuple[int, bytes]], present: Tensor) -> None:
        leaf = self.inputs.values
        with evaluating(self.inputs.model):
            batches, size = self.inputs.batches(len(keys), self.batch), self.inputs.fixed or self.batch
            for places, count in steps("answers without parts of the input", batches, len(keys), size):
                chosen = [keys[place][0] for place in places]
                perturbed = self.units.without_absent(leaf[chosen], present[places])
                output = self.inputs.output(chosen, perturbed)
                values = self.asked.values(output, chosen).double().cpu()
                self._check(values, chosen, present[places])
                self.known.update(zip((keys[place] for place in places[:count]), values.tolist(), strict=False))

    def _check(self, values: Tensor, chosen: Sequence[int], present: Tensor) -> None:
        if bool(values.isfinite().all()):
            return
        worst = int((~values.isfinite()).nonzero()[0])
        gone = int((~present[worst]).sum())
        raise NonFiniteError(
            f"{self.inputs.function}: the model's answer for example {chosen[worst]} is {float(values[worst])} with {gone} "
            f"of {present.shape[1]} {self.units.said} set to the baseline; give another baseline, or a wider dtype"
        )
