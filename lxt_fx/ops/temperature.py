"""Softmax and attention whose backward is that of a softmax at another temperature (GIM, Edin et al. 2025): the value is
that of torch, and the gradient of scores x is s_T (g - sum_j s_T,j g_j) with s_T = softmax(x / T) and no factor 1 / T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.one_capture import is_compiling
from lxt_fx.ops.dtype_limits import mask_limit
from lxt_fx.ops.in_chunks import chunks_of
from lxt_fx.ops.library import RuleFunction, is_batched


def softmax_at(x: Tensor, dim: int, temperature: float) -> Tensor:
    """softmax(x / temperature) in float32 or wider; 0 at a masked score, also where all scores are masked."""
    if x.shape[dim] == 0:  # no key at all: there is no largest score
        return torch.softmax(x, dim)
    hidden = x <= mask_limit(x.dtype)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scores = (wide - wide.detach().amax(dim, keepdim=True)) / temperature  # at most 0: no division overflows
    return torch.softmax(scores.masked_fill(hidden, -math.inf), dim).masked_fill(hidden, 0.0)


def through_softmax(weights: Tensor, gradient: Tensor, dim: int) -> Tensor:
    """s_i (g_i - sum_j s_j g_j)."""
    return weights * (gradient - (weights * gradient).sum(dim, keepdim=True))


class SoftmaxAtTemperature(RuleFunction):
    """s = softmax(x). Saves x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int, dtype: torch.dtype | None, temperature: float) -> Tensor:
        return torch.softmax(x, dim, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, torch.dtype | None, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.dim, ctx.temperature = inputs[1], inputs[3]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        passed = through_softmax(softmax_at(x, ctx.dim, ctx.temperature), gradients[0], ctx.dim)
        return passed.to(x.dtype), None, None, None


class AttentionAtTemperature(RuleFunction):
    """softmax(scale q k^T + mask) v by torch's kernel. Saves its operands; the backward makes the scores again, some
    queries at a time."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, is_causal: bool, scale: float,
        enable_gqa: bool, temperature: float,
    ) -> Tensor:  # fmt: skip
        given = (query, key, value, mask, dropout_p, is_causal)
        return F.scaled_dot_product_attention(*given, scale=scale, enable_gqa=enable_gqa)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.is_causal, ctx.scale, ctx.enable_gqa, ctx.temperature = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, mask = ctx.saved_tensors
        groups = query.shape[-3] // key.shape[-3] if ctx.enable_gqa else 1
        wide = torch.promote_types(query.dtype, torch.float32)
        q, k, v, g = (x.to(wide) for x in (query, _repeated(key, groups), _repeated(value, groups), gradients[0]))
        q = q * ctx.scale
        found: list[tuple[Tensor, ...]] = []
        for part in _parts(q, k, gradients[0]):
            of_q, of_g = _cut(q, part), _cut(g, part)
            scores = _scores(of_q, k, mask, ctx.is_causal, part)
            passed = through_softmax(softmax_at(scores, -1, ctx.temperature), of_g @ v.mT, -1)
            to_value = softmax_at(scores, -1, 1.0).mT @ of_g
            found.append((passed @ k * ctx.scale, passed.mT @ of_q, to_value, passed))
        to_query, to_mask = (_joined([each[at] for each in found]) for at in (0, 3))
        to_key, to_value = (_grouped(_sum([each[at] for each in found]), groups) for at in (1, 2))
        pairs = [(query, to_query), (key, to_key), (value, to_value), (mask, to_mask)]
        return *(
            _like(to, x) if needed else None for needed, (x, to) in zip(ctx.needs_input_grad, pairs, strict=False)
        ), None, None, None, None, None


def _like(gradient: Tensor, x: Tensor) -> Tensor:
    """The gradient in the dtype and shape of what it belongs to, which may have been broadcast."""
    return (gradient if gradient.shape == x.shape else gradient.sum_to_size(x.shape)).to(x.dtype)


def _cut(x: Tensor, part: slice) -> Tensor:
    """Some of the queries. A batched gradient may not be viewed, and is not cut."""
    return x if part == _ALL else x[..., part, :]


_ALL = slice(0, None)


def _parts(query: Tensor, key: Tensor, gradient: Tensor) -> list[slice]:
    """Which queries run at once: all where a backward is compiled or batched."""
    count = query.shape[-2]
    if is_compiling() or is_batched(gradient) or not count:
        return [_ALL]
    return [slice(chunk.start, chunk.stop) for chunk in chunks_of(count, query[..., 0, 0].numel() * key.shape[-2])]


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, part: slice) -> Tensor:
    """The scores of these of the queries, which are scaled."""
    scores = query @ key.mT
    if is_causal:
        places = torch.arange(query.shape[-2], device=query.device) + part.start
        return scores.masked_fill(torch.arange(key.shape[-2], device=query.device) > places[:, None], -math.inf)
    if mask is None:
        return scores
    own = _cut(mask, part) if mask.shape[-2] > 1 else mask
    return scores.masked_fill(~own, -math.inf) if own.dtype is torch.bool else scores + own


def _repeated(x: Tensor, times: int) -> Tensor:
    return x if times == 1 else x.repeat_interleave(times, -3)


def _grouped(x: Tensor, times: int) -> Tensor:
    """The sum over the heads that read one head."""
    return x if times == 1 else torch.unflatten(x, -3, (-1, times)).sum(-3)


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, -2)


def _sum(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)


def softmax_with(x: Tensor, dim: int, dtype: torch.dtype | None, temperature: float) -> Tensor:
    """torch.softmax with the backward of this temperature."""
    weights: Tensor = SoftmaxAtTemperature.apply(x, dim, dtype, temperature)  # type: ignore[no-untyped-call]
    return weights


def attention_at(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    temperature: float,
) -> Tensor:
    """torch's fused attention with the backward of this temperature."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    settings = (dropout_p, is_causal, scale, enable_gqa, temperature)
    attended: Tensor = AttentionAtTemperature.apply(query, key, value, mask, *settings)  # type: ignore[no-untyped-call]
    return attended
