"""Methods of papers, written again by hand as forwards of transformers' Llama, Qwen 3 and GPT-2 whose plain backward is the
method. They share nothing with lxt_fx: modules lend their weights only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Unary = Callable[[Tensor], Tensor]


def plain(x: Tensor) -> Tensor:
    return x


def held(x: Tensor) -> Tensor:
    return x.detach()


def scaled(share: float) -> Unary:
    """The value, with this share of the gradient."""
    return lambda x: share * x + ((1 - share) * x).detach()


class SoftmaxAt(torch.autograd.Function):
    """GIM section 4.1: the softmax, and the gradient of softmax(x / T) without its factor 1 / T."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, temperature: float) -> Tensor:
        ctx.save_for_backward(torch.softmax(x / temperature, -1))
        return torch.softmax(x, -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (s,) = ctx.saved_tensors
        return s * (gradients[0] - (s * gradients[0]).sum(-1, keepdim=True)), None


class UniformProduct(torch.autograd.Function):
    """y = a b with half of the relevance to each factor: R_a = R_b = y g / 2."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return gradients[0] * b / 2, gradients[0] * a / 2


def held_ratio_silu(x: Tensor) -> Tensor:
    """SiLU by the identity rule: its factor sigmoid(x) is a constant."""
    return x * torch.sigmoid(x).detach()


@dataclass(frozen=True, slots=True)
class Method:
    """What a method does at each place of a forward."""

    statistic: Unary = held
    softmax: Unary = lambda x: torch.softmax(x, -1)
    query: Unary = plain
    key: Unary = plain
    value: Unary = plain
    activation: Unary = held_ratio_silu
    gate: Unary = plain
    up: Unary = plain
    tables: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    """(cos, sin) of the queries and of the keys of each layer, by head [heads, tokens, size]; empty: constants."""


GIM = Method(
    softmax=lambda x: SoftmaxAt.apply(x, 2.0),  # type: ignore[no-untyped-call]
    query=scaled(0.25), key=scaled(0.25), value=scaled(0.5), activation=F.silu, gate=scaled(0.5), up=scaled(0.5),
)  # fmt: skip
DETACHED = Method(softmax=lambda x: torch.softmax(x, -1).detach(), activation=lambda x: F.silu(x).detach())
ATTNLRP = Method(query=scaled(0.25), key=scaled(0.25), value=scaled(0.5), gate=scaled(0.5), up=scaled(0.5))


def dual_path(query: float, key: float, value: float, gate: float, up: float) -> Method:
    """Dual Path Attribution section 3 with these scaling factors."""
    shares = (scaled(share) for share in (query, key, value))
    return Method(statistic=held, activation=held_ratio_silu, gate=scaled(gate), up=scaled(up), **dict(
        zip(("query", "key", "value"), shares, strict=True)
    ))  # fmt: skip


def rms(module: Any, x: Tensor, statistic: Unary) -> Tensor:
    return x * statistic(torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + module.variance_epsilon)) * module.weight


def half_turned(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def rotated(x: Tensor, cos: Tensor, sin: Tensor, leaves: bool) -> Tensor:
    if not leaves:
        return x * cos + half_turned(x) * sin
    turned: Tensor = UniformProduct.apply(x, cos) + UniformProduct.apply(half_turned(x), sin)  # type: ignore[no-untyped-call]
    return turned


def decoder(model: Any, embeds: Tensor, method: Method) -> Tensor:
    """The logits of a Llama or Qwen 3."""
    x, tokens = embeds, embeds.shape[1]
    cos, sin = model.model.rotary_emb(x, torch.arange(tokens)[None])
    for index, layer in enumerate(model.model.layers):
        attention = layer.self_attn
        n = rms(layer.input_layernorm, x, method.statistic)
        q, k, v = (
            projection(n).unflatten(-1, (-1, attention.head_dim))
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if hasattr(attention, "q_norm"):
            q, k = rms(attention.q_norm, q, method.statistic), rms(attention.k_norm, k, method.statistic)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        of_query, of_key = method.tables[2 * index : 2 * index + 2] or [(cos[:, None], sin[:, None])] * 2
        q, k = rotated(q, *of_query, bool(method.tables)), rotated(k, *of_key, bool(method.tables))
        q, k, v = method.query(q), method.key(k), method.value(v)
        k, v = (part.repeat_interleave(q.shape[1] // part.shape[1], 1) for part in (k, v))
        scores = q @ k.mT * attention.scaling
        scores = scores.masked_fill(~torch.ones(tokens, tokens, dtype=torch.bool).tril(), -torch.inf)
        x = x + attention.o_proj((method.softmax(scores) @ v).transpose(1, 2).flatten(2))
        n = rms(layer.post_attention_layernorm, x, method.statistic)
        gate = method.activation(method.gate(layer.mlp.gate_proj(n)))
        x = x + layer.mlp.down_proj(gate * method.up(layer.mlp.up_proj(n)))
    logits: Tensor = model.lm_head(rms(model.model.norm, x, method.statistic))
    return logits


def layer_norm(module: nn.LayerNorm, x: Tensor, statistic: Unary) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = statistic(torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + module.eps))
    return centred * scale * module.weight + module.bias


def gelu_new(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def gpt2(model: Any, embeds: Tensor, method: Method) -> Tensor:
    """The logits of a GPT-2; its activation is the GELU by tanh, native where the method's is."""
    net, tokens = model.transformer, embeds.shape[1]
    x = embeds + net.wpe.weight[:tokens]
    for layer in net.h:
        mixed = layer.attn.c_attn(layer_norm(layer.ln_1, x, method.statistic))
        q, k, v = (part.unflatten(-1, (layer.attn.num_heads, -1)).transpose(1, 2) for part in mixed.chunk(3, -1))
        scores = method.query(q) @ method.key(k).mT / q.shape[-1] ** 0.5
        scores = scores.masked_fill(~torch.ones(tokens, tokens, dtype=torch.bool).tril(), -torch.inf)
        x = x + layer.attn.c_proj((method.softmax(scores) @ method.value(v)).transpose(1, 2).flatten(2))
        x = x + layer.mlp.c_proj(gelu_new(layer.mlp.c_fc(layer_norm(layer.ln_2, x, method.statistic))))
    logits: Tensor = model.lm_head(layer_norm(net.ln_f, x, method.statistic))
    return logits
