"""Several ops in one, for the graph that runs: the same forward values, by the same kernels, and the same relevance, in
fewer passes over memory and with less saved for the backward.

A `share` multiplies the gradient, as in `products.py`; `merge_shares` moves shares to where they cost nothing. A plain
backward overwrites its own temporaries; one that is compiled, batched (`is_grads_batched`) or itself differentiated does
not. A batched one multiplies what does not depend on the gradient first, once for the whole batch, and uses no op that
torch would run gradient by gradient (in-place ops, `addmm`).

The functions save their tensors in `forward`: a `setup_context` costs 15 microseconds a call (torch 2.13 binds the
arguments with `inspect` for it), and would serve `torch.func`, which lxt_fx ops do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.ops.activations import BY_NAME
from lxt_fx.ops.gradient_product import takes_onednn, times_weight
from lxt_fx.ops.library import (
    RuleFunction,
    define,
    has_values,
    in_float32,
    is_batched,
    narrowed,
    overwrites,
    times,
    widest,
)
from lxt_fx.ops.norms import all_zero
from lxt_fx.ops.products import SDPA_SCHEMA, SHARES, TEMPERATURE, sdpa
from lxt_fx.ops.products import share as times_share


class WeightedRmsNorm(RuleFunction):
    """cast(cast(x * factor) * weight), as models write it. Saves factor and weight."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, dims: list[int], eps: float, dtypes: tuple[torch.dtype, ...]
    ) -> Tensor:
        inner, middle, outer = dtypes
        wide = x.to(inner)
        factor = torch.rsqrt(wide.pow(2).mean(dims, keepdim=True) + eps)
        normed = (wide * factor).to(middle)
        product = torch.promote_types(middle, weight.dtype)
        ctx.save_for_backward(torch.where(all_zero(wide, dims), 0.0, factor), weight)
        ctx.dtypes = (product, middle, inner, x.dtype)
        return (normed.mul_(weight) if product == middle else normed * weight).to(outer)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        factor, weight = ctx.saved_tensors
        product, middle, inner, outer = ctx.dtypes
        if is_batched(gradients[0]) and len(set(ctx.dtypes)) == 1:
            return gradients[0] * (weight * factor), None, None, None, None
        weighted = (gradients[0].to(product) * weight).to(middle).to(inner)
        return times(weighted, factor).to(outer), None, None, None, None


@define(
    "weighted_rms_norm(Tensor self, Tensor weight, int[] dims, float eps, *, ScalarType? inner=None, "
    "ScalarType? middle=None, ScalarType? outer=None) -> Tensor",
    casts=in_float32,
)
def weighted_rms_norm(
    self: Tensor,
    weight: Tensor,
    dims: list[int],
    eps: float,
    *,
    inner: torch.dtype | None = None,
    middle: torch.dtype | None = None,
    outer: torch.dtype | None = None,
) -> Tensor:
    """weight * x * rsqrt(mean(x^2, dims) + eps) with factor and weight held constant: R_in = R_out (AttnLRP prop. 3.4, eq.
    8). The norm is computed in dtype `inner`, cast to `middle`, and the product to `outer`. Saves the factor."""
    inner = inner or self.dtype
    middle = middle or inner
    outer = outer or torch.promote_types(middle, weight.dtype)
    out: Tensor = WeightedRmsNorm.apply(self, weight.detach(), dims, eps, (inner, middle, outer))  # type: ignore[no-untyped-call]
    return out


def _silu_ratio_times(g: Tensor, a: Tensor) -> Tensor:
    """g * sigmoid(a) in one pass: the gradient of softplus is its sigmoid (exact to rounding above 40)."""
    through: Tensor = torch.ops.aten.softplus_backward.default(g, a, 1.0, 40.0)
    return through


@dataclass(frozen=True, slots=True)
class Gate:
    """An activation that `gated` computes: its value, and g times its ratio, in one pass where torch has a kernel for it.
    `approximate` is that of GELU."""

    value: Callable[[Tensor], Tensor]
    ratio_times: Callable[[Tensor, Tensor], Tensor]
    approximate: str | None = None


def _gelu(approximate: str) -> Gate:
    gelu = BY_NAME["gelu"]
    return Gate(
        lambda a: gelu.value(a, approximate=approximate), lambda g, a: g * gelu.factor(a, approximate), approximate
    )


GATES = {
    "silu": Gate(BY_NAME["silu"].value, _silu_ratio_times),
    "gelu": _gelu("none"),
    "gelu_tanh": _gelu("tanh"),
}
"""The kinds of `gated`."""


class Gated(RuleFunction):
    """y = f(a) * b; with h = share * g * f(a)/a, the backward is h * b to a and h * a to b. Saves a and b."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, kind: str, share: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.kind, ctx.share = kind, share
        return GATES[kind].value(a).mul_(b)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        a, b = ctx.saved_tensors
        if is_batched(gradients[0]):
            ratio = GATES[ctx.kind].ratio_times(torch.full_like(a, ctx.share), a)
            return gradients[0] * (ratio * b), gradients[0] * (ratio * a), None, None
        through = GATES[ctx.kind].ratio_times(gradients[0], a)
        if ctx.share != 1.0:
            through = times(through, ctx.share)
        to_a = through * b
        return to_a, times(through, a), None, None


@define("gated(Tensor gate, Tensor up, str kind, float share=0.5) -> Tensor", casts=widest)
def gated(gate: Tensor, up: Tensor, kind: str, share: float = 0.5) -> Tensor:
    """f(gate) * up for f one of silu, gelu, gelu_tanh, both carrying: half to each factor, and R_in = R_out through f
    (AttnLRP prop. 3.2, eq. 9). Saves gate and up."""
    y: Tensor = Gated.apply(gate, up, kind, share)  # type: ignore[no-untyped-call]
    return y


class Rotate(RuleFunction):
    """(x1, x2) -> (x1 cos1 - x2 sin1, x2 cos2 + x1 sin2): linear, with its transpose for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        out = x * cos
        out[..., :half].sub_(x[..., half:] * sin[..., :half])
        out[..., half:].add_(x[..., :half] * sin[..., half:])
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        g, half = gradients[0], gradients[0].shape[-1] // 2
        if not overwrites(g):
            first = g[..., :half] * cos[..., :half] + g[..., half:] * sin[..., half:]
            second = g[..., half:] * cos[..., half:] - g[..., :half] * sin[..., :half]
            return torch.cat((first, second), -1), None, None
        out = g * cos
        out[..., :half].addcmul_(g[..., half:], sin[..., half:])
        out[..., half:].addcmul_(g[..., :half], sin[..., :half], value=-1)
        return out, None, None


