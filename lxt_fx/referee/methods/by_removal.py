"""Leave one out: the model itself, asked without one unit after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.as_it_was import answer_of
from lxt_fx.faithfulness.batch_inputs import evaluating
from lxt_fx.faithfulness.removed_units import without_absent
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """The explained number less the number when one unit is zero (Zeiler and Fergus 2014). Spared units get 0.

    In a causal language model the unit at position t leaves everything before t as it was, so in cases of at least `prefix`
    units the variants run on the keys and values of one whole run, from t on: half of the work, one variant after the
    other. In shorter ones whole variants, many at once, are faster (3 times with 12 tokens, equal with 64: SmolLM2, one
    core). A model whose numbers come out otherwise for the first such case (one without a cache, one that attends both
    ways) is asked whole variants; with `prefix` None every model is.
    """

    name: str = "leave_one_out"
    batch: int = 32
    prefix: int | None = 64

    def prepare(self, subject: Subject) -> Explain:
        """One forward for each unit of a case."""
        least = self.prefix if subject.kind == "language" else None
        agreed: list[bool] = []

        def explain(case: Case) -> Tensor:
            leaf, without = subject.leaf(case), None
            with evaluating(subject.model):
                if least is not None and len(case.labels) >= least:
                    if not agreed:
                        agreed.append(_agree(subject, case, leaf, self.batch))
                    without = _by_prefix_if_it_can(subject, case, leaf) if agreed[0] else None
                if without is None:
                    without = _whole(subject, case, leaf, self.batch)
                number = subject.numbers(case, leaf).double().cpu()
            return (number - without).masked_fill(case.spared, 0)

        return explain


def _whole(subject: Subject, case: Case, leaf: Tensor, batch: int) -> Tensor:
    present = ~torch.eye(len(case.labels), dtype=torch.bool)
    found = []
    for part in torch.split(present, batch):
        repeated = leaf.expand(len(part), *leaf.shape[1:])
        found.append(subject.numbers(case, without_absent(subject.unit, repeated, part, leaf.new_zeros(()))))
    return torch.cat(found).double().cpu()


def _by_prefix(subject: Subject, case: Case, leaf: Tensor) -> Tensor:
    """[units]: the number with each position at zero, from the keys and values of what stands before it."""
    return torch.stack(list(_suffixes(subject, case, leaf)))


def _by_prefix_if_it_can(subject: Subject, case: Case, leaf: Tensor) -> Tensor | None:
    """As `_by_prefix`; None where the model cannot run so: it lacks a cache, its `crop` or position_ids, or the case is
    longer than a window of its attention, whose cache cannot be cropped."""
    try:
        return _by_prefix(subject, case, leaf)
    except Exception:  # in ways of its own
        return None


def _suffixes(subject: Subject, case: Case, leaf: Tensor) -> Iterator[Tensor]:
    model = subject.model
    given = subject.called(case, leaf) | {"use_cache": True}
    whole = answer_of(model, lambda: model(**given)).past_key_values
    name = subject.leaf_name(case)
    tokens = leaf.shape[1]
    for position in range(tokens):
        rest = leaf[:, position:].clone()
        rest[:, 0] = 0
        later = given | {name: rest} | _positions(model, position, tokens)
        if position:
            later["past_key_values"] = cache = copy.deepcopy(whole)
            cache.crop(position - tokens)  # a negative number is how many to drop, in every version of transformers
        yield case.value(answer_of(model, partial(model, **later))).double().cpu()[0]


def _positions(model: nn.Module, first: int, end: int) -> dict[str, Any]:
    return {"position_ids": torch.arange(first, end, device=next(model.parameters()).device)[None]}


def _agree(subject: Subject, case: Case, leaf: Tensor, batch: int) -> bool:
    """Whether the model gives the same numbers from the keys and values of a prefix as for whole variants."""
    whole, found = _whole(subject, case, leaf, batch), _by_prefix_if_it_can(subject, case, leaf)
    if found is None:
        return False
    scale = whole.abs().max().clamp(min=1e-6)
    return bool(((found - whole).abs() <= 1e-4 * scale).all())
