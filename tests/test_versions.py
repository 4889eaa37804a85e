"""What other versions of torch and transformers make of a model, tried on this one (tests/zoo/versions.py runs others)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import masking_utils

import lxt_fx


class MaskOfItsOwn(nn.Module):
    """Attention whose mask is made by vmap, with a value that Python reads: only a real trace can capture it."""

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key <= query) & seen[batch, key]

        if seen.sum().item() < 2:
            return x
        places = torch.arange(x.shape[1])
        with masking_utils.TransformGetItemToIndex():
            mask = masking_utils._vmap_expansion_sdpa(visible)(torch.arange(len(x)), torch.arange(1), places, places)
        h = x.unsqueeze(1)
        return nn.functional.scaled_dot_product_attention(h, h, h, mask).squeeze(1)


def test_mask_made_by_vmap_is_traced_and_transformers_is_put_back() -> None:
    before = masking_utils._vmap_expansion_sdpa
    inputs = {"x": torch.randn(2, 5, 8), "seen": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)}
    model = MaskOfItsOwn().eval()
    explained = lxt_fx.transform(model, kwargs=inputs)
    assert explained.record.method == "make_fx"
    other = inputs | {"x": torch.randn(2, 5, 8)}
    torch.testing.assert_close(explained(**other), model(**other))
    assert masking_utils._vmap_expansion_sdpa is before


class Scan(nn.Module):
    """Another way through while it is exported, as in transformers 5.9."""

    def __init__(self) -> None:
        super().__init__()
        self.use_associative_scan = True

    def forward(self, x: Tensor) -> Tensor:
        if self.use_associative_scan and torch.compiler.is_exporting():
            return torch.vmap(torch.sin)(x)
        return torch.tanh(x)


def test_scans_are_the_loops_of_any_other_call() -> None:
    model = Scan().eval()
    explained = lxt_fx.transform(model, (torch.randn(2, 3),))
    assert any(str(node.target).startswith("lxt_fx.tanh") for node in explained.graph.nodes)
    assert model.use_associative_scan


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_softmax_over_no_keys_is_empty_and_passes_nothing(form: str) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor, values: Tensor) -> Tensor:
            return torch.softmax(x, -1) @ values + x.sum()

    inputs = (torch.randn(2, 3, 0), torch.randn(2, 0, 4))
    explained = lxt_fx.transform(Attention().eval(), inputs, form=form)  # type: ignore[arg-type]
    leaves = [x.clone().requires_grad_() for x in inputs]
    explained(*leaves).sum().backward()
    assert [leaf.grad.shape for leaf in leaves] == [x.shape for x in inputs]  # type: ignore[union-attr]
