"""`flex_attention` against the same attention written out by hand, in modules and in models of transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn.attention import flex_attention as flex

import lxt_fx
from lxt_fx.base.errors import CaptureError, InputError
from lxt_fx.ops import fused, products

pytestmark = pytest.mark.usefixtures("remembered_captures")

HEADS, WIDTH = 4, 4
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Kind:
    """`score` and `mask` as flex_attention takes them; `scored` and `shown` make the same of all scores
    [batch, heads, q, k] and the indices of queries [q, 1] and keys [k]. `layer` has the tensors that they read."""

    score: Callable[[Attention], Function] | None = None
    scored: Callable[[Attention, Tensor, Tensor, Tensor], Tensor] = lambda layer, scores, q, k: scores
    mask: Callable[[Attention], Function] | None = None
    shown: Callable[[Attention, Tensor, Tensor], Tensor] | None = None
    groups: int = HEADS


def causal(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q >= k


def window(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return q - k < 3


class Attention(nn.Module):
    """On [batch, tokens, 16]; by hand, or by flex_attention, which may be compiled."""

    def __init__(self, kind: Kind, call: Function | None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.call, out = kind, call, kind.groups * WIDTH
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, out), nn.Linear(16, out)
        self.bias, self.slopes = nn.Parameter(torch.randn(HEADS, 12, 12)), nn.Parameter(torch.rand(HEADS))
        self.register_buffer("seen", torch.rand(HEADS, 12, 12) > 0.4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part(x).unflatten(-1, (-1, WIDTH)).transpose(1, 2) for part in (self.q, self.k, self.v))
        kind, length = self.kind, x.shape[1]
        if self.call is not None:
            blocks = kind.mask and flex.create_block_mask(kind.mask(self), None, None, length, length, device=x.device)
            found = self.call(q, k, v, kind.score and kind.score(self), blocks, enable_gqa=kind.groups < HEADS)
            return x + found.transpose(1, 2).flatten(2)
        k, v = (t.repeat_interleave(HEADS // kind.groups, 1) for t in (k, v))
        places = torch.arange(length)[:, None], torch.arange(length)
        scores = kind.scored(self, q @ k.mT / math.sqrt(WIDTH), *places)
        shown = torch.ones(length, length, dtype=torch.bool) if kind.shown is None else kind.shown(self, *places)
        weights = scores.masked_fill(~shown, torch.finfo(scores.dtype).min).softmax(-1) * shown.any(-1, keepdim=True)
        return x + (weights @ v).transpose(1, 2).flatten(2)


KINDS = {
    "plain": Kind(),
    "causal, grouped": Kind(mask=lambda layer: causal, shown=lambda layer, q, k: q >= k, groups=2),
    "masks joined": Kind(
        mask=lambda layer: flex.and_masks(causal, window), shown=lambda layer, q, k: (q >= k) & (q - k < 3)
    ),
    "a mask from the model": Kind(
        mask=lambda layer: lambda b, h, q, k: layer.seen[h, q, k] | (q == k),
        shown=lambda layer, q, k: layer.seen[:, : len(q), : len(k)] | (q == k),
    ),
    "a query that sees nothing": Kind(mask=lambda layer: lambda b, h, q, k: k < q, shown=lambda layer, q, k: k < q),
    "a bias, looked up in steps": Kind(
        lambda layer: lambda score, b, h, q, k: score + layer.bias[h][q][k],
        lambda layer, scores, q, k: scores + layer.bias[:, : len(q), : len(k)],
    ),
    "scores that are hidden by score_mod": Kind(
        lambda layer: lambda score, b, h, q, k: torch.where(q >= k, score + layer.slopes[h] * (k - q), -math.inf),
        lambda layer, scores, q, k: torch.where(q >= k, scores + layer.slopes[:, None, None] * (k - q), -math.inf),
    ),
    "soft cap, and a query that sees nothing": Kind(
        lambda layer: lambda score, b, h, q, k: 2 * torch.tanh(score / 2),
        lambda layer, scores, q, k: 2 * (scores / 2).tanh(),
        mask=lambda layer: lambda b, h, q, k: k < q, shown=lambda layer, q, k: k < q,
    ),
}  # fmt: skip


class Layers(nn.Module):
    """One attention after the other, so that one capture has all."""

    def __init__(self, call: Function | None) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: Attention(kind, call) for name, kind in KINDS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = dict[str, Tensor]()
        for name, layer in self.layers.items():
            outputs[name] = x = layer(x)
        return outputs


@cache
def net() -> Layers:
    """One model for all tests, whose capture is remembered."""
    return Layers(flex.flex_attention)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def relevance(module: nn.Module, x: Tensor, *, explicit: bool = False) -> dict[str, Tensor]:
    """For an entry of each layer's output: x * gradient, or what flows back in explicit form."""
    leaf, found = x.clone().requires_grad_(), {}
    for name, output in module(leaf).items():
        asked = output[:, -1, 3]
        seed = asked.detach() if explicit else torch.ones_like(asked)
        (found[name],) = torch.autograd.grad(asked, leaf, seed, retain_graph=True)
    return found if explicit else {name: x * gradient for name, gradient in found.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    for name, wanted in expected.items():
        assert float((found[name] - wanted).detach().abs().max() / wanted.detach().abs().max()) < tolerance, name


def test_it_is_the_attention_written_out_by_hand() -> None:
    x, by_hand = drawn(2, 6, 16), Layers(None)
    explained, own = lxt_fx.transform(net(), (x,)), lxt_fx.transform(by_hand, (x,))
    assert explained.record.method == "torch.export" and not explained.record.specialised
    assert_same(explained(x), by_hand(x), 1e-12)
    other = drawn(3, 9, 16)  # sizes are free, and the blocks of 128 do not fix them
    assert_same(explained(other), by_hand(other), 1e-12)
    assert_same(relevance(explained, x), relevance(own, x), 1e-6)
    exact = lxt_fx.transform(explained, (x,), form="explicit", epsilon=0.0)
    assert_same(relevance(exact, x, explicit=True), relevance(explained, x), 1e-6)
    plain = lxt_fx.transform(explained, (x,), rules="gradient")
    assert_same(relevance(plain, x), relevance(by_hand, x), 1e-6)
    ledger = lxt_fx.audit(explained, x, lambda outputs: list(outputs.values())[-1][:, -1, 3])
    assert not ledger.faults() and float(ledger.residual.abs().max()) < 1e-6 * float(ledger.scale().max())


def test_an_attention_that_only_masks_is_fused() -> None:
    masked = {name: kind for name, kind in KINDS.items() if kind.score is None}
    explained = lxt_fx.transform(net(), (drawn(2, 6, 16),))
    assert sum(node.target is products.sdpa for node in explained.graph.nodes) == len(masked)
    assert sum(node.target is products.softmax for node in explained.graph.nodes) == len(KINDS) - len(masked)
    assert any(getattr(node.target, "op", None) is fused.grouped_sdpa for node in explained.fused.nodes)


@pytest.mark.parametrize("export", [True, False], ids=["export", "a real trace"])
def test_compiled_functions_run_as_they_are_written(export: bool) -> None:
    def refuse(*args: Any) -> Any:
        raise AssertionError("it was compiled")

    class Net(nn.Module):
        def __init__(self, call: Any) -> None:
            super().__init__()
            self.attention = Attention(KINDS["a bias, looked up in steps"], call)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x) if export or float(x[0, 0, 0].detach()) < 1e3 else x

    x = drawn(2, 5, 16)
    explained = lxt_fx.transform(Net(torch.compile(flex.flex_attention, backend=refuse)), (x,))
    assert (explained.record.method == "torch.export") is export
    with torch.no_grad():
        assert torch.allclose(explained(x), Net(None)(x), rtol=1e-12)
        assert torch.allclose(explained(x), Net(flex.flex_attention)(x), rtol=1e-12)
    with pytest.raises(Exception, match="it was compiled"):  # torch is as it was
        torch.compile(lambda x: x + 1, backend=refuse)(x)


