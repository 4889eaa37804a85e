"""The fused graph, which a plain call runs, against the lowered one, which was proven: the same forward, and the same
gradients. Run node by node, a module runs its lowered graph."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rounding import ROUNDINGS, assert_same
from shared_captures import each_model, explained, one_worker
from tiny import MODELS
from torch import Tensor, nn
from torch.fx import Interpreter
from torch.utils import _pytree as pytree

import lxt_fx
from lxt_fx.ops import active, fused, products
from lxt_fx.ops.by_queries import FusedAttention, LazySimplestMask
from lxt_fx.ops.fused import simplest_mask
from lxt_fx.ops.head import head
from lxt_fx.ops.patches import patches
from lxt_fx.passes.fuse.fuse import fuse

INPUTS = {"inputs_embeds": (2, 7, 32), "pixel_values": (2, 1, 8, 8), "input_features": (2, 8, 20)}


def inputs_of(module: lxt_fx.Explained, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Inputs of a tiny model by name, the first of which carries relevance."""
    torch.manual_seed(3)
    name = module.record.leaves[0]
    found: dict[str, Any] = {name: torch.randn(INPUTS[name], dtype=dtype, requires_grad=True)}
    if "decoder_inputs_embeds" in module.record.inputs:
        found["decoder_inputs_embeds"] = torch.randn(2, 5, 32, dtype=dtype)
    return found


