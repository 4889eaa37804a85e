"""Attention on long texts, some queries at a time: the relevance of the lowered graph, which computes all at once, and no
value with tokens times tokens entries. `few` lowers the numbers of queries, so that short texts have several chunks."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rounding import ROUNDINGS, assert_same
from shared_captures import explained, one_worker
from torch import Tensor, nn
from torch.fx import Interpreter
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPTNeoConfig, GPTNeoForCausalLM

import lxt_fx
from lxt_fx.ops import by_queries, in_chunks
from lxt_fx.ops.by_queries import FusedAttention, LazyMask, LazySimplestMask, WrittenAttention
from lxt_fx.passes.fuse.fuse import fuse

TOKENS = 40
BY_QUERIES = (FusedAttention, LazyMask, LazySimplestMask, WrittenAttention)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of queries that run at once, and chunks of 7."""
    monkeypatch.setattr(in_chunks, "FEWEST", 7)
    monkeypatch.setattr(in_chunks, "MOST", 7)

    def whole(queries: int) -> None:
        monkeypatch.setattr(by_queries, "WHOLE", queries)

    return whole


def value_and_gradient(output: Any, leaf: Tensor) -> list[Tensor]:
    """The first tensor of an output, and its gradient for a fixed seed."""
    value = next(item for item in pytree.tree_leaves(output) if isinstance(item, Tensor))
    seed = torch.linspace(-1, 2, value.numel()).to(value.dtype).reshape(value.shape)
    return [value, *torch.autograd.grad(value, leaf, seed)]


def check_by_queries(module: lxt_fx.Explained, tolerance: float = 1e-12, **inputs: Any) -> None:
    """In float64, against the lowered graph."""
    leaf = next(iter(inputs.values())).requires_grad_(True)
    bound = module._prepared((), inputs)[1]
    found = value_and_gradient(module(**inputs), leaf)
    expected = value_and_gradient(module._run_by(Interpreter(module), bound), leaf)
    assert expected[1].abs().max() > 0
    for actual, exact in zip(found, expected, strict=True):
        assert_same(actual, exact, tolerance)


def kinds(module: lxt_fx.Explained) -> list[str]:
    """What runs by queries."""
    targets = [node.target for node in fuse(module).nodes if isinstance(node.target, BY_QUERIES)]
    return [type(target).__name__ for target in targets]


WRITTEN = ["LazyMask", "WrittenAttention", "WrittenAttention"]
FUSED = ["LazySimplestMask", "FusedAttention", "FusedAttention"]


@pytest.mark.parametrize(
    ("name", "attention", "rules", "expected"),
    [
        pytest.param("llama", "eager", "attnlrp", WRITTEN, marks=one_worker("llama")),
        pytest.param("gemma3", "sdpa", "attnlrp", FUSED, marks=one_worker("gemma3")),
        pytest.param("gemma3", "sdpa", "cp_lrp", FUSED, marks=one_worker("gemma3")),
        pytest.param("bert", "sdpa", "attnlrp", FUSED, marks=one_worker("bert")),
    ],
)
def test_long_texts_have_the_relevance_of_the_lowered_graph(
    name: str, attention: str, rules: str, expected: list[str], few: Callable[[int], None]
) -> None:
    module = explained(name, torch.float64, attention, rules=rules)
    assert kinds(module) == expected
    few(8)
    torch.manual_seed(3)
    padded = torch.ones(2, TOKENS, dtype=torch.long)
    padded[0, :9] = 0
    for mask in ({}, {"attention_mask": padded}):
        inputs = {"inputs_embeds": torch.randn(2, TOKENS, 32, dtype=torch.float64), **mask}
        check_by_queries(module, ROUNDINGS, **inputs)


@pytest.mark.parametrize("attention", ["global", "local"])
def test_a_limit_that_is_a_tensor_enters_a_piece(attention: str, few: Callable[[int], None]) -> None:
    """GPT-Neo hides keys by the least number of a dtype, which its forward makes a tensor of."""
    torch.manual_seed(0)
    config = GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[[attention], 2]], window_size=5,
        max_position_embeddings=64, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    module = lxt_fx.transform(GPTNeoForCausalLM(config).double().eval(), kwargs={"input_ids": torch.arange(6)[None]})
    assert kinds(module).count("WrittenAttention") == 2
    few(8)
    check_by_queries(module, ROUNDINGS, inputs_embeds=torch.randn(2, TOKENS, 32, dtype=torch.float64))