def test_a_model_of_transformers() -> None:
    ids, mask = torch.arange(18).reshape(2, 9), torch.ones(2, 9, dtype=torch.long)
    mask[1, :3] = 0
    found = {}
    for attention in ("flex_attention", "sdpa"):
        explained = lxt_fx.transform(tiny.llama(attention).double())
        assert explained.record.method == "torch.export" and not explained.record.specialised
        output, leaves = explained.with_leaves(input_ids=ids, attention_mask=mask)
        output.logits[:, -1, 7].sum().backward()
        found[attention] = {name: (leaf * leaf.grad).detach() for name, leaf in leaves.items()}
    assert_same(found["flex_attention"], found["sdpa"], 1e-6)


class Refused(nn.Module):
    def __init__(self, score: Function | None, blocks: Any = None) -> None:
        super().__init__()
        self.score, self.blocks = score, blocks

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(1)
        return flex.flex_attention(x, x, x, self.score, self.blocks)


def test_a_function_that_cannot_be_called_for_all_scores_is_named() -> None:
    table = drawn(6, 16)

    def by_part(score: Tensor, batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + table[q][:8].sum() * table[k][:8].sum()

    with pytest.raises(CaptureError, match=r"score_mod of flex_attention \(.*by_part\).*attn_implementation=\"sdpa\""):
        lxt_fx.transform(Refused(by_part), (drawn(2, 6, 16),))


def test_blocks_that_say_other_than_their_function_are_refused() -> None:
    counts, indices = torch.ones(1, 1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 1, dtype=torch.int32)
    blocks = flex.BlockMask.from_kv_blocks(counts, indices, BLOCK_SIZE=128, seq_lengths=(130, 130))
    with pytest.raises((CaptureError, InputError), match="blocks of a BlockMask .* other keys than its mask_mod"):
        lxt_fx.transform(Refused(None, blocks), (drawn(1, 130, 16),))
