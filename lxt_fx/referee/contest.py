"""What a task, a method and a metric are: three small interfaces, and the results that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from lxt_fx.base.errors import LxtFxError
from lxt_fx.referee.answers import Answers
from lxt_fx.referee.case import Case, Subject


class NotForThisError(LxtFxError):
    """A method, task or metric cannot be used with this model; it says why. The bench goes on without it and says so."""


Explain = Callable[[Case], Tensor]
"""The relevance of a case: of the shape of its leaf, or one number a unit."""


@runtime_checkable
class Method(Protocol):
    """A way to explain: `prepare` makes it ready for a model, once; what it returns explains one case after the other.

    Raises NotForThisError where the model is none that it can explain, or a package is missing.
    """

    @property
    def name(self) -> str:
        """How the method is called in results."""

    def prepare(self, subject: Subject) -> Explain:
        """The method, ready for this model."""


@runtime_checkable
class Task(Protocol):
    """Inputs with the number that is explained, for any model of a kind.

    `cases` gives the first `count` cases that the model can be asked (it answers them right, where there is a right
    answer); the same seed gives the same ones, and a larger count begins with the same ones. `replacements` gives what a
    removed unit becomes, by name, for one of these cases. Raises NotForThisError for a model of another kind.
    """

    @property
    def name(self) -> str:
        """How the task is called in results."""

    def cases(self, subject: Subject, count: int, seed: int) -> Sequence[Case]:
        """The cases; fewer than `count` where the task has no more."""

    def replacements(self, subject: Subject, case: Case, seed: int) -> dict[str, Sequence[Tensor]]:
        """By name the baselines of `Answers.draws`; the first name is the main one (`token`, then `zero` and `mean`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What a metric judges: the relevance by unit [units], float64, that a method gave for a case; `answers` are the
    model's, shared by all methods; `explain_with` gives the same method's relevance by unit for the same case under another
    model (a copy with randomised weights)."""

    subject: Subject
    case: Case
    relevance: Tensor
    answers: Answers
    explain_with: Callable[[Subject], Tensor]


class Metric(Protocol):
    """One number for an explanation of one case. `better` says which way. Raises NotForThisError for a case that it cannot
    judge (without gold units, say)."""

    @property
    def name(self) -> str:
        """How the metric is called in results."""

    @property
    def better(self) -> Literal["higher", "lower"]:
        """Which explanations are better."""

    def of(self, judged: Judged) -> float:
        """The number."""
