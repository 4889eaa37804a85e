"""A model that leaves NaN out of what it computes is explained like one that multiplies by 0 there."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import lxt_fx


class Gaps(nn.Module):
    """Standardises a series by what is there of it; `masked`: the same from numbers and a mask."""

    def __init__(self, masked: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.masked, self.first, self.last = masked, nn.Linear(6, 5), nn.Linear(5, 3)
        self.double().eval()

    def forward(self, x: Tensor, there: Tensor | None = None) -> Tensor:
        if there is not None:
            count = there.sum(-1, keepdim=True)
            centred = (x - (x * there).sum(-1, keepdim=True) / count) * there
            scaled = centred / (centred.square().sum(-1, keepdim=True) / count).sqrt()
        else:
            centred = x - x.nanmean(-1, keepdim=True)
            scaled = torch.where(x.isnan(), 0.0, centred / centred.square().nanmean(-1, keepdim=True).sqrt())
        return self.last(torch.relu(self.first(scaled)))


GAP = math.nan
SERIES = torch.tensor([[0.3, -1.0, GAP, 2.0, 0.5, 1.0], [GAP, 0.2, 0.7, -0.4, GAP, 1.5]], dtype=torch.float64)


def relevance(module: lxt_fx.Explained, x: Tensor, *more: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    asked = module(leaf, *more)[:, 1]
    explicit = module.record.form == "explicit"
    (found,) = torch.autograd.grad(asked, leaf, asked.detach() if explicit else torch.ones_like(asked))
    assert found.isfinite().all()
    return found if explicit else found * x.nan_to_num()


def test_the_gradient_is_that_of_the_same_model_with_a_mask() -> None:
    net, there = Gaps(False), (~SERIES.isnan()).double()
    gaps = lxt_fx.transform(net, (SERIES,), rules="gradient")
    with torch.no_grad():
        assert torch.equal(gaps(SERIES), net(SERIES))
    other = SERIES.flip(-1)  # values that are missing elsewhere
    for x, mask in ((SERIES, there), (other, there.flip(-1))):
        own = lxt_fx.transform(Gaps(True), (x.nan_to_num(), mask), rules="gradient")
        expected = relevance(own, x.nan_to_num(), mask)
        assert float(expected.abs().max()) > 1e-3
        assert torch.allclose(relevance(gaps, x), expected, rtol=1e-9, atol=1e-12)


def test_both_forms_give_the_same() -> None:
    net = Gaps(False)
    found = relevance(lxt_fx.transform(net, (SERIES,)), SERIES)
    exact = relevance(lxt_fx.transform(net, (SERIES,), form="explicit", epsilon=0.0), SERIES)
    assert torch.allclose(found, exact, rtol=1e-9, atol=1e-12)


class Multiplied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        products = x @ x.mT
        return torch.where(products.isnan(), 0.0, products)


def test_a_backward_that_makes_nan_of_them_is_refused() -> None:
    with pytest.raises(lxt_fx.NonFiniteError, match="missing values .* last ops that read them: .*%where"):
        lxt_fx.transform(Multiplied(), (torch.tensor([[[0.5, math.nan], [1.0, 2.0]]]).repeat(2, 1, 1),))
