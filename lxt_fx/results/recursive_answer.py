"""What an answer is made of by way of the answer itself: relevance that flows through its tokens back to the prompt."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.json_file import write_json
from lxt_fx.base.public_door import public
from lxt_fx.base.saved_json import Saved
from lxt_fx.results.answer_flow import AnswerFlow
from lxt_fx.results.answer_places import (
    AnswerUnits,
    first_of,
    flow_of,
    groups_of,
    holder,
    holder_index,
    of_input,
    parts_of,
    reading_of,
)
from lxt_fx.results.answer_sheet import recursive_sheet
from lxt_fx.results.answer_weights import Of, Weights, weights_of
from lxt_fx.results.explanation import Explanation, json_of
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.look import Look, Muted, checked_mute
from lxt_fx.results.origin import ExplainedNumber
from lxt_fx.results.shown import Shown
from lxt_fx.results.words import Span, shown_alone

if TYPE_CHECKING:
    from pandas import DataFrame

    from lxt_fx.views.sheet import Sheet

FORMAT, KIND, THROUGH = 1, "recursive answer", ", through the answer"
WHERE = "RecursiveAnswer"


@dataclass(frozen=True, eq=False, repr=False)
class RecursiveAnswer(Shown):
    """The relevance of the input for tokens of an answer, directly and by way of earlier answer tokens. `answer_relevance`
    with `through="answer"` returns it, and `RecursiveAnswer.of(matrix)` makes it of an answer that was explained.

    `recursive` is r = w (I - A)^-1 P, of each place: the sum over all numbers of hops. P and A are the columns of the input
    and of the answer in the matrix of the answer, of which the positive part counts, each row divided by its sum. What
    reaches an answer token for which nothing before it has positive relevance (its row stays 0) ends there, so the
    relevance sums to that of `weights` [answer], w. `single` is one pass without hops, w times the matrix as it is: the
    relevance of the sum of w_t times logit t. `carried` [answer] is w (I - A)^-1: what flows through each answer token, its
    own weight included. Weights and carried are in float64.

    `matrix` is the answer as `answer_relevance` explains it; None if it was not saved. `without` are the tokens through
    which nothing flows.
    """

    recursive: Explanation
    single: Explanation
    weights: Tensor
    carried: Tensor
    matrix: Explanation | None
    without: tuple[str | int, ...] = ()

    @classmethod
    def of(
        cls, matrix: Explanation, of: Of = None, *, without: Muted | Iterable[Muted] = (), where: str = WHERE
    ) -> RecursiveAnswer:
        """The relevance of these tokens of an explained answer. `of` is a text in the answer (the last place where it
        stands) or a slice of its tokens, of which each gets the same weight and all together 1; a weight for each token; or
        None, the whole answer. `without` are tokens whose relevance counts as 0, so that nothing reaches them or flows
        through them: "special", "first", positions of the text, or a list of these.

        Raises InputError for what is no answer, for a matrix in which a token has relevance for a later one, and for tokens
        or weights that do not fit.
        """
        reading = reading_of(holder(matrix, where))
        weights = weights_of(of, reading.tokens[-reading.answer :], where)
        left_out = checked_mute(without, where, "without")
        flow = flow_of(matrix, left_out, where)
        carried, reached = flow.through(weights.each)
        recursive = _explained(matrix, reached, _through(weights))
        single = _explained(matrix, flow.once(weights.each), _once(matrix, weights))
        return cls(recursive, single, weights.each, carried, matrix, left_out)

    def hops(self, most: int = 4) -> Tensor:
        """[most + 1, places]: how much of `recursive` reached each place by 0 hops (directly), 1 hop, ..., and in the last
        row by `most` hops or more. The places are those of all parts one after another, and the rows sum to `recursive`.

        Raises InputError for a number below 1, and if the matrix was not saved."""
        if isinstance(most, bool) or operator.index(most) < 1:
            raise InputError(f"{WHERE}.hops: the number of hops must be at least 1, got {most!r}")
        return self._flow("hops").hops(self.weights, most)

    def by_answer(self, units: AnswerUnits | Iterable[Span] = "sentences") -> Explanation:
        """Which part of the answer took what from the input: one explained number for each unit of the answer, whose
        relevance is that which reaches the input directly from it. The sum over them is `recursive` without the answer.

        `units` are "tokens", "words" or "sentences", or spans of the text as `Explanation.merge` takes them, of which those
        in the answer count. Raises InputError for other units, and if the matrix was not saved."""
        flow, matrix = self._flow("by_answer"), self._matrix("by_answer")
        reading = reading_of(holder(matrix, WHERE))
        groups = groups_of(reading, units, f"{WHERE}.by_answer")
        parts = of_input(matrix, flow.leaving(self.weights, groups))
        totals = sum(part.values.flatten(1).sum(1) for part in parts)
        assert isinstance(totals, Tensor)
        own = shown_alone(reading.tokens)[-reading.answer :]
        labels = ["".join(own[at] for at in group) for group in groups]
        numbers = tuple(
            ExplainedNumber(f"what {one!r} took, on the way to {self._asked}", float(total), one)
            for one, total in zip(labels, totals, strict=True)
        )
        return Explanation(parts, numbers, self.recursive.origin)

    @property
    def relevance(self) -> Tensor:
        """The recursive relevance of the first part, in float64."""
        return self.recursive.relevance

    @property
    def stopped(self) -> float:
        """How much of the weights ends in answer tokens for which nothing before them has positive relevance."""
        held = self.recursive.parts[holder_index(self.recursive)]
        return float(held.values[len(held.values) - reading_of(held).answer :].sum())

    @property
    def explanations(self) -> Explanations:
        """The recursive relevance, and that of the single pass."""
        return Explanations([self.recursive, self.single])

    def merge(self, what: Literal["words", "sentences"] | Iterable[Span]) -> Explanations:
        """Both explanations with larger places, as `Explanation.merge` makes them."""
        chosen = what if isinstance(what, str) else list(what)
        return Explanations([self.recursive.merge(chosen), self.single.merge(chosen)])

    # files

    def to_dict(self, *, matrix: bool = False) -> dict[str, Any]:
        """Plain values for JSON: `recursive`, `single`, and with `matrix=True` the matrix as `Explanation.to_dict` gives
        them; `weights`, `carried`, `stopped`, and `without`."""
        whole = self._matrix("to_dict").to_dict() if matrix else None
        return {
            "format": FORMAT, "kind": KIND, "weights": self.weights.tolist(),
            "carried": self.carried.tolist(), "stopped": self.stopped, "without": list(self.without),
            "recursive": self.recursive.to_dict(), "single": self.single.to_dict(), "matrix": whole,
        }  # fmt: skip

    def to_json(self, path: str | Path, *, matrix: bool = False) -> None:
        """Writes `to_dict()` as UTF-8 JSON, with every float exact."""
        write_json(self.to_dict(matrix=matrix), path)

    @classmethod
    def from_json(cls, path: str | Path) -> RecursiveAnswer:
        """What `to_json` wrote. Raises InputError that names the place of a value that cannot be used."""
        saved = json_of(path, f"{WHERE}.from_json")
        if saved.item("format").whole() != FORMAT or saved.item("kind").text() != KIND:
            saved.fail(f"is no {KIND} of format {FORMAT}")
        recursive, single = (Explanation.read(saved.item(name)) for name in ("recursive", "single"))
        weights, carried = (_numbers(saved.item(name), recursive) for name in ("weights", "carried"))
        matrix = saved.maybe("matrix")
        without = tuple(_left_out(each) for each in saved.item("without").parts())
        return cls(recursive, single, weights, carried, None if matrix is None else Explanation.read(matrix), without)

    def to_dataframe(self) -> DataFrame:
        """A pandas data frame with a line for each place: the columns of `Explanation.to_dataframe` with `relevance` (the
        recursive one), `single`, and for tokens of the answer `weight` and `carried`. Raises InputError without pandas."""
        found = self.recursive.to_dataframe().drop(columns=["target", "explained", "value"])
        found["single"] = self.single.to_dataframe()["relevance"]
        first, count = first_of(self.recursive), len(self.weights)
        for name, values in (("weight", self.weights), ("carried", self.carried)):
            found[name] = float("nan")
            found.loc[first : first + count - 1, name] = values.tolist()
        return found

    # views

    def sheet(self, **look: Unpack[Look]) -> Sheet:
        """What every view shows: the recursive relevance, and below it the single pass on a scale of its own."""
        return recursive_sheet(self.recursive, self.single, self.stopped, look)

    def to_html(self, path: str | Path, *, patch: int | None = None) -> None:
        """Writes one self-contained page in which both are explored (`lxt_fx.explore`)."""
        public("explore")(self, path=path, patch=patch)

    def __repr__(self) -> str:
        return f"RecursiveAnswer({len(self.weights)} answer tokens, {self.recursive!r})"

    @property
    def _asked(self) -> str:
        return self.recursive.explained.removesuffix(THROUGH)

    def _matrix(self, method: str) -> Explanation:
        if self.matrix is None:
            raise InputError(f"{WHERE}.{method}: the matrix was not saved; write it with to_json(path, matrix=True)")
        return self.matrix

    def _flow(self, method: str) -> AnswerFlow:
        return flow_of(self._matrix(method), self.without, f"{WHERE}.{method}")


def _through(weights: Weights) -> ExplainedNumber:
    return ExplainedNumber(f"{weights.said}{THROUGH}", float(weights.each.sum()), weights.said)


def _once(matrix: Explanation, weights: Weights) -> ExplainedNumber:
    value = float(weights.each @ matrix.values)
    return ExplainedNumber(f"weighted sum of the logits of {weights.said}", value, weights.said)


def _explained(matrix: Explanation, values: Tensor, number: ExplainedNumber) -> Explanation:
    return Explanation(parts_of(matrix, values), (number,), matrix.origin)


def _numbers(saved: Saved, recursive: Explanation) -> Tensor:
    found = torch.tensor([each.number() for each in saved.parts()], dtype=torch.float64)
    count = reading_of(recursive.parts[holder_index(recursive)]).answer
    if len(found) != count:
        saved.fail(f"has {len(found)} numbers, and the answer {count} tokens")
    return found


def _left_out(saved: Saved) -> str | int:
    return saved.text() if isinstance(saved.value, str) else saved.whole()