@define("rotate(Tensor self, Tensor cos, Tensor sin) -> Tensor", casts=widest)
def rotate(self: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + cat(-x2, x1) sin, the rotary position embedding of x = cat(x1, x2): linear in x (AttnLRP eq. 8). Saves cos
    and sin, which all layers share, and makes no rotated copy of x."""
    y: Tensor = Rotate.apply(self, cos.detach(), sin.detach())  # type: ignore[no-untyped-call]
    return y


class Linears(RuleFunction):
    """Linear maps of one input; the matrix products of the backward add up, each times its share."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shares: list[float], weights: list[Tensor], biases: list[Tensor | None], sparse: bool
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*weights)
        ctx.shape, ctx.shares, ctx.sparse = x.shape, shares, sparse
        ctx.set_materialize_grads(False)
        return tuple(F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        total: Tensor | None = None
        for gradient, weight, share in zip(gradients, ctx.saved_tensors, ctx.shares, strict=True):
            if gradient is not None:
                total = _plus_product(total, gradient.reshape(-1, weight.shape[0]), weight, share, ctx.sparse)
        return None if total is None else total.reshape(ctx.shape), None, None, None, None


def _plus_product(total: Tensor | None, g: Tensor, weight: Tensor, share: float, sparse: bool) -> Tensor:
    """total + share * g @ weight."""
    if is_batched(g):
        product = torch.mm(g, weight if share == 1.0 else share * weight)
        return product if total is None else total + product
    if sparse or (takes_onednn(weight) and not torch.is_grad_enabled()):
        product = times_weight(g, weight, sparse)
        if total is None:
            return product if share == 1.0 else times(product, share)
        return total.add_(product, alpha=share) if overwrites(total) else total.add(product, alpha=share)
    if total is not None:
        return total.addmm_(g, weight, alpha=share) if overwrites(total) else torch.addmm(total, g, weight, alpha=share)
    if share == 1.0:
        return g @ weight
    return torch.addmm(g.new_zeros(()), g, weight, beta=0, alpha=share)


@define(
    "linears(Tensor input, Tensor[] weights, Tensor?[] biases, float[] shares, bool sparse=False) -> Tensor[]",
    casts=narrowed,
)
def linears(
    input: Tensor, weights: list[Tensor], biases: list[Tensor | None], shares: list[float], sparse: bool = False
) -> list[Tensor]:
    """y_k = x W_k^T + b_k with constant W_k, b_k; R_i = sum_k sum_j x_i W_kji R_kj / z_kj (AttnLRP eq. 8). `sparse` says
    that many positions may have a gradient of 0; they are not multiplied."""
    held = [None if bias is None else bias.detach() for bias in biases]
    maps = [weight.detach() for weight in weights]
    return list(Linears.apply(input, shares, maps, held, sparse))  # type: ignore[no-untyped-call]


@define("share(Tensor self, float share) -> Tensor")
def share(self: Tensor, share: float) -> Tensor:
    """y = x; the gradient is multiplied by the share."""
    return times_share(self, share)


@define("grouped_sdpa" + SDPA_SCHEMA.replace(") -> Tensor", SHARES + TEMPERATURE + ") -> Tensor"), casts=narrowed)
def grouped_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    query_share: float = 0.25,
    key_share: float = 0.25,
    value_share: float = 0.5,
    mask_share: float = 0.5,
    temperature: float = 1.0,
) -> Tensor:
    """`sdpa` with fewer heads of keys and values [batch, groups, tokens, width] than queries, which are repeated only where
    torch's fused attention would not take them as they are."""
    if attn_mask is not None and query.device.type != "cpu":
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    out: Tensor = sdpa(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=query.shape[1] != key.shape[1],
        query_share=query_share, key_share=key_share, value_share=value_share, mask_share=mask_share,
        temperature=temperature,
    )  # fmt: skip
    return out


def simplest_mask(mask: Tensor) -> tuple[Tensor | None, bool]:
    """(mask, is_causal) for `sdpa`: no mask where a boolean mask hides nothing, and (None, True) where it is the causal
    one, as transformers does for inputs without padding; torch's fused attention then skips what is hidden.

    Read from the values, so only in a plain call: a traced or compiled call uses the mask as it is.
    """
    if mask.dtype is not torch.bool or not has_values(mask):
        return mask, False
    queries, keys = mask.shape[-2:]
    if bool(mask.all()):
        return None, False
    first = mask[(0,) * (mask.dim() - 2)]
    causal = queries == keys and torch.equal(mask, torch.ones_like(first).tril().expand_as(mask))
    return (None, True) if causal else (mask, False)
