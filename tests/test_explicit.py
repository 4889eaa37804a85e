"""The explicit form computes the equations, and the fast form is equal to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from golden_cases import TEXT_CASES, Golden, relative
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import ROUNDINGS
from shared_captures import each_model, explained, one_worker, shared_golden
from tiny import Mlp
from torch import Tensor, nn
from torch._ops import OpOverload

import lxt_fx
from lxt_fx.ops import explicit, products

IDS = torch.tensor([[5, 9, 17, 23, 11]])


def relevance_in(module: lxt_fx.Explained, golden: Golden) -> Tensor:
    """Relevance at the input, read as each form wants it."""
    embeds = golden.case["inputs_embeds"].to(next(golden.model.parameters()).dtype).requires_grad_()
    logits = module(inputs_embeds=embeds).logits
    value = golden.explained_value(logits, golden.case["target"])
    if module.record.form == "gradient":
        (gradient,) = torch.autograd.grad(value, embeds)
        return (embeds * gradient).detach()
    (seed,) = torch.autograd.grad(value, logits, retain_graph=True)
    (relevance,) = torch.autograd.grad(logits, embeds, logits.detach() * seed)
    return relevance


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", each_model(TEXT_CASES))
def test_the_fast_form_equals_the_equations(name: str, attention: str) -> None:
    """Measured: 2.8e-7 where the model casts its norms to float32, else 2e-15."""
    if attention == "eager" and name.split("-")[0] not in ("llama", "bertcls", "gpt2", "gemma3cap"):
        pytest.skip("one attention is enough for these")
    golden = shared_golden(name, torch.float64, attention)
    table = "cp_lrp" if name.endswith("-cp") else "attnlrp"
    fast = relevance_in(explained(name, torch.float64, attention, rules=table), golden)
    slow = explained(name, torch.float64, attention, rules=table, form="explicit", epsilon=0.0)
    by_equation = relevance_in(slow, golden)
    assert relative(by_equation, fast) <= 1e-6


@pytest.mark.parametrize("name", each_model(["bertcls-attn", "llamabias-cp"]))
def test_epsilon_in_the_fast_form_equals_that_of_the_equations(name: str) -> None:
    """With attention written out: inside a fused one the fast form has no epsilon."""
    golden = shared_golden(name, torch.float64, "eager")
    table = "cp_lrp" if name.endswith("-cp") else "attnlrp"
    found = [
        relevance_in(explained(name, torch.float64, "eager", rules=table, form=form, epsilon=epsilon), golden)
        for form, epsilon in (("gradient", 1e-3), ("explicit", 1e-3), ("gradient", 0.0))
    ]
    assert relative(found[0], found[1]) <= 1e-6
    assert relative(found[0], found[2]) > 1e-4


def test_the_default_epsilon_is_that_of_the_form() -> None:
    net = Mlp().double().eval()
    x = torch.randn(2, 6, dtype=torch.float64)
    shown = {form: lxt_fx.show(lxt_fx.transform(net, (x,), form=form), "lowered") for form in ("gradient", "explicit")}
    assert "lxt_fx.leave(%linear, 1e-06)" in shown["explicit"] and "epsilon" not in shown["gradient"]
    stable = lxt_fx.show(lxt_fx.transform(net, (x,), epsilon=1e-4), "lowered")
    assert "lxt_fx.epsilon(%linear, 0.0001)" in stable and "lxt_fx.epsilon(%gelu" not in stable


def epsilon_loop(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor, epsilon: float) -> Tensor:
    """AttnLRP eq. 8 for one sample, number by number."""
    found = torch.zeros_like(x)
    for j in range(len(weight)):
        z = float(bias[j]) + sum(float(weight[j, i] * x[i]) for i in range(len(x)))
        z += epsilon if z >= 0 else -epsilon
        for i in range(len(x)):
            found[i] += weight[j, i] * x[i] * relevance[j] / z if z else 0.0
    return found


NUMBERS = st.integers(-16, 16).map(lambda i: i / 8)


@settings(deadline=None, max_examples=60)
@given(st.lists(NUMBERS, min_size=15, max_size=15), st.sampled_from([0.0, 1e-6, 0.1]))
def test_a_linear_layer_follows_eq_8_in_both_forms(numbers: list[float], epsilon: float) -> None:
    flat = torch.tensor(numbers, dtype=torch.float64)
    x, weight, bias, relevance = flat[:3], flat[3:9].reshape(2, 3), flat[9:11], flat[11:13]
    expected = epsilon_loop(x, weight, bias, relevance, epsilon)
    leaf = x.clone().requires_grad_()
    z = explicit.leave(products.linear(explicit.enter(leaf), weight, bias), epsilon)
    z.backward(relevance)
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, expected, rtol=1e-9, atol=1e-9)
    if bool((z == 0).any()):
        return  # the gradient of relevance / 0 is not defined in the fast form
    leaf = x.clone().requires_grad_()
    z = products.epsilon(products.linear(leaf, weight, bias), epsilon)
    z.backward(relevance / z.detach())
    assert leaf.grad is not None
    torch.testing.assert_close(x * leaf.grad, expected, rtol=1e-9, atol=1e-9)


def test_every_op_of_the_explicit_form_is_registered_well() -> None:
    torch.manual_seed(0)
    x, four = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    q, k, v = (torch.randn(1, 2, 3, 4, requires_grad=True) for _ in range(3))
    calls: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] = {
        explicit.enter: ((x, 0.5), {}),
        explicit.leave: ((x, 1e-3), {}),
        explicit.as_gradient: ((x,), {}),
        explicit.pass_on: ((x, torch.sigmoid(x), 0.5, 1e-3), {}),
        explicit.share_out: (([x, x + 1], x * (x + 1)), {}),
        explicit.softmax_taylor: ((x, 0), {}),
        explicit.layer_norm_linear: ((x, [4]), {"value": x.detach()}),
        explicit.group_norm_linear: ((four, 2), {"value": four.detach()}),
        explicit.sdpa_steps: ((q, k, v), {"value_of": v.detach()}),
        explicit.sdpa_held_steps: ((q, k, v), {"value_of": v.detach()}),
    }
    assert set(calls) == {op for op in vars(explicit).values() if isinstance(op, OpOverload)}
    for op, (arguments, keywords) in calls.items():
        torch.library.opcheck(op, arguments, keywords)


@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("masked", [False, True])
def test_softmax_follows_prop_3_1_along_any_dim(dim: int, masked: bool) -> None:
    torch.manual_seed(0)
    x, relevance = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64)
    if masked:
        x[1, :, 2] = x[:, 0, 0] = -torch.inf
        relevance[torch.softmax(x, dim).nan_to_num() == 0] = 0  # nothing reaches a weight of 0
    leaf = x.clone().requires_grad_()
    explicit.softmax_taylor(leaf, dim).backward(relevance)
    assert leaf.grad is not None and bool(leaf.grad.isfinite().all())
    rows = x.movedim(dim, -1).reshape(-1, x.shape[dim])
    flows = relevance.movedim(dim, -1).reshape(-1, x.shape[dim])
    for row, flow, found in zip(rows, flows, leaf.grad.movedim(dim, -1).reshape(rows.shape), strict=True):
        weights = torch.softmax(row, 0).nan_to_num()
        for i in range(len(row)):
            expected = 0.0 if row[i] == -torch.inf else float(row[i] * (flow[i] - weights[i] * flow.sum()))
            assert abs(float(found[i]) - expected) <= 1e-12


def test_a_product_gives_half_of_its_relevance_to_each_factor_also_where_one_is_zero() -> None:
    a, b = torch.tensor([0.0, 2.0, -3.0]).requires_grad_(), torch.tensor([5.0]).requires_grad_()
    explicit.share_out([a, b], a * b).backward(torch.tensor([1.0, 2.0, 4.0]))
    assert a.grad is not None and b.grad is not None
    assert a.grad.tolist() == [0.5, 1.0, 2.0] and b.grad.tolist() == [3.5]


def test_explain_and_watch_give_the_same_in_both_forms() -> None:
    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    fast, slow = (lxt_fx.transform(model, form=form, epsilon=0.0) for form in ("gradient", "explicit"))
    for target in (None, (3, 4)):
        first, second = (lxt_fx.explain(module, tokenizer, "abc", target) for module in (fast, slow))
        assert relative(second.relevance, first.relevance) <= 1e-4
    found = []
    for module in (fast, slow):
        embeds = lxt_fx.embed(module, IDS)
        with lxt_fx.watch(module, "model.layers.0") as inside:
            logit = module(inputs_embeds=embeds).logits[0, -1, 3]
            logit.backward(logit.detach() if module is slow else None)
        found.append(inside["model.layers.0"].relevance)
    assert relative(found[1], found[0]) <= 1e-4


@one_worker("bert")
def test_the_explicit_form_is_saved_printed_and_certified(tmp_path: Path) -> None:
    module = explained("bert", torch.float64, form="explicit")
    assert lxt_fx.certificate(module).proven
    assert "lxt_fx.sdpa_steps" in lxt_fx.show(module, "lowered")
    lxt_fx.save(module, tmp_path / "explicit.safetensors")
    loaded = lxt_fx.load(tmp_path / "explicit.safetensors")
    assert loaded.record.form == "explicit"
    embeds = torch.randn(1, 5, 32, dtype=torch.float64)
    torch.testing.assert_close(module(inputs_embeds=embeds).logits, loaded(inputs_embeds=embeds).logits)


@pytest.mark.parametrize("name", each_model(["llama", "bert", "vit"]))
def test_the_explicit_form_has_the_forward_of_the_model(name: str) -> None:
    assert explained(name, form="explicit").record.forward_difference <= ROUNDINGS  # measured: 0.0


@one_worker("llama")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_explicit_form_is_finite_in_half_precision(dtype: torch.dtype) -> None:
    module = explained("llama", dtype, form="explicit")
    embeds = lxt_fx.embed(module, IDS)
    logit = module(inputs_embeds=embeds).logits[0, -1, 3]
    logit.backward(logit.detach())
    assert embeds.grad is not None and bool(embeds.grad.isfinite().all()) and bool(embeds.grad.any())


def test_forms_and_epsilons_that_do_not_exist_are_refused() -> None:
    net, x = Mlp().eval(), torch.randn(2, 6)
    with pytest.raises(lxt_fx.InputError, match="form must be one of gradient, explicit, got 'fast'"):
        lxt_fx.transform(net, (x,), form="fast")
    for epsilon in (-1e-6, float("nan")):
        with pytest.raises(lxt_fx.InputError, match="epsilon must be at least 0"):
            lxt_fx.transform(net, (x,), epsilon=epsilon)
    with pytest.raises(lxt_fx.InputError, match="reads the fast form"):
        lxt_fx.audit(lxt_fx.transform(net, (x,), form="explicit"), x, 0)


def test_written_out_norms_and_activations_have_equations_too() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)
            self.norm, self.groups = nn.LayerNorm(8), nn.GroupNorm(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            x = self.norm(x) + x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            x = self.groups(x) * torch.sigmoid(x) + 0.5 * x * (1 + torch.tanh(x + 0.04 * x**3))
            weights = torch.einsum("bi,bj->bij", x, torch.exp(x)).softmax(-1)
            return weights.flatten(1).amax(-1, keepdim=True) + x.mean(-1, True)

    torch.manual_seed(0)
    net, x = Written().double().eval(), torch.randn(3, 8, dtype=torch.float64)
    found = []
    for form in ("gradient", "explicit"):
        leaf = x.clone().requires_grad_()
        value = lxt_fx.transform(net, (x,), form=form, epsilon=0.0)(leaf)
        if form == "gradient":
            value.sum().backward()
            found.append((leaf * leaf.grad).detach())  # type: ignore[operator]
        else:
            value.backward(value.detach())
            found.append(leaf.grad)
    assert relative(found[1], found[0]) <= 1e-9
