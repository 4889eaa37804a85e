"""Normalisations in gradient form: the statistic is held constant, mean subtraction stays linear (AttnLRP prop. 3.4).

y = (x - mean(x)) * s with s held, so R_in = R_out up to what the bias absorbs. Each op saves s (and the weight) for the
backward and never x. A vector without variation (all zero, or all equal under mean subtraction) has no relevance to pass
on, and its factor is set to 0: 1/sqrt(eps) would overflow from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.torch_internals import OpOverload, aten_op
from lxt_fx.ops import explicit
from lxt_fx.ops.library import RuleFunction, define, in_float32, in_float32_off_cpu, overwrites, times


def all_zero(x: Tensor, dims: list[int]) -> Tensor:
    """Whether every element along the dims is 0; `dims` stay with size 1. Not by the mean square: in float16 the square of
    1e-4 is 0 too. By the extremes, which torch finds ten times as fast as it compares each element (CPU, 2.13)."""
    return torch.logical_or(x.amax(dims, keepdim=True), x.amin(dims, keepdim=True)).logical_not()


class RmsNorm(RuleFunction):
    """x * rsqrt(mean(x^2, dims) + eps); the backward is g times the held factor. Saves the factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: list[int], eps: float) -> Tensor:
        factor = torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + eps)
        ctx.save_for_backward(torch.where(all_zero(x, dims), 0.0, factor))
        return x * factor

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (factor,) = ctx.saved_tensors
        return gradients[0] * factor, None, None


class FusedRmsNorm(RuleFunction):
    """torch's own RMS norm over the last dims, with its weight; the backward is g * w times the held factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, eps: float | None) -> Tensor:
        out = torch.rms_norm(x, shape, weight, eps)
        dims, wide = list(range(-len(shape), 0)), torch.promote_types(x.dtype, torch.float32)
        small = torch.finfo(x.dtype).eps if eps is None else eps
        factor = torch.rsqrt(x.to(wide).pow(2).mean(dims, keepdim=True) + small).to(x.dtype)
        ctx.save_for_backward(torch.where(all_zero(x, dims), 0.0, factor), weight)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        factor, weight = ctx.saved_tensors
        return (gradients[0] if weight is None else gradients[0] * weight) * factor, None, None, None


class LayerNorm(RuleFunction):
    """(x - mean) * rstd * w + b over the last dims; the backward holds rstd: t - mean(t) with t = g * w * rstd."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shape: list[int], weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        out, _, rstd = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(rstd, weight)
        ctx.dims, ctx.eps = list(range(-len(shape), 0)), eps
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        rstd, weight = ctx.saved_tensors
        g, rstd = gradients[0], _unless_flat(rstd, ctx.eps)
        through = _centred(g, ctx.dims) if weight is None else _centred_fresh(g * weight, ctx.dims)
        return times(through, rstd).to(g.dtype), None, None, None, None


