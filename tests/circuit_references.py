"""Decoders by hand, for the tests of circuits: each reader of the residual stream reads what a function gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

Terms = Mapping[str, Tensor]
Reads = Callable[[str, Terms], Tensor]
"""The input of a reader, [batch, tokens, hidden], from what was written before: by writer, [batch, tokens, hidden]."""


class ExactNorm(nn.Module):
    """An RMS norm that casts nothing to float32."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(norm.weight.detach().double()), norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


def exact(model: nn.Module) -> nn.Module:
    """The model in float64, whose norms do not cast to float32."""
    model = model.double()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                setattr(module, name, ExactNorm(child))
    return model


class ScaledLayer(LlamaDecoderLayer):
    """A layer that multiplies the stream with constants: with some that are computed of a parameter where the attention is
    added (as Doge), and behind the layer (as Gemma 4)."""

    scale: Tensor

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        mixed, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        x = torch.sigmoid(self.inner) * hidden_states + mixed
        return (x + self.mlp(self.post_attention_layernorm(x))) * self.scale


def scaled(model: Any) -> Any:
    """The Llama with such layers: one factor for each entry of hidden behind the first, one for all behind the second."""
    generator = torch.Generator().manual_seed(3)
    for index, layer in enumerate(model.model.layers):
        layer.__class__ = ScaledLayer
        shape = [1] if index else [model.config.hidden_size]
        layer.scale = nn.Parameter(torch.randn(shape, generator=generator) + 0.1)
        layer.inner = nn.Parameter(torch.randn(model.config.hidden_size, generator=generator))
    return model


def whole(name: str, terms: Terms) -> Tensor:
    """What a reader reads in the network itself: the stream."""
    return sum(terms.values())  # type: ignore[return-value]


def hand_llama(model: Any, embeds: Tensor, reads: Reads = whole) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a Llama, and what each writer adds, as it is in the last value of the stream. Heads of keys are shared
    by neighbours."""
    config, terms = model.config, {"embedding": embeds}
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    size = config.hidden_size // heads
    cos, sin = model.model.rotary_emb(embeds, torch.arange(embeds.shape[1])[None])
    for index, layer in enumerate(model.model.layers):
        own, norm = layer.self_attn, layer.input_layernorm

        def made(kind: str, unit: int, weight: Tensor) -> Tensor:
            read = norm(reads(f"attention.{index}.{kind}:{unit}", dict(terms)))  # noqa: B023
            return read @ weight[unit * size : (unit + 1) * size].T

        keys = [rotated(made("keys", unit, own.k_proj.weight), cos, sin) for unit in range(groups)]
        values = [made("values", unit, own.v_proj.weight) for unit in range(groups)]
        added = {}
        for head in range(heads):
            query, of = rotated(made("queries", head, own.q_proj.weight), cos, sin), head // (heads // groups)
            mixed = attended(query, keys[of], values[of])
            added[f"attention.{index}.heads:{head}"] = mixed @ own.o_proj.weight[:, head * size : (head + 1) * size].T
        if isinstance(layer, ScaledLayer):
            terms = {name: torch.sigmoid(layer.inner) * value for name, value in terms.items()}
        terms |= added
        x, mlp = layer.post_attention_layernorm(reads(f"mlp.{index}.input", dict(terms))), layer.mlp
        terms[f"mlp.{index}.output"] = mlp.down_proj(nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x))
        if isinstance(layer, ScaledLayer):
            terms = {name: layer.scale * value for name, value in terms.items()}
    return model.lm_head(model.model.norm(reads("logits", dict(terms)))), terms


def hand_gpt2(model: Any, embeds: Tensor, reads: Reads = whole) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a GPT-2, and what each writer adds; biases of projections belong to no writer."""
    config, net = model.config, model.transformer
    terms = {"embedding": embeds + net.wpe.weight[: embeds.shape[1]]}
    size, width, bias = config.n_embd // config.n_head, config.n_embd, torch.zeros_like(embeds)
    for index, layer in enumerate(net.h):
        own, constant = layer.attn, bias  # what every reader of this layer reads beside its terms

        def made(kind: str, unit: int, part: int) -> Tensor:
            read = layer.ln_1(reads(f"attention.{index}.{kind}:{unit}", dict(terms)) + constant)  # noqa: B023
            at = slice(part * width + unit * size, part * width + (unit + 1) * size)
            return read @ own.c_attn.weight[:, at] + own.c_attn.bias[at]  # noqa: B023

        added = {}
        for head in range(config.n_head):
            query, key, value = (made(kind, head, part) for part, kind in enumerate(("queries", "keys", "values")))
            weight = own.c_proj.weight[head * size : (head + 1) * size]
            added[f"attention.{index}.heads:{head}"] = attended(query, key, value) @ weight
        terms |= added
        bias = bias + own.c_proj.bias
        terms[f"mlp.{index}.output"] = layer.mlp(layer.ln_2(reads(f"mlp.{index}.input", dict(terms)) + bias))
    return model.lm_head(net.ln_f(reads("logits", dict(terms)) + bias)), terms


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention of one head, [batch, tokens, size]."""
    scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf).softmax(-1) @ value
