"""Attention written out, so that what flows back to its scores can be read: the value and the gradients of the fused op."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lxt_fx.base.wide import at_least_float32
from lxt_fx.ops.products import hold_masked_queries, share, softmax


def attention_with_scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    query_share: float = 1.0,
    key_share: float = 1.0,
    value_share: float = 1.0,
    mask_share: float = 1.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lxt_fx.sdpa` as the ops that it stands for: what it gives, its scores q k^T scale [..., heads, queries, keys] before
    any mask, and the weights. Without shares it is torch's own attention, with the native gradient.

    What flows back to the scores has `mask_share`, that of what is added to them; queries and keys then have the rest of
    their shares. Scores and weights are at least float32, as in torch's kernels. Under `enable_gqa` heads of keys and
    values are read by neighbouring heads of queries.
    """
    wide = [at_least_float32(x) for x in (query, key, value)]
    shares = _inner(query_share, key_share, value_share, mask_share)
    q, k, v = (share(x, part) for x, part in zip(wide, shares, strict=True))
    if enable_gqa:
        k, v = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, v))
    scores = (q @ k.mT) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    given, seen = share(scores, mask_share), None
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        given = given.masked_fill(later, -math.inf)
    if attn_mask is not None and attn_mask.dtype is torch.bool:
        given, seen = given.masked_fill(~attn_mask, -math.inf), attn_mask.any(-1, keepdim=True)
    elif attn_mask is not None:
        given = given + share(attn_mask, mask_share)
    weights: Tensor = softmax(given, -1, temperature=temperature)
    if seen is not None:
        weights = torch.where(seen, weights, 0.0)  # as torch: a query that sees no key gives 0
    return hold_masked_queries((weights @ v).to(query.dtype), attn_mask), scores, weights


def _inner(query: float, key: float, value: float, mask: float) -> tuple[float, float, float]:
    """The factors of queries and keys behind that of the scores, and of values."""
    return (query / mask, key / mask, value) if mask else (0.0, 0.0, value)