class GroupNorm(RuleFunction):
    """Group norm of [batch, channels, *]; the backward holds rstd of each group."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        batch, channels, inner = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        out, _, rstd = torch.native_group_norm(x.contiguous(), weight, bias, batch, channels, inner, groups, eps)
        ctx.save_for_backward(rstd, weight)
        ctx.groups, ctx.eps = groups, eps
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        rstd, weight = ctx.saved_tensors
        g, rstd = gradients[0], _unless_flat(rstd, ctx.eps).unsqueeze(-1)
        scaled = g if weight is None else g * weight.reshape(-1, *[1] * (g.dim() - 2))
        grouped = scaled.reshape(g.shape[0], ctx.groups, -1)
        through = _centred(grouped, [-1]) if weight is None else _centred_fresh(grouped, [-1])
        return times(through, rstd).reshape(g.shape).to(g.dtype), None, None, None, None


def _centred(g: Tensor, dims: list[int]) -> Tensor:
    """g - mean(g). A mean rounded to half precision would be off by the same amount at every element."""
    wide = torch.float32 if g.dtype in (torch.float16, torch.bfloat16) else g.dtype
    count = math.prod(g.shape[dim] for dim in dims)
    return g - g.sum(dims, keepdim=True, dtype=wide) / count  # `mean` does not batch


def _centred_fresh(g: Tensor, dims: list[int]) -> Tensor:
    """g - mean(g), where nobody else reads `g` any more."""
    if g.dtype in (torch.float16, torch.bfloat16) or not overwrites(g):
        return _centred(g, dims)
    return g.sub_(g.sum(dims, keepdim=True), alpha=1 / math.prod(g.shape[dim] for dim in dims))


def _unless_flat(rstd: Tensor, eps: float) -> Tensor:
    """1 / sqrt(variance + eps), and 0 where the variance is 0 to rounding."""
    if eps == 0:
        return rstd
    largest = (1 - 8 * torch.finfo(rstd.dtype).eps) / math.sqrt(eps)
    below: Tensor = torch.ops.aten.threshold_backward.default(rstd, -rstd, -largest)  # half the time of `where`
    return below


@define("rms_norm(Tensor self, int[] dims, float eps) -> Tensor", casts=in_float32)
def rms_norm(self: Tensor, dims: list[int], eps: float) -> Tensor:
    """x * rsqrt(mean(x^2, dims) + eps), the factor held constant: R_in = R_out (AttnLRP prop. 3.4). Saves the factor."""
    out: Tensor = RmsNorm.apply(self, dims, eps)  # type: ignore[no-untyped-call]
    return out


@define("rms_norm_fused(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, float? eps=None) -> Tensor")
def rms_norm_fused(
    input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """torch.rms_norm with the root mean square held constant: R_in = R_out (AttnLRP prop. 3.4). Saves factor and weight."""
    out: Tensor = FusedRmsNorm.apply(input, normalized_shape, weight, eps)  # type: ignore[no-untyped-call]
    return out


@define(
    "layer_norm(Tensor input, SymInt[] normalized_shape, Tensor? weight=None, Tensor? bias=None, float eps=1e-05) -> Tensor"
)
def layer_norm(
    input: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer norm with the standard deviation held constant (AttnLRP prop. 3.4): R_in = R_out less what the bias absorbs."""
    out: Tensor = LayerNorm.apply(input, normalized_shape, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


@define(
    "group_norm(Tensor input, int num_groups, Tensor? weight=None, Tensor? bias=None, float eps=1e-05) -> Tensor",
    casts=in_float32_off_cpu,
)
def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Group norm with the standard deviation of each group held constant (AttnLRP prop. 3.4)."""
    out: Tensor = GroupNorm.apply(input, num_groups, weight, bias, eps)  # type: ignore[no-untyped-call]
    return out


@define("normalize_mul(Tensor self, Tensor statistic) -> Tensor")
def normalize_mul(self: Tensor, statistic: Tensor) -> Tensor:
    """x * s, the statistic s of x held constant: R_in = R_out (AttnLRP prop. 3.4). Saves s."""
    return torch.mul(self, statistic.detach())


@define("normalize_div(Tensor self, Tensor statistic) -> Tensor")
def normalize_div(self: Tensor, statistic: Tensor) -> Tensor:
    """x / s, the statistic s of x held constant: R_in = R_out (AttnLRP prop. 3.4). Saves s."""
    return torch.div(self, statistic.detach())


@dataclass(frozen=True, slots=True)
class Norm:
    """The facts about the op of a norm, whatever the table.

    `of` is the ATen op that it replaces. `equation` is its op in the explicit form; without one, R_in = R_out. `holds` are
    the arguments that get no gradient. `inside` says that the op computes its statistic, `last_dims` that it normalises
    over the last dims, so that positions in earlier dims do not mix. `functions` are the Python functions that call it.
    """

    op: OpOverload
    of: str = ""
    equation: OpOverload | None = None
    holds: frozenset[str] = frozenset()
    inside: bool = True
    last_dims: bool = False
    functions: tuple[Callable[..., Any], ...] = ()


_WEIGHT, _WEIGHT_AND_BIAS = frozenset({"weight"}), frozenset({"weight", "bias"})

NORMS = (
    Norm(rms_norm),
    Norm(rms_norm_fused, "rms_norm", None, _WEIGHT, last_dims=True, functions=(F.rms_norm,)),
    Norm(
        layer_norm, "layer_norm", explicit.layer_norm_linear, _WEIGHT_AND_BIAS, last_dims=True, functions=(F.layer_norm,)
    ),
    Norm(group_norm, "group_norm", explicit.group_norm_linear, _WEIGHT_AND_BIAS, functions=(F.group_norm,)),
    Norm(normalize_mul, inside=False),
    Norm(normalize_div, inside=False),
)  # fmt: skip
OF: Mapping[Any, Norm] = {op: norm for norm in NORMS if (op := aten_op(norm.of)) is not None}
"""The norms that are one ATen op, by that op."""

LAST_DIMS = frozenset(op for op, norm in OF.items() if norm.last_dims)
"""Norms over the last dims, which are one op."""
