"""The backward of the linear map that makes the logits: the product of the whole, by what is not 0 alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shared_captures import each_model
from shared_captures import explained as compiled
from torch import Tensor

from lxt_fx.ops.head import head, sparse_product

ROWS, ENTRIES, HIDDEN = 6, 40, 5


def weight(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(ENTRIES, HIDDEN, dtype=dtype, generator=torch.Generator().manual_seed(0))


@given(
    rows=st.sets(st.integers(0, ROWS - 1)), entries=st.sets(st.integers(0, ENTRIES - 1)), seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]), batch=st.sampled_from([1, 2]),
)  # fmt: skip
def test_equals_the_product_of_the_whole(
    rows: set[int], entries: set[int], seed: int, dtype: torch.dtype, batch: int
) -> None:
    gradient = torch.zeros(batch, ROWS, ENTRIES, dtype=dtype)
    values = torch.randn(batch, len(rows), len(entries), generator=torch.Generator().manual_seed(seed)).to(dtype)
    gradient[:, torch.tensor(sorted(rows)).long()[:, None], torch.tensor(sorted(entries)).long()] = values
    found, expected = sparse_product(gradient, weight(dtype)), gradient.double() @ weight(dtype).double()
    assert found.dtype == dtype and found.shape == expected.shape
    scale = float((gradient.double().abs() @ weight(dtype).double().abs()).max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps * scale)


def test_what_nothing_reaches_is_not_multiplied() -> None:
    """NaN in the matrix would show: 0 * NaN is NaN."""
    matrix = weight()
    matrix[torch.arange(ENTRIES) != 7] = math.nan
    gradient = torch.zeros(1, ROWS, ENTRIES, dtype=torch.float64)
    gradient[0, 2, 7] = 3.0
    found = sparse_product(gradient, matrix)
    assert torch.equal(found[0, 2], 3.0 * matrix[7])
    assert bool((found[0, torch.arange(ROWS) != 2] == 0).all())


def test_a_gradient_that_is_nan_stays_one() -> None:
    gradient = torch.zeros(ROWS, ENTRIES)
    gradient[1, 3] = math.nan
    found = sparse_product(gradient, weight(torch.float32))
    assert bool(found[1].isnan().all()) and bool((found[0] == 0).all())


def test_no_rows_and_no_gradient() -> None:
    assert sparse_product(torch.zeros(0, ENTRIES), weight(torch.float32)).shape == (0, HIDDEN)
    assert bool((sparse_product(torch.zeros(ROWS, ENTRIES), weight(torch.float32)) == 0).all())


def test_is_registered_well() -> None:
    torch.library.opcheck(sparse_product, (torch.randn(2, ROWS, ENTRIES), weight(torch.float32)))
    meta = sparse_product(torch.zeros(2, ROWS, ENTRIES, device="meta"), torch.zeros(ENTRIES, HIDDEN, device="meta"))
    assert meta.shape == (2, ROWS, HIDDEN)


def test_has_a_second_derivative() -> None:
    x = torch.randn(ROWS, HIDDEN, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(head(x, weight()).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, (2 * weight().T @ weight()).sum(0).expand_as(x))


@pytest.mark.parametrize("name", each_model(["llama", "gemma3", "gpt2"]))
def test_every_question_to_a_model_gets_the_answer_of_the_whole_product(name: str) -> None:
    """One logit, several, all of one position, all: as the lowered graph, whose head multiplies everything."""
    explained = compiled(name, torch.float64)
    assert [node.target for node in explained.fused.nodes].count(head) == 1
    whole = torch.fx.GraphModule(explained, explained.graph)
    bound = explained._prepared((torch.randn(2, 5, 32, dtype=torch.float64),), {})[1]
    for ask in (
        lambda logits: logits[0, -1, 3],
        lambda logits: logits[:, -1, 3] @ logits[:, 2, 9],
        lambda logits: logits[0, 1].square().sum(),
        lambda logits: logits.square().sum(),
        lambda logits: logits[..., [3, 9]].square().sum(),
    ):
        found = []
        for module in (explained, whole):
            leaf = bound["inputs_embeds"].clone().requires_grad_(True)
            output = module(**(bound | {"inputs_embeds": leaf}))
            found.append(torch.autograd.grad(ask(output.logits), leaf)[0])
        assert found[1].abs().max() > 0
        torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12 * float(found[1].abs().max()))
