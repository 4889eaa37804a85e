"""Elementwise nonlinearities y = f(x) in gradient form: R_in = R_out, so the backward is g * y / x (AttnLRP eq. 9).

Each ratio y/x is a closed form with its limit at 0, finite in float16 and bfloat16. Where f(0) is not 0 (sigmoid, exp,
softplus) the constant f(0) absorbs its share like a bias, and the ratio is (f(x) - f(0)) / x: bounded, where f(x)/x is not.
An op keeps x and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.ops.library import define

Pointwise = Callable[[Tensor], Tensor]


class Activation(torch.autograd.Function):
    """y = value(x); the backward is g * ratio(x)."""

    @staticmethod
    def forward(x: Tensor, value: Pointwise, ratio: Pointwise) -> Tensor:
        return value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.ratio = inputs[2]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.ratio(x), None, None


class Identity(torch.autograd.Function):
    """y computed elsewhere from x; the backward of x is g * (y - intercept) / x, and g * slope at x = 0."""

    @staticmethod
    def forward(x: Tensor, y: Tensor, intercept: float, slope: float) -> tuple[Tensor, Tensor]:
        ratio = _over(y, x, slope) if intercept == 0 else _over(y - intercept, x, slope, _near_zero(x, y))
        return y.view_as(y), ratio

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (ratio,) = ctx.saved_tensors
        return gradients[0] * ratio, None, None, None


def _near_zero(x: Tensor, y: Tensor) -> float:
    """Below this |x| the difference y - intercept has lost its digits, and the slope at 0 is nearer."""
    return math.sqrt(max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps))


def _over(numerator: Tensor, x: Tensor, limit: float, radius: float | None = None) -> Tensor:
    """numerator / x, and `limit` where |x| < radius: by default at 0 and at subnormal x, whose quotient has no digits."""
    small = x.abs() < (torch.finfo(x.dtype).tiny if radius is None else radius)
    return torch.where(small, torch.full_like(x, limit), numerator / torch.where(small, torch.ones_like(x), x))


def _activation(x: Tensor, value: Pointwise, ratio: Pointwise) -> Tensor:
    y: Tensor = Activation.apply(x, value, ratio)  # type: ignore[no-untyped-call]
    return y


def _in_float32(x: Tensor) -> Tensor:
    """float16 and bfloat16 are too coarse for a function that multiplies the rounding error of its argument."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _gelu_tanh_ratio(x: Tensor) -> Tensor:
    """(1 + tanh(u)) / 2 is sigmoid(2u), which does not cancel where tanh(u) is near -1."""
    wide = _in_float32(x)
    slope = math.sqrt(8 / math.pi)
    return torch.sigmoid(wide * (slope + 0.044715 * slope * wide * wide))


def _gelu_ratio(x: Tensor) -> Tensor:
    return 0.5 * torch.erfc(_in_float32(x) * -math.sqrt(0.5))


def gelu_ratio(x: Tensor, approximate: str) -> Tensor:
    """GELU(x) / x."""
    return _gelu_tanh_ratio(x) if approximate == "tanh" else _gelu_ratio(x)


def _erf_ratio(x: Tensor) -> Tensor:
    """erf(x) / x, by its series near 0: torch's vectorised erf has an absolute error of 1e-7 there."""
    small = x.abs() < torch.finfo(x.dtype).eps ** 0.25
    quotient = torch.erf(x) / torch.where(small, torch.ones_like(x), x)
    return torch.where(small, 2 / math.sqrt(math.pi) * (1 - x * x / 3), quotient)


def _softplus_ratio(x: Tensor) -> Tensor:
    """(log(1 + e^x) - log 2) / x without overflow: both branches are log1p(expm1(-|x|) / 2), plus x where x > 0."""
    shifted = torch.log1p(torch.expm1(-x.abs()) / 2)
    return _over(torch.where(x > 0, x + shifted, shifted), x, 0.5)


def _log_ratio(x: Tensor) -> Tensor:
    positive = x > 0
    return torch.where(positive, torch.log(x) / torch.where(positive, x, 1.0), 0.0).clamp(min=torch.finfo(x.dtype).min)