def both(module: lxt_fx.Explained, **inputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """(value, gradient of the first input) by the fused graph, and by the lowered one."""
    leaf = next(iter(inputs.values()))
    bound = module._prepared((), inputs)[1]
    found = []
    for output in (module(**inputs), module._run_by(Interpreter(module), bound)):
        value = next(item for item in pytree.tree_leaves(output) if isinstance(item, Tensor))
        seed = torch.linspace(-1, 2, value.numel(), dtype=value.dtype).reshape(value.shape)
        found.append([value, torch.autograd.grad(value, leaf, seed)[0]])
    return found[0], found[1]


def check_equal(module: lxt_fx.Explained, tolerance: float = 1e-12, **inputs: Any) -> None:
    """In float64. Measured: the forward has the same bits where both graphs run the same kernels."""
    (value, gradient), (plain_value, plain_gradient) = both(module, **inputs)
    assert_same(value, plain_value, tolerance)
    assert plain_gradient.abs().max() > 0
    assert_same(gradient, plain_gradient, tolerance)


def ops(module: lxt_fx.Explained) -> list[Any]:
    """The ops that a plain call runs on few queries; attentions and masks that run by queries stand for these."""
    found = [node.target for node in fuse(module).nodes if node.op == "call_function"]
    found = [target.op if isinstance(target, FusedAttention) else target for target in found]
    return [simplest_mask if isinstance(target, LazySimplestMask) else target for target in found]


@pytest.mark.parametrize(
    ("name", "attention"),
    [
        pytest.param("llama", "eager", marks=one_worker("llama")),
        pytest.param("gemma3", "sdpa", marks=one_worker("gemma3")),
        pytest.param("bert", "sdpa", marks=one_worker("bert")),
        *(
            pytest.param(name, attention, marks=[pytest.mark.slow, one_worker(name)])
            for name, attention in [("gpt2", "sdpa"), ("gpt2", "eager"), ("vit", "eager"), ("whisper", "sdpa")]
        ),
    ],
)
def test_fused_graph_is_the_lowered_graph_on_models(name: str, attention: str) -> None:
    module = explained(name, torch.float64, attention)
    inputs = inputs_of(module)
    tolerance = ROUNDINGS if name in ("llama", "gemma3") else 1e-12  # those cast their norms to float32
    check_equal(module, tolerance, **inputs)
    if name in ("llama", "gemma3"):
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[0, :3] = 0
        check_equal(module, tolerance, **inputs, attention_mask=mask)


class Packed(nn.Module):
    """Queries, keys and values are items of a split, whose readers owe different shares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 2, 12).transpose(1, 2).split(4, dim=-1)
        return F.scaled_dot_product_attention(q, k, v) + v * torch.sigmoid(q)


def test_items_of_a_split_pay_their_shares_once() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True)
    check_equal(lxt_fx.transform(Packed().double().eval(), (x.detach(),)), x=x)


@one_worker("gemma3")
@pytest.mark.parametrize("rules", ["cp_lrp", "lxt"])
def test_fused_graph_is_the_lowered_graph_under_other_tables(rules: str) -> None:
    module = explained("gemma3", torch.float64, rules=rules, epsilon=1e-3)
    check_equal(module, ROUNDINGS, **inputs_of(module))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", {fused.weighted_rms_norm: 5, fused.rotate: 4, fused.gated: 2, fused.grouped_sdpa: 2, fused.linears: 4}),
        ("gemma3", {fused.weighted_rms_norm: 13, fused.rotate: 4, fused.gated: 2, fused.grouped_sdpa: 2, fused.linears: 4}),
        ("bert", {fused.linears: 2, products.sdpa: 2, active.linear_active: 3}),
        ("vit", {active.linear_active: 2, patches: 1}),
    ],
)
def test_models_are_fused_as_far_as_expected(name: str, expected: dict[Any, int]) -> None:
    """And no share is left over: all are paid by matrix products."""
    found = ops(explained(name))
    assert {op: found.count(op) for op in (*expected, head, fused.share)} == {**expected, head: 1, fused.share: 0}


@one_worker("llama")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_fused_graph_in_half_precision(dtype: torch.dtype) -> None:
    """The forward is the same to the last bits of the type; gradients are those of float64 to a few roundings, as the
    lowered graph's are."""
    module = explained("llama", dtype)
    assert fused.weighted_rms_norm in ops(module) and fused.gated in ops(module)
    (value, gradient), (plain_value, plain_gradient) = both(module, **inputs_of(module, dtype))
    assert_same(value, plain_value, 4 * torch.finfo(dtype).eps)
    wide = lxt_fx.transform(MODELS["llama"]().to(dtype).double())
    exact = both(wide, **{k: v.detach().double().requires_grad_() for k, v in inputs_of(module, dtype).items()})[0][1]
    errors = [float((found.double() - exact).norm() / exact.norm()) for found in (gradient, plain_gradient)]
    assert gradient.isfinite().all() and errors[0] < 1.5 * errors[1] < 0.3


@one_worker("llama")
def test_zeros_pass_no_relevance_and_no_nan() -> None:
    (value, gradient), (plain_value, plain_gradient) = both(
        explained("llama", torch.float64), inputs_embeds=torch.zeros(1, 4, 32, dtype=torch.float64, requires_grad=True)
    )
    assert_same(value, plain_value)
    assert not gradient.any() and not plain_gradient.any() and gradient.isfinite().all()


@pytest.mark.parametrize("name", each_model(["llama", "gemma3", "bert", "gpt2"]))
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_batched_gradients_of_a_fused_model_equal_a_loop(
    name: str, attention: str, recwarn: pytest.WarningsRecorder
) -> None:
    """And torch has a rule for every op of the batched backward, but for fused attention and the head, which it runs
    gradient by gradient."""
    module = explained(name, attention=attention)
    (leaf,) = inputs_of(module, torch.float32).values()
    logits = module(inputs_embeds=leaf).logits
    numbers = logits[0, -1] if logits.dim() == 3 else logits[0]
    seeds = torch.eye(len(numbers))[:5]
    recwarn.clear()
    torch._C._debug_only_display_vmap_fallback_warnings(True)
    try:
        (together,) = torch.autograd.grad(numbers, leaf, seeds, is_grads_batched=True, retain_graph=True)
    finally:
        torch._C._debug_only_display_vmap_fallback_warnings(False)
    unbatched = [str(warning.message) for warning in recwarn if "batching rule" in str(warning.message)]
    assert all("attention" in message or "sparse_product" in message for message in unbatched), unbatched
    assert unbatched  # torch says it where there is no rule
    one_by_one = [torch.autograd.grad(numbers, leaf, seed, retain_graph=True)[0] for seed in seeds]
    scale = float(torch.stack(one_by_one).abs().max())
    torch.testing.assert_close(together, torch.stack(one_by_one), rtol=0, atol=1e-5 * scale)


@one_worker("gemma3")
def test_backward_overwrites_nothing_that_is_read_again() -> None:
    """Two backwards through one forward give the same; so does one that is recorded for a second derivative."""
    module = explained("gemma3", torch.float64)
    (leaf,) = inputs_of(module).values()
    logit = module(inputs_embeds=leaf).logits[0, -1, 3]
    first, second = (torch.autograd.grad(logit, leaf, retain_graph=True)[0] for _ in range(2))
    recorded = torch.autograd.grad(logit, leaf, create_graph=True)[0]
    assert_same(second, first, 1e-12)
    assert_same(recorded, first)  # Gemma casts its norms to float32


@one_worker("llama")
def test_audit_and_watch_read_the_lowered_graph() -> None:
    module = explained("llama", torch.float64)
    assert fused.gated not in [node.target for node in module.graph.nodes]
    (leaf,) = inputs_of(module).values()
    with lxt_fx.watch(module, "%silu") as watched:
        module(inputs_embeds=leaf).logits[0, -1, 3].backward()
    assert watched["%silu"].relevance.abs().sum() > 0


@one_worker("llama")
def test_module_from_a_file_runs_the_fused_graph(tmp_path: Path) -> None:
    module = explained("llama", torch.float64)
    lxt_fx.save(module, tmp_path / "llama.safetensors")
    loaded = lxt_fx.load(tmp_path / "llama.safetensors")
    assert ops(loaded) == ops(module)
    check_equal(loaded, ROUNDINGS, **inputs_of(loaded))


@one_worker("llama")
def test_copy_of_a_module_runs_the_fused_graph() -> None:
    module = explained("llama", torch.float64)
    twin = copy.deepcopy(module)
    assert "lxt_fx.gated" in twin.code and "lxt_fx.gated" in module.code
    check_equal(twin, ROUNDINGS, **inputs_of(twin))


class Net(nn.Module):
    """A function of x and of a weight, as a module."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.weight = function, nn.Parameter(torch.randn(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def _norm(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def _half_turn(x: Tensor) -> Tensor:
    return torch.cat((-x[..., 2:], x[..., :2]), -1)


def _reads_its_norm_twice(x: Tensor, w: Tensor) -> Tensor:
    normed = _norm(x)
    return normed * w + normed


def _reads_its_activation_twice(x: Tensor, w: Tensor) -> Tensor:
    open_ = F.silu(x)
    return open_ * (x * w) + open_


def _reads_its_half_turn_twice(x: Tensor, w: Tensor) -> Tensor:
    turned = _half_turn(x)
    return x * w + turned * w.cos() + turned


ALONE = {
    "weighted_rms_norm": lambda x, w: _norm(x) * w,
    "gated": lambda x, w: (x * w) * F.gelu(x),
    "rotate": lambda x, w: _half_turn(x) * w + x * w.cos(),
}
READ_TWICE = {
    "weighted_rms_norm": _reads_its_norm_twice,
    "gated": _reads_its_activation_twice,
    "rotate": _reads_its_half_turn_twice,
}


@pytest.mark.parametrize("name", ALONE)
def test_operands_may_come_in_either_order(name: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    explained = lxt_fx.transform(Net(ALONE[name]), (x.detach(),), dynamic=False)  # halves of a free size are none
    assert getattr(fused, name) in ops(explained)
    check_equal(explained, x=x)


@pytest.mark.parametrize("name", READ_TWICE)
def test_what_is_read_elsewhere_is_not_fused(name: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    explained = lxt_fx.transform(Net(READ_TWICE[name]), (x.detach(),), dynamic=False)
    assert getattr(fused, name) not in ops(explained)
    check_equal(explained, x=x)


NOT_ROTARY = {
    "swapped without a sign": lambda x, w: x * w + torch.cat((x[..., 2:], x[..., :2]), -1) * w.cos(),
    "unequal halves": lambda x, w: x * w + torch.cat((-x[..., 1:], x[..., :1]), -1) * w.cos(),
    "another value turned": lambda x, w: x * w + _half_turn(x + 1) * w.cos(),
    "a table that carries": lambda x, w: x * w + _half_turn(x) * x.cos(),
}


@pytest.mark.parametrize("name", NOT_ROTARY)
def test_what_only_looks_like_a_rotation_is_not_fused(name: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    explained = lxt_fx.transform(Net(NOT_ROTARY[name]), (x.detach(),), strict=False, dynamic=False)
    assert fused.rotate not in ops(explained)
    check_equal(explained, x=x)


def _unequal_readers(x: Tensor, w: Tensor) -> Tensor:
    """The products owe 1/2 of the gradient of `y`, the sum owes all of it."""
    y = torch.tanh(x * w)
    return F.silu(y) * torch.exp(x) + y + torch.matmul(y, y.transpose(-1, -2)).sum(-1, keepdim=True)


def _share_of_a_part(x: Tensor, w: Tensor) -> Tensor:
    first, second = (x * w).chunk(2, -1)
    return torch.cat((first * second.tanh(), second), -1)


@pytest.mark.parametrize("function", [_unequal_readers, _share_of_a_part])
def test_shares_that_differ_between_readers_are_paid_by_each(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    check_equal(lxt_fx.transform(Net(function), (x.detach(),)), x=x)


@one_worker("whisper")
def test_linear_maps_of_different_layers_stay_apart() -> None:
    """Whisper's decoder layers all read the encoder's output: together, keys and values of all would live at once."""
    groups = [node for node in fuse(explained("whisper")).nodes if node.target is fused.linears]
    layers = [{str(w.target).split(".layers.")[1][0] for w in node.args[1]} for node in groups]  # type: ignore[union-attr]
    assert len(groups) >= 6 and all(len(found) == 1 for found in layers)


@one_worker("llama")
class Grouped(nn.Module):
    """Attention of four queries in two groups."""

    def __init__(self, repeat: Callable[[Tensor], Tensor], read_again: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.repeat, self.read_again = repeat, read_again
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (4, 2)).transpose(1, 2)
        key, value = (self.repeat(f(x).unflatten(-1, (2, 2)).transpose(1, 2)) for f in (self.key, self.value))
        y = F.scaled_dot_product_attention(query, key, value)
        return y + key if self.read_again else y


def _unsqueezed(k: Tensor) -> Tensor:
    return k[:, :, None].expand(k.shape[0], 2, 2, k.shape[2], 2).reshape(k.shape[0], 4, k.shape[2], 2)


@pytest.mark.parametrize(
    ("repeat", "read_again", "op"),
    [
        (_unsqueezed, False, fused.grouped_sdpa),
        (lambda k: k.repeat_interleave(2, 1), False, fused.grouped_sdpa),
        (_unsqueezed, True, products.sdpa),
        (lambda k: k.repeat_interleave(2, 1), True, products.sdpa),
        (lambda k: k.repeat(1, 2, 1, 1), False, products.sdpa),
        (lambda k: k[:, None].expand(-1, 2, -1, -1, -1).flatten(1, 2), False, products.sdpa),
    ],
)
def test_repeated_keys_and_values_are_read_before_they_are_repeated(
    repeat: Callable[[Tensor], Tensor], read_again: bool, op: Any
) -> None:
    """In both spellings, where nothing else reads them and each group is repeated in place."""
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    module = lxt_fx.transform(Grouped(repeat, read_again).double().eval(), (x,))
    assert [found for found in ops(module) if found in (fused.grouped_sdpa, products.sdpa)] == [op]


def test_mask_is_looked_at_once_and_dropped_where_it_is_causal_or_hides_nothing() -> None:
    causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, 1, 5, 5)
    assert simplest_mask(causal) == (None, True)
    assert simplest_mask(torch.ones(2, 1, 1, 5, dtype=torch.bool)) == (None, False)
    padded = causal.clone()
    padded[1, :, :, 0] = False
    for mask in (padded, causal[:, :, :1], causal[..., :3], torch.zeros(1, 1, 1, 1, dtype=torch.bool)):
        found, is_causal = simplest_mask(mask)
        assert found is mask and not is_causal
    calls = ops(explained("llama"))
    assert calls.count(simplest_mask) == 1
