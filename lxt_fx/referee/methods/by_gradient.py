"""Input * gradient of a model or of an explained module, and what is made of gradients alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import CaptureError, InputError, NoRuleError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.compiler.transform import transform
from lxt_fx.referee.case import Case, Subject, seed_of
from lxt_fx.referee.contest import Explain, NotForThisError
from lxt_fx.referee.tasks.image_case import picture_mean
from lxt_fx.referee.tasks.replacements import mean_embedding


def gradient_at(subject: Subject, case: Case, leaf: Tensor, model: nn.Module | None = None) -> Tensor:
    """The gradient, of the shape of `leaf` [n, ...], of the explained numbers of n variants of the leaf. Zero where the
    number does not depend on it. `model` is as in `Subject.numbers`."""
    with gradients_on():
        wanted = leaf.detach().clone().requires_grad_(True)
        value = subject.numbers(case, wanted, model).sum()
        if not value.requires_grad:
            return torch.zeros_like(wanted)
        (found,) = torch.autograd.grad(value, [wanted], allow_unused=True)
    return torch.zeros_like(leaf) if found is None else found


@dataclass(frozen=True, slots=True)
class TableMethod:
    """Relevance under `rules`: a name in `lxt_fx.TABLES`, a table or a composite."""

    name: str
    rules: Rules

    def prepare(self, subject: Subject) -> Explain:
        """The model is transformed for the inputs of its first case; each case takes one forward and one backward."""
        made: list[Explained] = []

        def explain(case: Case) -> Tensor:
            leaf = subject.leaf(case)
            if not made:
                made.append(self._transformed(subject, case, leaf))
            return leaf * gradient_at(subject, case, leaf, made[0])

        return explain

    def _transformed(self, subject: Subject, case: Case, leaf: Tensor) -> Explained:
        try:
            return transform(subject.model, kwargs=subject.called(case, leaf), rules=self.rules)
        except (CaptureError, NoRuleError) as error:
            raise NotForThisError(f"{self.name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Gradient:
    """Input * gradient of the model itself (Shrikumar et al. 2016), with no rule of ours."""

    name: str = "gradient"

    def prepare(self, subject: Subject) -> Explain:
        """One forward and one backward a case."""

        def explain(case: Case) -> Tensor:
            leaf = subject.leaf(case)
            return leaf * gradient_at(subject, case, leaf)

        return explain


@dataclass(frozen=True, slots=True)
class AbsoluteGradient:
    """The absolute value of input * gradient, summed over a unit first: how much, not for or against."""

    name: str = "|gradient|"

    def prepare(self, subject: Subject) -> Explain:
        """One forward and one backward a case."""
        explain = Gradient().prepare(subject)
        return lambda case: subject.by_unit(case, explain(case)).abs()


@dataclass(frozen=True, slots=True)
class GradientNorm:
    """The L2 norm of the gradient over a unit (Simonyan et al. 2014, by norm)."""

    name: str = "gradient_norm"

    def prepare(self, subject: Subject) -> Explain:
        """One forward and one backward a case."""

        def explain(case: Case) -> Tensor:
            return subject.by_unit(case, gradient_at(subject, case, subject.leaf(case)).double().square()).sqrt()

        return explain


@dataclass(frozen=True, slots=True)
class IntegratedGradients:
    """Integrated gradients (Sundararajan et al. 2017, eq. 3) on the line from a baseline to the leaf, by the midpoint rule.
    The baseline is zero, or what tasks replace by as `mean`: the mean of what the vocabulary is looked up as, or a
    picture's own mean by channel.

    In the limit of many steps relevance sums to the number at the leaf less that at the baseline. With few it misses that
    by an error of completeness, which is neither measured nor spread here: between zero and the leaf norms turn sharply.
    """

    name: str = "integrated_gradients"
    steps: int = 20
    batch: int = 10
    baseline: Literal["zero", "mean"] = "zero"

    def prepare(self, subject: Subject) -> Explain:
        """`steps` forwards and backwards a case. With the mean the explanation raises NotForThisError for a model that
        looks up no tokens, and an input that is neither ids nor pictures."""
        places = (torch.arange(self.steps) + 0.5) / self.steps

        def explain(case: Case) -> Tensor:
            leaf = subject.leaf(case)
            begin = torch.zeros_like(leaf) if self.baseline == "zero" else _mean(subject, case, leaf, self.name)
            total = torch.zeros_like(leaf)
            for part in torch.split(places.to(leaf), self.batch):
                between = begin + part.view(-1, *[1] * (leaf.dim() - 1)) * (leaf - begin)
                total += gradient_at(subject, case, between).sum(0, keepdim=True)
            return (leaf - begin) * total / self.steps

        return explain


def _mean(subject: Subject, case: Case, leaf: Tensor, name: str) -> Tensor:
    """What tasks replace by as `mean`, of the shape of the leaf."""
    if "input_ids" not in case.inputs and leaf.dim() == 4:
        return picture_mean(leaf)
    if "input_ids" not in case.inputs:
        raise NotForThisError(f"{name}: the input is neither token ids nor pictures, so there is no mean to begin at")
    try:
        return mean_embedding(subject.model).to(leaf).expand_as(leaf)
    except InputError as error:
        raise NotForThisError(f"{name}: {error}") from error


@dataclass(frozen=True, slots=True)
class Averaged:
    """The relevance of a table, averaged over `draws` leaves with normal noise of `sigma` times the leaf's standard
    deviation (SmoothGrad, Smilkov et al. 2017, of input * gradient under the table)."""

    name: str
    rules: Rules
    sigma: float = 0.1
    draws: int = 8

    def prepare(self, subject: Subject) -> Explain:
        """`draws` forwards and backwards a case, in one batch."""
        table = TableMethod(self.name, self.rules)
        made: list[Explained] = []

        def explain(case: Case) -> Tensor:
            leaf = subject.leaf(case)
            if not made:
                made.append(table._transformed(subject, case, leaf))
            random = torch.Generator().manual_seed(seed_of(case.key))
            noise = torch.randn((self.draws, *leaf.shape[1:]), generator=random).to(leaf)
            noisy = leaf + self.sigma * leaf.std() * noise
            return (noisy * gradient_at(subject, case, noisy, made[0])).mean(0, keepdim=True)

        return explain
