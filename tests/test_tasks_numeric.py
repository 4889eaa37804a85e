"""Every kind of head: the relevance of every input is input * gradient of the model called by hand, one example alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from task_cases import CASES, SLOW, TEXTS, by_hand, case_of, encoded, explained, padded

import lxt_fx
from lxt_fx import InputError, Target
from lxt_fx.tasks.explain import explain

pytestmark = pytest.mark.xdist_group("tasks")  # they share the captures of task_cases.py


@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_padded_batch_gives_input_times_gradient_of_each_example_alone_and_its_account_closes(name: str) -> None:
    """Texts of a batch are padded in front and behind. The accounts say what the ledger says of each number."""
    case = case_of(name)
    found: Any = explain(explained(name), case.tokenizer, case.given, case.target, account=True)
    assert len(found) == len(case.given.examples)
    for index, explanation in enumerate(found):
        value, expected = by_hand(case, index)
        (number,), account = explanation.numbers, explanation.account
        assert number.value == pytest.approx(value, rel=1e-6)
        largest = max(float(each.abs().max()) for each in expected.values())
        assert largest > 0
        assert account.value == pytest.approx(number.value, rel=1e-9)
        assert abs(account.residual) <= 1e-6 * max(abs(amount) for amount in (account.value, *account.reached.values()))
        assert set(account.took) <= {cause.value for cause in lxt_fx.Cause}
        assert len(explanation.parts) == len(case.given.examples[index].places)
        for place, part in zip(case.given.examples[index].places, explanation.parts, strict=True):
            reference = place_alone(place, expected[place.leaf])
            assert part.units is not None and part.axes[0] != "target"
            torch.testing.assert_close(part.units, reference, rtol=0, atol=1e-6 * largest)
            torch.testing.assert_close(part.values, reference.sum(-1), rtol=0, atol=1e-6 * largest * reference.shape[-1])
            assert account.reached[place.name] == pytest.approx(float(part.values.sum()), rel=1e-6, abs=1e-9)


def place_alone(place: Any, relevance: torch.Tensor) -> torch.Tensor:
    """The relevance [1, ...] of an example alone with its units last."""
    if place.leaf.endswith("input_ids"):
        return relevance[0]
    if place.leaf == "pixel_values":
        return relevance[0].permute(1, 2, 0)
    return relevance[0].movedim(-1, 0).flatten(1) if relevance.dim() > 2 else relevance[0][..., None]


NAN = torch.full((1, 8, 20), float("nan"))
WRONG: dict[str, tuple[Any, Any, str]] = {
    "causal": ("", None, "the text '' is empty"),
    "causal, padded left": ("Paris", "", "empty"),
    "masked": ([5, 10**6], None, "outside the vocabulary"),
    "classifying": ([5] * 513, None, "has positions for 512"),
    "several labels": ("Paris", "poor", "'poor'"),
    "regression": ("Paris", 5, "there is no class 5"),
    "tagging": ("Paris", Target.at(99, 0), "position 99 is not in the text"),
    "question answering": (("The capital", "Paris"), "the moon", "no answer 'the moon'"),
    "encoder-decoder": (True, None, "bool is no kind of input"),
    "image": (torch.randn(3, 9, 9), None, "takes 8 x 8 pixels"),
    "detection": (torch.randn(3, 16, 16), 9, "there is no box 9"),
    "segmentation": (torch.randn(3, 16, 16), Target.at((99, 0), 0), "there is no pixel"),
    "masks": (torch.randn(2, 3, 16, 16), 9, "there is no mask 9"),
    "depth": (torch.randn(3, 16, 16), 1, "has no classes"),
    "transcribing": (torch.randn(1, 160), Target.at(99, 1), "frames"),
    "sounds": (np.zeros(160, dtype=np.int16), None, "no feature extractor was given"),
    "frames": (torch.randn(1, 160), Target.at(99, 1), "and no frame 99"),
    "whisper": ({"input_features": NAN}, None, "input_features is nan"),
    "vision-language": ({"text": "Paris", "images": "nowhere.png"}, None, "needs the processor of both"),
    "matching": (torch.randn(3, 8, 8), None, "reads a text with its pictures"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_refused(name: str) -> None:
    what, target, message = WRONG[name]
    with pytest.raises(InputError, match=message):
        explain(explained(name), case_of(name).tokenizer, what, target)


def test_a_classifier_of_the_first_token_is_not_explained_for_padding() -> None:
    """BERT's pooler takes column 0, where padding in front stands. Texts are padded behind, whatever the tokenizer says."""
    case = case_of("classifying")
    inputs = padded(case.tokenizer, encoded(case.tokenizer, *TEXTS), "left", case.tokenizer.pad_token_id)
    with pytest.raises(InputError, match="padding on the left changes what .*, or pad them on the other side"):
        explain(explained("classifying"), case.tokenizer, inputs)
