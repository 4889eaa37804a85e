"""Linear maps, products of two relevance-carrying operands, softmax and attention, in gradient form.

Gradient form: the backward of each op passes a modified gradient g, and relevance is value * g. A linear map has its
native gradient (AttnLRP eq. 8 at epsilon 0); a product of two carrying operands gives half to each (prop. 3.3 and 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.torch_internals import softmax_backward
from lxt_fx.ops.dtype_limits import mask_limit
from lxt_fx.ops.library import RuleFunction, define, has_values, is_batched, narrowed
from lxt_fx.ops.temperature import attention_at, softmax_with

SDPA_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, bool is_causal=False, *, "
    "float? scale=None, bool enable_gqa=False) -> Tensor"
)

SHARES = ", float query_share=0.25, float key_share=0.25, float value_share=0.5, float mask_share=0.5"
TEMPERATURE = ", float temperature=1.0"
OF_TWO = ", *, float self_share=0.5, float other_share=0.5"


def has_scores(scores: Tensor, dim: int) -> Tensor:
    """Whether any score along `dim` (which stays, with size 1) is not masked."""
    if scores.shape[dim] == 0:  # no key at all: there is no largest score
        return scores.sum(dim, keepdim=True) != 0
    return scores.amax(dim, keepdim=True) > mask_limit(scores.dtype)


class Softmax(RuleFunction):
    """s = softmax(x); the native gradient, but 0 where all scores along `dim` are masked: the weights there (equal ones, or
    NaN) do not depend on the scores. Saves s, and where all scores are masked if that happens at all; on a GPU it saves
    that always, since asking would wait for the device."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int, dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
        return torch.softmax(x, dim, dtype), has_scores(x, dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, torch.dtype | None], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        weights, seen = output
        ctx.all_seen = has_values(seen) and not seen.is_cuda and bool(seen.all())
        ctx.save_for_backward(weights, None if ctx.all_seen else seen)
        ctx.dim, ctx.dtype = inputs[1], inputs[0].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        s, seen = ctx.saved_tensors
        if is_batched(gradients[0]):
            s = s if ctx.all_seen else torch.where(seen, s, 0)
            offset = (gradients[0] * s).sum(ctx.dim, keepdim=True)
            return (s * (gradients[0] - offset)).to(ctx.dtype), None, None
        native = softmax_backward(gradients[0], s, ctx.dim)
        return (native if ctx.all_seen else torch.where(seen, native, 0)).to(ctx.dtype), None, None


class ScaleGradient(RuleFunction):
    """y = x; the gradient is multiplied by a constant."""

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def share(x: Tensor, factor: float) -> Tensor:
    """y = x; the gradient is multiplied by the factor."""
    if factor == 1.0:
        return x
    shared: Tensor = ScaleGradient.apply(x, factor)  # type: ignore[no-untyped-call]
    return shared


class ScaleByEpsilon(RuleFunction):
    """y = z; the gradient is multiplied by z / (z + epsilon sign(z)) = |z| / (|z| + epsilon)."""

    @staticmethod
    def forward(z: Tensor, epsilon: float) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.epsilon = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        size = z.abs()
        return gradients[0] * (size / (size + max(ctx.epsilon, torch.finfo(z.dtype).tiny))), None


@define("epsilon(Tensor self, float epsilon) -> Tensor")
def epsilon(self: Tensor, epsilon: float) -> Tensor:
    """y = z; what reaches z is multiplied by z / (z + epsilon sign(z)): the epsilon of AttnLRP eq. 8, without the map."""
    stable: Tensor = ScaleByEpsilon.apply(self, epsilon)  # type: ignore[no-untyped-call]
    return stable


@define("hold(Tensor self) -> Tensor")
def hold(self: Tensor) -> Tensor:
    """y = x, no relevance passes: the value is held constant from here on."""
    return self.detach()