def _clamp_ratio(x: Tensor, low: float, high: float) -> Tensor:
    """clamp(x) / x where 0 lies in [low, high]: at most 1; at 0 its native gradient, which is 0 where a bound is 0."""
    zero = x == 0
    return torch.where(zero, float(low < 0 < high), torch.clamp(x, low, high) / torch.where(zero, 1.0, x))


@define("identity(Tensor self, Tensor value, float intercept, float slope) -> Tensor")
def identity(self: Tensor, value: Tensor, intercept: float, slope: float) -> Tensor:
    """y = f(x), given as a tensor computed from x by any elementwise subgraph; `intercept` is f(0), `slope` f'(0).
    R_in = R_out less what f(0) takes (AttnLRP eq. 9). Keeps the ratio."""
    y: Tensor = Identity.apply(self, value.detach(), intercept, slope)[0]  # type: ignore[no-untyped-call]
    return y


@define("silu(Tensor self) -> Tensor")
def silu(self: Tensor) -> Tensor:
    """SiLU; y/x = sigmoid(x) (AttnLRP eq. 9)."""
    return _activation(self, F.silu, torch.sigmoid)


@define("gelu(Tensor self, *, str approximate='none') -> Tensor")
def gelu(self: Tensor, *, approximate: str = "none") -> Tensor:
    """GELU; y/x = Phi(x), or its tanh approximation (AttnLRP eq. 9)."""
    return _activation(self, lambda x: F.gelu(x, approximate=approximate), lambda x: gelu_ratio(x, approximate))


@define("relu(Tensor self) -> Tensor")
def relu(self: Tensor) -> Tensor:
    """ReLU; y/x is the step function, which is its native gradient."""
    return torch.relu(self)


@define("leaky_relu(Tensor self, float negative_slope=0.01) -> Tensor")
def leaky_relu(self: Tensor, negative_slope: float = 0.01) -> Tensor:
    """Leaky ReLU; y/x is its native gradient."""
    return F.leaky_relu(self, negative_slope)


@define("tanh(Tensor self) -> Tensor")
def tanh(self: Tensor) -> Tensor:
    """tanh; y/x = tanh(x)/x, 1 at 0 (AttnLRP eq. 9)."""
    return _activation(self, torch.tanh, lambda x: _over(torch.tanh(x), x, 1.0))


@define("sigmoid(Tensor self) -> Tensor")
def sigmoid(self: Tensor) -> Tensor:
    """sigmoid; f(0) = 1/2 absorbs like a bias: ratio tanh(x/2) / (2x), 1/4 at 0."""
    return _activation(self, torch.sigmoid, lambda x: _over(torch.tanh(x / 2), x, 0.5) / 2)


@define("exp(Tensor self) -> Tensor")
def exp(self: Tensor) -> Tensor:
    """exp; f(0) = 1 absorbs like a bias: ratio expm1(x) / x, 1 at 0."""
    return _activation(self, torch.exp, lambda x: _over(torch.expm1(x), x, 1.0))


@define("softplus(Tensor self) -> Tensor")
def softplus(self: Tensor) -> Tensor:
    """softplus; f(0) = log 2 absorbs like a bias: ratio (log(1 + e^x) - log 2) / x, 1/2 at 0."""
    return _activation(self, F.softplus, _softplus_ratio)


@define("pow(Tensor self, Scalar exponent) -> Tensor")
def pow(self: Tensor, exponent: float) -> Tensor:
    """x^n for an integer n > 0; y/x = x^(n-1) (AttnLRP eq. 9), where the native gradient would give n times as much."""
    return _activation(self, lambda x: x.pow(exponent), lambda x: x.pow(exponent - 1))


@define("sqrt(Tensor self) -> Tensor")
def sqrt(self: Tensor) -> Tensor:
    """sqrt; y/x = 1/sqrt(x), taken as 0 at 0, where y is 0 too."""
    return _activation(self, torch.sqrt, lambda x: torch.where(x > 0, torch.rsqrt(x), torch.zeros_like(x)))