class Largest(TorchDispatchMode):
    """The most entries that the value of any op has."""

    def __init__(self) -> None:
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = op(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(found):
            if isinstance(value, Tensor):
                self.entries = max(self.entries, value.numel())
        return found


@pytest.mark.parametrize(
    ("name", "attention", "options"),
    [
        pytest.param("llama", "eager", {}, marks=one_worker("llama")),
        pytest.param("llama", "eager", {"positions": "last", "checkpoint": "sqrt"}, marks=one_worker("llama")),
        pytest.param("gemma3", "sdpa", {}, marks=one_worker("gemma3")),
    ],
)
def test_no_value_has_tokens_times_tokens_entries(
    name: str, attention: str, options: dict[str, Any], few: Callable[[int], None]
) -> None:
    """Neither in the forward nor in the backward; and with all queries at once there are such values."""
    module = explained(name, torch.float64, attention, **options)
    tokens, largest = 100, []
    for whole in (tokens, 8):
        few(whole)
        leaf = torch.randn(1, tokens, 32, dtype=torch.float64, requires_grad=True)
        with Largest() as mode:
            module(inputs_embeds=leaf, attention_mask=torch.ones(1, tokens, dtype=torch.long)).logits[0, -1, 3].backward()
        largest.append(mode.entries)
    assert largest[1] < tokens**2 <= largest[0]


def _distance(x: Tensor) -> Tensor:
    """[queries, keys]: how far back a key is."""
    places = torch.arange(x.shape[1])
    return places[:, None] - places[None, :]


def _causal(x: Tensor, net: Attention) -> Tensor:
    return _distance(x) >= 0


def _window(x: Tensor, net: Attention) -> Tensor:
    return (_distance(x) >= 0) & (_distance(x) < 5)


def _both_sides(x: Tensor, net: Attention) -> Tensor:
    return _distance(x).abs() <= 4


def _blocks(x: Tensor, net: Attention) -> Tensor:
    places = torch.arange(x.shape[1]) // 6
    return (places[:, None] == places[None, :])[None, None]


def _everything(x: Tensor, net: Attention) -> Tensor:
    return _distance(x) < 10_000


def _slopes(x: Tensor, net: Attention) -> Tensor:
    """A bias by distance, a slope for each head (ALiBi), with the causal mask."""
    bias = -_distance(x) * torch.tensor([0.5, 0.25], dtype=torch.float64)[:, None, None]
    return torch.where(_distance(x) >= 0, bias, -math.inf)[None]


def _looked_up(x: Tensor, net: Attention) -> Tensor:
    """A bias that is looked up by distance, as T5 does."""
    return net.bias(_distance(x).clamp(-7, 7) + 7).permute(2, 0, 1)[None]


Mask = Callable[[Tensor, "Attention"], Tensor]


class Attention(nn.Module):
    """One fused attention with two heads of width 4 whose values have width `width`."""

    def __init__(self, mask: Mask | None, width: int = 4, *, is_causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mask, self.width, self.is_causal = mask, width, is_causal
        self.q, self.k, self.v = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2 * width)
        self.bias = nn.Embedding(15, 2)

    def operands(self, x: Tensor) -> list[Tensor]:
        """Queries, keys and values, [batch, 2, tokens, width]."""
        return [linear(x).unflatten(-1, (2, -1)).transpose(1, 2) for linear in (self.q, self.k, self.v)]

    def forward(self, x: Tensor) -> Tensor:
        mask = self.mask(x, self) if self.mask is not None else None
        return F.scaled_dot_product_attention(*self.operands(x), mask, is_causal=self.is_causal).transpose(1, 2).flatten(2)


def transformed(net: nn.Module) -> lxt_fx.Explained:
    """The net in float64."""
    return lxt_fx.transform(net.double().eval(), (torch.randn(2, 9, 8, dtype=torch.float64),))


def text() -> Tensor:
    return torch.randn(2, TOKENS, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (_causal, True),
        (_everything, False),
        (_window, [(0, 7), (3, 14), (10, 21), (17, 28), (24, 35), (31, 40)]),
        (_both_sides, [(0, 11), (3, 18), (10, 25), (17, 32), (24, 39), (31, 40)]),
        (_blocks, [(0, 12), (6, 18), (12, 24), (18, 30), (24, 36), (30, 40)]),
        (_slopes, None),
        (_looked_up, None),
    ],
)
def test_masks_are_made_for_some_queries_and_only_keys_that_these_see_are_read(
    mask: Mask, seen: Any, few: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = transformed(Attention(mask))
    assert kinds(module) == ["LazySimplestMask", "FusedAttention"]
    read: list[Any] = []
    own = LazySimplestMask._seen
    monkeypatch.setattr(LazySimplestMask, "_seen", lambda self, parts: read.append(own(self, parts)) or read[-1])
    few(8)
    check_by_queries(module, x=text())
    (found,) = read
    keys = [chunk.keys for chunk in found] if isinstance(found, list) else found
    assert keys == (seen if seen is not None else [None] * 6)


@pytest.mark.parametrize("is_causal", [True, False])
def test_attention_that_torch_has_no_kernel_for_runs_by_queries(is_causal: bool, few: Callable[[int], None]) -> None:
    module = transformed(Attention(None, width=3, is_causal=is_causal))
    assert kinds(module) == ["FusedAttention"]
    few(8)
    check_by_queries(module, x=text())


class Written(Attention):
    """The same in single ops, with a soft cap and a learnt score that no key has (a sink)."""

    def __init__(self) -> None:
        super().__init__(_causal)
        self.sink = nn.Parameter(torch.randn(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.operands(x)
        scores = 3 * torch.tanh(q @ k.transpose(2, 3) / 6)
        scores = torch.where(_causal(x, self), scores, torch.finfo(scores.dtype).min)
        scores = torch.cat((scores, self.sink[:, None, None].expand(len(x), -1, x.shape[1], 1)), -1)
        weights = torch.softmax(scores - scores.amax(-1, keepdim=True), -1)[..., :-1]
        return (weights @ v).transpose(1, 2).flatten(2)


def test_soft_caps_and_sinks_run_by_queries(few: Callable[[int], None]) -> None:
    module = transformed(Written())
    assert kinds(module)[-1] == "WrittenAttention"
    few(8)
    check_by_queries(module, x=text())


class ReturnsWeights(Attention):
    def forward(self, x: Tensor) -> Any:
        q, k, v = self.operands(x)
        weights = torch.softmax(q @ k.transpose(2, 3), -1)
        return weights @ v, weights


class MaskFromOutside(Attention):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
        return F.scaled_dot_product_attention(*self.operands(x), mask)


def test_scores_that_something_else_reads_and_masks_from_outside_stay_as_they_are() -> None:
    assert kinds(transformed(ReturnsWeights(None))) == []
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    x = torch.randn(2, 9, 8, dtype=torch.float64)
    assert kinds(lxt_fx.transform(MaskFromOutside(None).double().eval(), (x, mask))) == []


@pytest.mark.parametrize("net", [Attention(_window), Written()], ids=["fused", "written"])
def test_a_batch_of_gradients_has_the_relevance_of_each(net: nn.Module, few: Callable[[int], None]) -> None:
    module, x = transformed(net), text().requires_grad_(True)
    few(8)
    value = module(x)
    seeds = torch.randn(3, *value.shape, dtype=torch.float64)
    batched = torch.autograd.grad(value, x, seeds, is_grads_batched=True, retain_graph=True)[0]
    for seed, gradient in zip(seeds, batched, strict=True):
        assert_same(gradient, torch.autograd.grad(value, x, seed, retain_graph=True)[0], 1e-12)


def test_the_gradient_can_be_differentiated_where_that_of_the_ops_can(few: Callable[[int], None]) -> None:
    module, x = transformed(Written()), text().requires_grad_(True)
    found = []
    for whole in (TOKENS, 8):
        few(whole)
        first = torch.autograd.grad(module(x)[:, -1].sum(), x, create_graph=True)[0]
        found.append((first, torch.autograd.grad(first.square().sum(), x)[0]))
    assert found[0][1].abs().max() > 0
    for by_all, by_some in zip(*found, strict=True):
        assert_same(by_some, by_all, 1e-12)


def test_the_backward_runs_under_the_autocast_of_the_forward(few: Callable[[int], None]) -> None:
    """What the chunks compute again has the dtype that it had: bfloat16 for products, which float32 would tell apart."""
    module = lxt_fx.transform(Written().eval(), (torch.randn(2, 9, 8),))
    found = []
    for whole in (TOKENS, 8):
        few(whole)
        x = text().float().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            value = module(x)
        found.append([value, *torch.autograd.grad(value, x, torch.ones_like(value))])
    (value, gradient), (value_by_some, gradient_by_some) = found
    assert value_by_some.dtype == value.dtype == torch.bfloat16
    assert_same(value_by_some, value, torch.finfo(torch.bfloat16).eps)
    assert_same(gradient_by_some, gradient, 4 * torch.finfo(torch.bfloat16).eps)


@pytest.mark.slow
def test_peak_of_a_long_text_is_a_fraction_of_the_plain_gradients() -> None:
    """As `benchmarks/cost/long_inputs.py` measures it. Measured: 0.12."""
    root = Path(__file__).resolve().parents[1]
    peaks = {}
    for method in ("plain, eager", "ours, eager"):
        options = ("--only", method, "--size", "tiny", "--tokens", "2048")
        environment = {**os.environ, "PYTHONPATH": str(root), "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(
            [sys.executable, "benchmarks/cost/long_inputs.py", *options], cwd=root, env=environment, check=True,
            capture_output=True, text=True,
        )  # fmt: skip
        peaks[method] = json.loads(done.stdout.splitlines()[-1])["peak"]
    assert peaks["ours, eager"] < 0.25 * peaks["plain, eager"]