@define("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", casts=narrowed)
def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b with constant W, b; R_i = sum_j x_i W_ji R_j / z_j (AttnLRP eq. 8); the bias absorbs its share."""
    return F.linear(input, weight.detach(), None if bias is None else bias.detach())


@define("matmul(Tensor self, Tensor other" + OF_TWO + ") -> Tensor", casts=narrowed)
def matmul(self: Tensor, other: Tensor, *, self_share: float = 0.5, other_share: float = 0.5) -> Tensor:
    """y = a @ b, both operands carry; half of the relevance to each (AttnLRP prop. 3.3), or its share."""
    return torch.matmul(share(self, self_share), share(other, other_share))


@define("matmul_held(Tensor self, Tensor other) -> Tensor", casts=narrowed)
def matmul_held(self: Tensor, other: Tensor) -> Tensor:
    """y = a @ b where one operand is a constant: a linear map of the other (AttnLRP eq. 8)."""
    return torch.matmul(self, other)


@define("einsum(str equation, Tensor[] tensors, *, float[]? shares=None) -> Tensor", casts=narrowed)
def einsum(equation: str, tensors: list[Tensor], *, shares: list[float] | None = None) -> Tensor:
    """A contraction of n carrying operands; each gets 1/n of the relevance (AttnLRP prop. 3.3 for n = 2), or its share."""
    each = equal_shares(tensors) if shares is None else shares
    return torch.einsum(equation, *map(share, tensors, each))


def equal_shares(operands: Sequence[Any]) -> list[float]:
    """1/n for each of n operands."""
    return [1.0 / len(operands)] * len(operands)


@define("mul(Tensor self, Tensor other" + OF_TWO + ") -> Tensor")
def mul(self: Tensor, other: Tensor, *, self_share: float = 0.5, other_share: float = 0.5) -> Tensor:
    """y = a * b: half of the relevance to each (uniform rule, AttnLRP prop. 3.2, eq. 7), or its share; a constant factor
    absorbs its own."""
    if self_share == other_share:
        return share(torch.mul(self, other), self_share)
    return torch.mul(share(self, self_share), share(other, other_share))


@define("div(Tensor self, Tensor other) -> Tensor")
def div(self: Tensor, other: Tensor) -> Tensor:
    """y = a / b, both operands carry: a product of a and 1/b, and identity through 1/b, so half of the relevance to
    each. The native gradient of b has the opposite sign."""
    return torch.div(share(self, 0.5), share(other, -0.5))


@define("softmax(Tensor self, int dim, ScalarType? dtype=None, *" + TEMPERATURE + ") -> Tensor")
def softmax(self: Tensor, dim: int, dtype: torch.dtype | None = None, *, temperature: float = 1.0) -> Tensor:
    """s = softmax(x); R_i = x_i (R_i - s_i sum_j R_j) (AttnLRP prop. 3.1), which is x times the native gradient. R_i = 0
    at a masked score, so nothing passes where all scores are masked. `temperature` is that of the backward (GIM, Edin et
    al. 2025): R_i = x_i s_T,i (g_i - sum_j s_T,j g_j) with s_T = softmax(x / T) and g_j = R_j / s_j.

    The lowest float64 as a mask would become -inf in float32, and NaN where all scores are masked: it is clamped first.
    """
    if self.dtype is torch.float64 and dtype is not None and dtype is not self.dtype:
        self = self.clamp(min=torch.finfo(dtype).min)
    if temperature != 1.0:
        return softmax_with(self, dim, dtype, temperature)
    weights: Tensor = Softmax.apply(self, dim, dtype)[0]  # type: ignore[no-untyped-call]
    return weights


@define("sdpa" + SDPA_SCHEMA.replace(") -> Tensor", SHARES + TEMPERATURE + ") -> Tensor"), casts=narrowed)
def sdpa(
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
    """softmax(q k^T + mask) v. With q, k and v carrying: 1/2 to v and 1/2 to the weights, of which 1/2 each to q and k
    (AttnLRP prop. 3.3 twice, prop. 3.1 between). The shares say so; they are larger where an operand is constant. At
    another `temperature` than 1 the softmax passes relevance as that of `softmax` does."""
    mask = attn_mask if attn_mask is None or not attn_mask.is_floating_point() else share(attn_mask, mask_share)
    given = share(query, query_share), share(key, key_share), share(value, value_share), mask
    if temperature == 1.0:
        attended = F.scaled_dot_product_attention(*given, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    else:
        attended = attention_at(*given, dropout_p, is_causal, scale, enable_gqa, temperature)
    return hold_masked_queries(attended, attn_mask)


def hold_masked_queries(attended: Tensor, mask: Tensor | None) -> Tensor:
    """`attended`, held constant at queries whose additive mask hides every key, so that nothing passes: they attend to
    nothing, and torch's fused attention on CPU would multiply their gradient by the number of keys (2.13)."""
    if mask is None or not mask.is_floating_point():
        return attended  # under a boolean mask such a query gives 0, without a gradient
    seen = has_scores(mask.detach(), -1)
    return torch.where(seen, attended, attended.detach())


@define("sdpa_held" + SDPA_SCHEMA, casts=narrowed)
def sdpa_held(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T) v with the weights held constant: a linear map of v (CP-LRP, Ali et al. 2022)."""
    mask = attn_mask if attn_mask is None else attn_mask.detach()
    attended = F.scaled_dot_product_attention(
        query.detach(), key.detach(), value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return hold_masked_queries(attended, mask)


LINEAR_MAPS = frozenset({linear, matmul, matmul_held, einsum})
"""Ops by eq. 8; where several operands carry, each gets a share."""

HALVED = frozenset({mul, div})
"""Ops that give half of the relevance, or its share, to each of two operands."""

ATTENTIONS = frozenset({sdpa, sdpa_held})
HOLDS = {linear: frozenset({"weight", "bias"})}
"""The arguments of an op that get no gradient."""
