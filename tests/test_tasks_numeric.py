"""Every kind of head: the relevance of every input is input * gradient of the model called by hand, one example alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from task_cases import CASES, by_hand, case_of, explained

import lxt_fx
from lxt_fx.results.explanation import Explanation
from lxt_fx.tasks.explain import explain

pytestmark = pytest.mark.xdist_group("tasks")  # they share the captures of task_cases.py


def found_of(name: str, **options: Any) -> tuple[Explanation, ...]:
    case = case_of(name)
    return explain(explained(name), case.tokenizer, case.given, case.target, **options)  # type: ignore[return-value]


@pytest.mark.parametrize("name", CASES)
def test_a_padded_batch_gives_input_times_gradient_of_each_example_alone(name: str) -> None:
    case = case_of(name)
    found = found_of(name)
    assert len(found) == len(case.given.examples)
    for index, explanation in enumerate(found):
        value, expected = by_hand(case, index)
        (number,) = explanation.numbers
        assert number.value == pytest.approx(value, rel=1e-6)
        largest = max(float(each.abs().max()) for each in expected.values())
        assert largest > 0
        assert len(explanation.parts) == len(case.given.examples[index].places)
        for place, part in zip(case.given.examples[index].places, explanation.parts, strict=True):
            reference = place_alone(place, expected[place.leaf])
            assert part.units is not None and part.axes[0] != "target"
            torch.testing.assert_close(part.units, reference, rtol=0, atol=1e-6 * largest)
            torch.testing.assert_close(part.values, reference.sum(-1), rtol=0, atol=1e-6 * largest * reference.shape[-1])


def place_alone(place: Any, relevance: torch.Tensor) -> torch.Tensor:
    """The relevance [1, ...] of an example alone with its units last."""
    if place.leaf.endswith("input_ids"):
        return relevance[0]
    if place.leaf == "pixel_values":
        return relevance[0].permute(1, 2, 0)
    return relevance[0].movedim(-1, 0).flatten(1) if relevance.dim() > 2 else relevance[0][..., None]


@pytest.mark.parametrize("name", CASES)
def test_the_account_of_each_number_closes(name: str) -> None:
    case = case_of(name)
    for index, explanation in enumerate(found_of(name, account=True)):
        account, (number,) = explanation.account, explanation.numbers
        assert account is not None and account.value == pytest.approx(number.value, rel=1e-9)
        assert abs(account.residual) <= 1e-6 * max(abs(amount) for amount in (account.value, *account.reached.values()))
        for place, part in zip(case.given.examples[index].places, explanation.parts, strict=True):
            assert account.reached[place.name] == pytest.approx(float(part.values.sum()), rel=1e-6, abs=1e-9)
        assert set(account.took) <= {cause.value for cause in lxt_fx.Cause}
