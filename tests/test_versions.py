"""What other versions of torch and transformers make of a model, tried on this one (tests/zoo/versions.py runs others)."""

from __future__ import annotations

import itertools
from inspect import signature

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, masking_utils

import lxt_fx
from lxt_fx.base import torch_internals


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


class Guarded(nn.Module):
    """Two inputs of one size, which must be even and at most 8."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = x + y
        if h.shape[1] > 8:
            return h
        return (h * self.table[: h.shape[1]]).reshape(-1, 2)


def test_guards_of_an_older_torch_allow_the_sizes_that_those_of_this_one_allow() -> None:
    """This torch writes its guards down; without that they come out of the shape environment, as with torch 2.6."""
    sizes = dict.fromkeys(range(2), torch.export.Dim.AUTO)
    inputs = {"x": torch.randn(3, 6), "y": torch.randn(3, 6)}
    exported = torch.export.export(Guarded(), (), inputs, dynamic_shapes={"x": sizes, "y": sizes}, strict=False)
    older, now = torch_internals.guards_of_graph(exported.graph_module.graph), torch_internals.guards_of(exported)
    answers = []
    for shapes in itertools.product([(2, 4), (2, 5), (3, 4), (3, 8), (3, 10), (3, 12)], repeat=2):
        called = dict(zip(inputs, map(torch.empty, shapes), strict=True))
        allowed = [all(eval(guard, {"L": called}) for guard in guards) for guards in (older, now)]
        assert allowed[0] == allowed[1], (shapes, older, now)
        answers.append(allowed[0])
    assert any(answers) and not all(answers)


class Doubled(nn.Module):
    """Its second input is twice as long as the first."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, x], 1) * y


def test_a_size_that_another_one_gives_is_a_guard_of_an_older_torch_too() -> None:
    sizes = dict.fromkeys(range(2), torch.export.Dim.AUTO)
    inputs = {"x": torch.randn(3, 6), "y": torch.randn(3, 12)}
    exported = torch.export.export(Doubled(), (), inputs, dynamic_shapes={"x": sizes, "y": sizes}, strict=False)
    guards = torch_internals.guards_of_graph(exported.graph_module.graph)
    for length, allowed in ((10, True), (8, False), (5, False)):
        called = {"x": torch.empty(2, 5), "y": torch.empty(2, length)}
        assert all(eval(guard, {"L": called}) for guard in guards) is allowed, (length, guards)


def test_inputs_are_captured_by_name_in_another_order_than_that_of_the_signature() -> None:
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    ).eval()
    explained = lxt_fx.transform(model)
    names = [str(node.target) for node in explained.graph.nodes if node.op == "placeholder"]
    assert names == list(explained.record.inputs)
    assert names != [name for name in signature(model.forward).parameters if name in names]
    embeds = torch.randn(2, 5, 8)
    torch.testing.assert_close(explained(embeds).logits, model(inputs_embeds=embeds).logits)
