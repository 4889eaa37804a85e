"""What a file with the fixture `captures_in_files` (conftest.py) still tests: all that follows capture runs each time."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from kept_net import captures_counted
from torch import Tensor, nn

import lxt_fx
from lxt_fx.compiler import pipeline

pytestmark = pytest.mark.usefixtures("captures_in_files")

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
SIDES = {"gradient": 1.0, "attnlrp": 0.5}


class Product(nn.Module):
    """A layer that multiplies two projections: AttnLRP gives each of them half."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) * self.right(x)


def made(seed: int) -> Product:
    torch.manual_seed(seed)
    return Product()


@pytest.mark.parametrize("rules", SIDES)
def test_an_equal_model_is_not_exported_again_and_gets_rules_and_values_of_its_own(rules: str) -> None:
    lxt_fx.transform(made(0), (X,), rules=rules)
    model = made(1)
    with captures_counted() as captured:
        module = lxt_fx.transform(model, (X,), rules=rules)
    assert captured == []
    x = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(module(x).sum(), x)
    left, right = model.left(X), model.right(X)
    expected = SIDES[rules] * (right @ model.left.weight + left @ model.right.weight)
    torch.testing.assert_close(found, expected)


def test_a_pass_that_is_wrong_fails_also_on_a_capture_that_was_read() -> None:
    lxt_fx.transform(made(0), (X,))
    wrong = AssertionError("a wrong pass")
    broken = mock.patch.object(pipeline, "rewrite", side_effect=wrong)
    with captures_counted() as captured, broken, pytest.raises(AssertionError, match="a wrong pass"):
        lxt_fx.transform(made(2), (X,))
    assert captured == []
