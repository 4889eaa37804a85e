"""Explicit form: what flows back is relevance itself, op by op as the papers write it. Slow: the proof of the fast form.

A linear map is put between `enter` and `leave`, so that its own transpose gives eq. 8 of AttnLRP: leave divides what comes
back by z + epsilon sign(z), the op's gradient applies the transpose, enter multiplies by the input and by the operand's
share. An op that is no linear map has an explicit op of its own. Start with `logit.backward(logit)`; `leaf.grad` is the
relevance.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.ops import products
from lxt_fx.ops.dtype_limits import mask_limit
from lxt_fx.ops.library import RuleFunction, define, in_float32
from lxt_fx.ops.products import SDPA_SCHEMA, SHARES, TEMPERATURE, equal_shares, hold_masked_queries
from lxt_fx.ops.temperature import softmax_at, through_softmax


class Enter(RuleFunction):
    """y = x; the backward takes the gradient g of a linear map to the relevance share * x * g."""

    @staticmethod
    def forward(x: Tensor, share: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.share = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        if x.is_complex():
            pairs = torch.view_as_real(x.resolve_conj()) * torch.view_as_real(gradients[0].resolve_conj())
            return torch.view_as_complex(pairs) * ctx.share, None
        return torch.where(gradients[0] == 0, 0, x * gradients[0]) * ctx.share, None


class Leave(RuleFunction):
    """y = z; the backward takes the relevance R to the gradient R / (z + epsilon sign(z)), and to 0 where both are 0."""

    @staticmethod
    def forward(z: Tensor, epsilon: float) -> Tensor:
        return z.view_as(z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.epsilon = inputs[1]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        if z.is_complex():
            flowing, values = (torch.view_as_real(x.resolve_conj()) for x in (relevance[0], z))
            return torch.view_as_complex(divided(flowing, values, ctx.epsilon)), None
        return divided(relevance[0], z, ctx.epsilon), None


def divided(relevance: Tensor, z: Tensor, epsilon: float) -> Tensor:
    """R / (z + epsilon sign(z)) with sign(0) = 1; 0 where z is 0 and there is no epsilon. In half precision it saturates
    where it would overflow."""
    stable = z + epsilon * torch.where(z >= 0, 1.0, -1.0).to(z.dtype)
    zero = stable == 0
    largest = torch.finfo(z.dtype).max
    return torch.where(zero, 0, relevance / torch.where(zero, 1, stable)).clamp(-largest, largest)


class Pass(RuleFunction):
    """y = value; the backward gives the operand factor * R: identity rule, or what is left once f(0) has its share."""

    @staticmethod
    def forward(x: Tensor, value: Tensor, intercept: float, epsilon: float) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: Tensor) -> None:
        x, value, ctx.intercept, ctx.epsilon = inputs
        ctx.dtype = x.dtype
        if ctx.intercept != 0:
            ctx.save_for_backward(value)

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.intercept == 0:
            return relevance[0].to(ctx.dtype), None, None, None
        (value,) = ctx.saved_tensors
        passed = (value - ctx.intercept) * divided(relevance[0], value, ctx.epsilon)
        return passed.to(ctx.dtype), None, None, None


class Uniform(RuleFunction):
    """y = value, computed from n carrying operands; the backward gives each its share of the relevance."""

    @staticmethod
    def forward(value: Tensor, shares: list[float], *operands: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.shares, ctx.shapes = inputs[1], [operand.shape for operand in inputs[2:]]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        pairs = zip(ctx.shares, ctx.shapes, strict=True)
        return None, None, *((relevance[0] * share).sum_to_size(shape) for share, shape in pairs)


class Softmax(RuleFunction):
    """s = softmax(x); R_i = x_i (R_i - s_i sum_j R_j), 0 at a masked score. At a temperature T other than 1, s_T stands for
    s in what passes, and what reaches s_j counts as g_j = R_j / s_j, 0 where s_j is 0 to rounding."""

    @staticmethod
    def forward(x: Tensor, dim: int, dtype: torch.dtype | None, temperature: float) -> Tensor:
        return torch.softmax(x, dim, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int, torch.dtype | None, float], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.dim, ctx.temperature = inputs[1], inputs[3]

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, None, None, None]:
        x, s = ctx.saved_tensors
        s = s.nan_to_num(0.0)  # NaN where all scores are masked
        if ctx.temperature == 1.0:
            left = relevance[0] - s * relevance[0].sum(ctx.dim, keepdim=True)
        else:
            left = through_softmax(softmax_at(x, ctx.dim, ctx.temperature), divided(relevance[0], s, 0.0), ctx.dim)
        return torch.where((x <= mask_limit(x.dtype)) | (left == 0), 0, x * left).to(x.dtype), None, None, None


def _enter(x: Tensor, share: float) -> Tensor:
    entered: Tensor = Enter.apply(x, share)  # type: ignore[no-untyped-call]
    return entered


def _leave(z: Tensor, epsilon: float) -> Tensor:
    left: Tensor = Leave.apply(z, epsilon)  # type: ignore[no-untyped-call]
    return left


def _pass(x: Tensor, value: Tensor, intercept: float, epsilon: float) -> Tensor:
    passed: Tensor = Pass.apply(x, value.detach(), intercept, epsilon)  # type: ignore[no-untyped-call]
    return passed


@define("enter(Tensor self, float share=1.0) -> Tensor")
def enter(self: Tensor, share: float = 1.0) -> Tensor:
    """y = x; the gradient g that a linear map gives to x becomes its relevance, share * x * g."""
    return _enter(self, share)


@define("leave(Tensor self, float epsilon) -> Tensor")
def leave(self: Tensor, epsilon: float) -> Tensor:
    """y = z; the relevance R of z becomes what the transposed map is applied to: R / (z + epsilon sign(z))."""
    return _leave(self, epsilon)


@define("as_gradient(Tensor self) -> Tensor")
def as_gradient(self: Tensor) -> Tensor:
    """y = x; what flows back here is a gradient and not relevance: the value may be 0 where its gradient is not (a
    rounding), and R = 0 does not say which gradient that is."""
    return self.view_as(self)


@define("pass_on(Tensor self, Tensor value, float intercept=0.0, float epsilon=0.0) -> Tensor")
def pass_on(self: Tensor, value: Tensor, intercept: float = 0.0, epsilon: float = 0.0) -> Tensor:
    """y = f(x), given as a tensor; R_in = R_out (AttnLRP eq. 9), or R_out (y - f(0)) / y where f(0) is not 0."""
    return _pass(self, value, intercept, epsilon)


@define("share_out(Tensor[] operands, Tensor value, float[]? shares=None) -> Tensor")
def share_out(operands: list[Tensor], value: Tensor, shares: list[float] | None = None) -> Tensor:
    """y of n operands, given as a tensor; each gets R / n (uniform rule, AttnLRP prop. 3.2), or its share."""
    each = equal_shares(operands) if shares is None else shares
    shared: Tensor = Uniform.apply(value.detach(), each, *operands)  # type: ignore[no-untyped-call]
    return shared


@define("softmax_taylor(Tensor self, int dim, ScalarType? dtype=None, *" + TEMPERATURE + ") -> Tensor")
def softmax_taylor(
    self: Tensor, dim: int, dtype: torch.dtype | None = None, *, temperature: float = 1.0
) -> Tensor:
    """s = softmax(x) along `dim`; R_i = x_i (R_i - s_i sum_j R_j) (AttnLRP prop. 3.1), or at a temperature R_i = x_i s_T,i
    (R_i / s_i - sum_j s_T,j R_j / s_j) (GIM)."""
    if self.dtype is torch.float64 and dtype is not None and dtype is not self.dtype:
        self = self.clamp(min=torch.finfo(dtype).min)
    softmax: Tensor = Softmax.apply(self, dim, dtype, temperature)  # type: ignore[no-untyped-call]
    return softmax


@define(
    "layer_norm_linear(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, "
    "*, Tensor value, float epsilon=0.0) -> Tensor",
    casts=in_float32,
)
def layer_norm_linear(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    value: Tensor,
    epsilon: float = 0.0,
) -> Tensor:
    """Layer norm with its standard deviation held: a linear map of x, by eq. 8 (AttnLRP prop. 3.4)."""
    dims = list(range(-len(normalized_shape), 0))
    x = _enter(input, 1.0)
    scaled = (x - x.mean(dims, keepdim=True)) * _held_rstd(input, dims, eps)
    scaled = scaled if weight is None else scaled * weight.detach()
    z = scaled if bias is None else scaled + bias.detach()
    return _pass(_leave(z, epsilon), value, 0.0, 0.0)


@define(
    "group_norm_linear(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05, *, "
    "Tensor value, float epsilon=0.0) -> Tensor",
    casts=in_float32,
)
def group_norm_linear(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    value: Tensor,
    epsilon: float = 0.0,
) -> Tensor:
    """Group norm with its standard deviations held: a linear map of x, by eq. 8 (AttnLRP prop. 3.4)."""
    x = torch.unflatten(_enter(input, 1.0), 1, (num_groups, -1))
    dims = list(range(2, x.dim()))
    rstd = _held_rstd(torch.unflatten(input, 1, (num_groups, -1)), dims, eps)
    scaled = ((x - x.mean(dims, keepdim=True)) * rstd).flatten(1, 2)
    channels = (-1, *[1] * (input.dim() - 2))
    scaled = scaled if weight is None else scaled * weight.detach().reshape(channels)
    z = scaled if bias is None else scaled + bias.detach().reshape(channels)
    return _pass(_leave(z, epsilon), value, 0.0, 0.0)


def _held_rstd(x: Tensor, dims: list[int], eps: float) -> Tensor:
    """1 / sqrt(variance + eps) as a constant; 0 where all elements are equal, since there is no relevance to pass on."""
    variance = x.detach().var(dims, correction=0, keepdim=True)
    flat = variance <= 16 * torch.finfo(x.dtype).eps * eps
    return torch.where(flat, 0, torch.rsqrt(variance + eps))


@define(
    "sdpa_steps"
    + SDPA_SCHEMA.replace(") -> Tensor", SHARES + TEMPERATURE + ", Tensor value_of, float epsilon=0.0) -> Tensor"),
    casts=in_float32,
)
def sdpa_steps(
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
    value_of: Tensor,
    epsilon: float = 0.0,
) -> Tensor:
    """Attention step by step: q k^T by eq. 8 with a share each, its scale, the sum with the mask by eq. 8, softmax by prop.
    3.1, then weights and values by eq. 8 with a share each (AttnLRP prop. 3.3). Its value is that of the fused op."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights_share = mask_share
    of_scores = 1 / weights_share if weights_share else 0.0  # nothing reaches the scores, nothing is divided
    entered = _enter(query, query_share * of_scores), _enter(key, key_share * of_scores)
    scores = _leave(entered[0] @ entered[1].mT, epsilon)
    scores = _pass(scores, scores * scale, 0.0, 0.0)
    mask = _mask(attn_mask, is_causal, scores)
    if mask is not None:
        added = _enter(mask, 1.0) if mask.requires_grad else mask
        scores = _leave(_enter(scores, 1.0) + added, epsilon)
    weights: Tensor = Softmax.apply(scores, -1, None, temperature)  # type: ignore[no-untyped-call]
    weights = weights.nan_to_num(0.0)
    z = _leave(_enter(weights, weights_share) @ _enter(value, value_share), epsilon)
    return hold_masked_queries(_pass(z, value_of, 0.0, 0.0), attn_mask)


def _mask(mask: Tensor | None, is_causal: bool, scores: Tensor) -> Tensor | None:
    """What is added to the scores."""
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is None or mask.dtype is not torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=scores.dtype, device=scores.device).masked_fill(~mask, -math.inf)


@define(
    "sdpa_held_steps" + SDPA_SCHEMA.replace(") -> Tensor", ", Tensor value_of, float epsilon=0.0) -> Tensor"),
    casts=in_float32,
)
def sdpa_held_steps(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    value_of: Tensor,
    epsilon: float = 0.0,
) -> Tensor:
    """Attention with its weights held constant: a linear map of the values, by eq. 8 (CP-LRP)."""
    held, entered = (query.detach(), key.detach()), _enter(value, 1.0)
    z = F.scaled_dot_product_attention(*held, entered, attn_mask, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    return hold_masked_queries(_pass(_leave(z, epsilon), value_of, 0.0, 0.0), attn_mask)


EQUATIONS = {
    products.softmax: softmax_taylor,
    products.sdpa: sdpa_steps,
    products.sdpa_held: sdpa_held_steps,
}
"""The op of the explicit form of each op in products.py that is no linear map and no product of two factors."""