@define("elu(Tensor self, float alpha=1.0, float scale=1.0, float input_scale=1.0) -> Tensor")
def elu(self: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """ELU, SELU, CELU; y/x = scale for x > 0, else scale * alpha * expm1(input_scale * x) / x."""

    def ratio(x: Tensor) -> Tensor:
        negative = _over(torch.expm1(x.clamp(max=0) * input_scale) * (alpha * scale), x, alpha * scale * input_scale)
        return torch.where(x > 0, torch.full_like(x, scale), negative)

    return _activation(self, lambda x: torch.ops.aten.elu.default(x, alpha, scale, input_scale), ratio)


@define("mish(Tensor self) -> Tensor")
def mish(self: Tensor) -> Tensor:
    """mish; y/x = tanh(softplus(x))."""
    return _activation(self, F.mish, lambda x: torch.tanh(F.softplus(x)))


@define("hardswish(Tensor self) -> Tensor")
def hardswish(self: Tensor) -> Tensor:
    """hardswish; y/x = hardsigmoid(x)."""
    return _activation(self, F.hardswish, F.hardsigmoid)


@define("hardsigmoid(Tensor self) -> Tensor")
def hardsigmoid(self: Tensor) -> Tensor:
    """hardsigmoid; f(0) = 1/2 absorbs like a bias: ratio 1 / (2 max(3, |x|)), and 0 where a closed gate gives 0 (x <= -3):
    no relevance comes in there, so none goes out."""
    return _activation(self, F.hardsigmoid, lambda x: torch.where(x > -3, 0.5 / x.abs().clamp(min=3.0), 0.0))


@define("hardtanh(Tensor self, float min_val=-1.0, float max_val=1.0) -> Tensor")
def hardtanh(self: Tensor, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """hardtanh and relu6, with 0 in [min_val, max_val]; y/x = clamp(x)/x."""
    return _activation(self, lambda x: F.hardtanh(x, min_val, max_val), lambda x: _clamp_ratio(x, min_val, max_val))


@define("sin(Tensor self) -> Tensor")
def sin(self: Tensor) -> Tensor:
    """sin; y/x = sin(x)/x, 1 at 0."""
    return _activation(self, torch.sin, lambda x: _over(torch.sin(x), x, 1.0))


@define("erf(Tensor self) -> Tensor")
def erf(self: Tensor) -> Tensor:
    """erf; y/x, 2/sqrt(pi) at 0."""
    return _activation(self, torch.erf, _erf_ratio)


@define("asinh(Tensor self) -> Tensor")
def asinh(self: Tensor) -> Tensor:
    """asinh; y/x, 1 at 0."""
    return _activation(self, torch.asinh, lambda x: _over(torch.asinh(x), x, 1.0))


@define("log1p(Tensor self) -> Tensor")
def log1p(self: Tensor) -> Tensor:
    """log(1 + x); y/x, 1 at 0."""
    return _activation(self, torch.log1p, lambda x: _over(torch.log1p(x), x, 1.0))


@define("log(Tensor self) -> Tensor")
def log(self: Tensor) -> Tensor:
    """log; y/x, 0 where x is 0 or below and y is no number. f(0) is no bias, as it is infinite. Near 0 the ratio
    saturates in half precision."""
    return _activation(self, torch.log, _log_ratio)


@define("expm1(Tensor self) -> Tensor")
def expm1(self: Tensor) -> Tensor:
    """exp(x) - 1; y/x, 1 at 0."""
    return _activation(self, torch.expm1, lambda x: _over(torch.expm1(x), x, 1.0))




@define("atan(Tensor self) -> Tensor")
def atan(self: Tensor) -> Tensor:
    """atan; y/x, 1 at 0."""
    return _activation(self, torch.atan, lambda x: _over(torch.atan(x), x, 1.0))


@define("acos(Tensor self) -> Tensor")
def acos(self: Tensor) -> Tensor:
    """acos; f(0) = pi/2 absorbs like a bias: ratio -asin(x) / x, -1 at 0."""
    return _activation(self, torch.acos, lambda x: -_over(torch.asin(x), x, 1.0))



@define("log_sigmoid(Tensor self) -> Tensor")
def log_sigmoid(self: Tensor) -> Tensor:
    """log(sigmoid(x)) = -softplus(-x); f(0) = -log 2 absorbs like a bias: the ratio of softplus at -x, 1/2 at 0."""
    return _activation(self, F.logsigmoid, lambda x: _softplus_ratio(-x))
