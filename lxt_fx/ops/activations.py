"""Elementwise nonlinearities y = f(x) in gradient form: R_in = R_out, so the backward is g * y / x (AttnLRP eq. 9).

`ACTIVATIONS` states the facts about each function in one entry; its op `lxt_fx::<name>`, its rule and equation, whether it
is a gate, and other names for it follow from that. Each ratio y/x is a closed form with its limit at 0, finite in half
precision. Where f(0) is not 0 (sigmoid, exp, softplus) the constant f(0) absorbs its share like a bias, and the ratio is
(f(x) - f(0)) / x: bounded, where f(x)/x is not. An op saves x and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.torch_internals import OpOverload, aten_op, aten_ops
from lxt_fx.ops.library import RuleFunction, define

Pointwise = Callable[[Tensor], Tensor]
Function = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Activation:
    """The facts about an elementwise function y = f(x), whatever the table.

    `name` is the name of ATen's op and of ours (`aten_name` where ATen's has an overload). `value` is f. `ratio` is
    (f(x) - f(0)) / x in closed form. Where only the `slope` at 0 is given, the ratio is computed as that quotient; where
    neither is given, the gradient is the native one. `at_zero` is f(0); f(0) absorbs nothing where a function that `closes`
    is 0. `settings` are the arguments after x, as a schema; x is called `operand`, as in ATen's op.
    A `gate` scales what it is multiplied with. In a recurrence a `rate` is a step size or a decay, and a `decay` a decay.
    `some` marks functions that have a rule for some settings only (`rule_table/basic_rules.py` says which). `aliases` are
    other names of the op in ATen (`torch.special` has those that start with `special_`), `functions` the Python functions
    that call it.
    """

    name: str
    value: Function
    ratio: Function | None = None
    slope: float | None = None
    at_zero: float = 0.0
    closes: bool = False
    settings: str = ""
    operand: str = "self"
    gate: bool = True
    rate: bool = False
    decay: bool = False
    some: bool = False
    aten_name: str = ""
    aliases: str = ""
    functions: tuple[Function, ...] = ()

    @property
    def op(self) -> OpOverload:
        """Our op."""
        found: OpOverload = getattr(torch.ops.lxt_fx, self.name).default
        return found

    @property
    def aten(self) -> Any:
        """ATen's op; None where this torch does not have it."""
        return aten_op(self.aten_name or self.name)

    @property
    def other_names(self) -> frozenset[Any]:
        """Other ATen ops that are the same function."""
        return aten_ops(self.aliases)

    @property
    def callers(self) -> tuple[Function, ...]:
        """The Python functions that call the op by any of its names."""
        special = (name.removeprefix("special_") for name in self.aliases.split() if name.startswith("special_"))
        return (*self.functions, *(getattr(torch.special, name) for name in special if hasattr(torch.special, name)))

    def factor(self, x: Tensor, *settings: Any, **named: Any) -> Tensor:
        """What the gradient is multiplied by: the ratio."""
        if self.ratio is not None:
            factor: Tensor = self.ratio(x, *settings, **named)
            return factor
        assert self.slope is not None and self.at_zero == 0  # the quotient of a difference has no digits near 0
        return _over(self.value(x, *settings, **named), x, self.slope)


class Curve(RuleFunction):
    """y = value(x); the backward is g * factor(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Pointwise, factor: Pointwise) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return value(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return gradients[0] * ctx.factor(x), None, None


class Identity(RuleFunction):
    """y computed elsewhere from x; the backward of x is g * (y - intercept) / x, and g * slope at x = 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, intercept: float, slope: float) -> Tensor:
        ratio = _over(y, x, slope) if intercept == 0 else _over(y - intercept, x, slope, _near_zero(x, y))
        ctx.save_for_backward(ratio)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (ratio,) = ctx.saved_tensors
        return gradients[0] * ratio, None, None, None


def _near_zero(x: Tensor, y: Tensor) -> float:
    """Below this |x| the difference y - intercept is mostly rounding error, and the slope at 0 is more exact."""
    return math.sqrt(max(torch.finfo(x.dtype).eps, torch.finfo(y.dtype).eps))


def _over(numerator: Tensor, x: Tensor, limit: float, radius: float | None = None) -> Tensor:
    """numerator / x, and `limit` where |x| < radius: by default at 0 and at subnormal x, whose quotient has no digits."""
    small = x.abs() < (torch.finfo(x.dtype).tiny if radius is None else radius)
    if not torch.is_grad_enabled():
        return torch.where(small, limit, numerator / x)
    return torch.where(small, torch.full_like(x, limit), numerator / torch.where(small, torch.ones_like(x), x))


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


def _gelu_either_ratio(x: Tensor, approximate: str = "none") -> Tensor:
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


def _reciprocal_ratio(x: Tensor) -> Tensor:
    """1 / x^2, taken as 0 at 0; it stops at the largest number of the type."""
    y = torch.reciprocal(x)
    return torch.where(x == 0, 0.0, y * y).clamp(max=torch.finfo(x.dtype).max)


def _quotient(y: Tensor, x: Tensor) -> Tensor:
    """y / x for a function that is infinite or undefined at 0: taken as 0 there, and finite elsewhere if y is."""
    largest = torch.finfo(x.dtype).max
    return torch.where(x == 0, 0, y / torch.where(x == 0, 1, x)).clamp(-largest, largest)


def _power_ratio(x: Tensor, exponent: float) -> Tensor:
    """x^(n-1). For n < 1 it is infinite at 0."""
    return x.pow(exponent - 1) if exponent >= 1 else _quotient(x.pow(exponent), x)


def _cos_ratio(x: Tensor) -> Tensor:
    """(cos x - 1) / x = -2 sin(x/2)^2 / x: a product instead of the difference."""
    half = _in_float32(x) / 2
    return -torch.sin(half) * _over(torch.sin(half), half, 1.0)


def _cosh_ratio(x: Tensor) -> Tensor:
    """(cosh x - 1) / x = 2 sinh(x/2)^2 / x: a product instead of the difference."""
    half = _in_float32(x) / 2
    return torch.sinh(half) * _over(torch.sinh(half), half, 1.0)


def _sinc_ratio(x: Tensor) -> Tensor:
    """(sinc x - 1) / x, by the first terms of its series near 0, where the difference has no digits. Far from 0 sinc is
    next to nothing, and pi x overflows."""
    wide = _in_float32(x)
    square = (math.pi * wide) ** 2
    terms = sum((-1) ** n * square ** (n - 1) / math.factorial(2 * n + 1) for n in range(1, 8))
    near = square < 1
    difference = torch.sinc(wide.clamp(-1e9, 1e9)) - 1
    return torch.where(near, wide * math.pi**2 * terms, difference / torch.where(near, 1, wide))


def _exp_base_ratio(x: Tensor, base: float) -> Tensor:
    """(base^x - 1) / x. The difference is exact to rounding where base^x is not near 1."""
    rate, wide = math.log(base), _in_float32(x)
    exponent = wide * rate
    difference = torch.where(exponent.abs() < 1, torch.expm1(exponent), torch.pow(base, wide) - 1)
    return _over(difference, wide, rate)


def _clamp_ratio(x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """clamp(x) / x where 0 lies in [low, high]: at most 1; at 0 its native gradient, which is 0 where a bound is 0."""
    zero = x == 0
    return torch.where(zero, float(low < 0 < high), torch.clamp(x, low, high) / torch.where(zero, 1.0, x))


def _elu_ratio(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    """scale for x > 0, else scale * alpha * expm1(input_scale * x) / x: of ELU, SELU and CELU."""
    negative = _over(torch.expm1(x.clamp(max=0) * input_scale) * (alpha * scale), x, alpha * scale * input_scale)
    return torch.where(x > 0, torch.full_like(x, scale), negative)


def _elu(x: Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Tensor:
    y: Tensor = torch.ops.aten.elu.default(x, alpha, scale, input_scale)
    return y


def _sqrt_ratio(x: Tensor) -> Tensor:
    """1 / sqrt(x), taken as 0 at 0, where y is 0 too."""
    return torch.where(x > 0, torch.rsqrt(x), torch.zeros_like(x))


def _hardsigmoid_ratio(x: Tensor) -> Tensor:
    """1 / (2 max(3, |x|)), and 0 where a closed gate gives 0 (x <= -3): no relevance comes in there, so none goes out."""
    return torch.where(x > -3, 0.5 / x.abs().clamp(min=3.0), 0.0)


@define("identity(Tensor self, Tensor value, float intercept, float slope) -> Tensor")
def identity(self: Tensor, value: Tensor, intercept: float, slope: float) -> Tensor:
    """y = f(x), given as a tensor computed from x by any elementwise subgraph; `intercept` is f(0), `slope` f'(0).
    R_in = R_out less what f(0) absorbs (AttnLRP eq. 9). Saves the ratio."""
    y: Tensor = Identity.apply(self, value.detach(), intercept, slope)  # type: ignore[no-untyped-call]
    return y


STATED = (
    Activation("silu", F.silu, torch.sigmoid, functions=(F.silu,)),
    Activation("gelu", F.gelu, _gelu_either_ratio, settings="*, str approximate='none'", functions=(F.gelu,)),
    Activation("relu", torch.relu, functions=(F.relu, torch.relu)),
    Activation("leaky_relu", F.leaky_relu, settings="float negative_slope=0.01", functions=(F.leaky_relu,)),
    Activation("tanh", torch.tanh, slope=1.0, functions=(torch.tanh, F.tanh)),
    Activation(
        "elu", _elu, _elu_ratio, settings="float alpha=1.0, float scale=1.0, float input_scale=1.0",
        functions=(F.elu, F.selu, F.celu),
    ),
    Activation("mish", F.mish, lambda x: torch.tanh(F.softplus(x)), functions=(F.mish,)),
    Activation("hardswish", F.hardswish, F.hardsigmoid, functions=(F.hardswish,)),
    Activation("sin", torch.sin, slope=1.0, functions=(torch.sin,)),
    Activation("erf", torch.erf, _erf_ratio, aliases="special_erf", functions=(torch.erf,)),
    Activation("erfinv", torch.erfinv, slope=math.sqrt(math.pi) / 2, aliases="special_erfinv", functions=(torch.erfinv,)),
    Activation("asinh", torch.asinh, slope=1.0, aliases="arcsinh", functions=(torch.asinh, torch.arcsinh)),
    Activation("log1p", torch.log1p, slope=1.0, functions=(torch.log1p,)),
    Activation("sqrt", torch.sqrt, _sqrt_ratio, gate=False, functions=(torch.sqrt,)),
    Activation("log", torch.log, _log_ratio, functions=(torch.log,)),  # f(0) is infinite and absorbs no share
    Activation(  # as log
        "reciprocal", torch.reciprocal, _reciprocal_ratio, gate=False, functions=(torch.reciprocal,)
    ),
    Activation("expm1", torch.expm1, slope=1.0, rate=True, decay=True, functions=(torch.expm1,)),
    Activation("atan", torch.atan, slope=1.0, aliases="arctan", functions=(torch.atan, torch.arctan)),
    Activation(
        "sigmoid", torch.sigmoid, lambda x: _over(torch.tanh(x / 2), x, 0.5) / 2, at_zero=0.5, rate=True,
        aliases="special_expit", functions=(torch.sigmoid, F.sigmoid),
    ),
    Activation(
        "exp", torch.exp, lambda x: _over(torch.expm1(x), x, 1.0), at_zero=1.0, rate=True, decay=True,
        functions=(torch.exp,),
    ),
    Activation(
        "exp_base", lambda x, base: torch.pow(base, x), _exp_base_ratio, at_zero=1.0, settings="Scalar self",
        operand="exponent", rate=True, decay=True, some=True, aten_name="pow.Scalar",
    ),
    Activation(
        "hardsigmoid", F.hardsigmoid, _hardsigmoid_ratio, at_zero=0.5, closes=True, rate=True,
        functions=(F.hardsigmoid,),
    ),
    Activation(
        "log_sigmoid", F.logsigmoid, lambda x: _softplus_ratio(-x), at_zero=-math.log(2), rate=True,
        functions=(F.logsigmoid,),
    ),
    Activation(
        "acos", torch.acos, lambda x: -_over(torch.asin(x), x, 1.0), at_zero=math.pi / 2, aliases="arccos",
        functions=(torch.acos, torch.arccos),
    ),
    Activation(
        "softplus", F.softplus, _softplus_ratio, at_zero=math.log(2), rate=True, some=True, functions=(F.softplus,)
    ),
    Activation("tan", torch.tan, slope=1.0, functions=(torch.tan,)),
    Activation("sinh", torch.sinh, slope=1.0, functions=(torch.sinh,)),
    Activation("asin", torch.asin, slope=1.0, aliases="arcsin", functions=(torch.asin, torch.arcsin)),
    Activation("atanh", torch.atanh, slope=1.0, aliases="arctanh", functions=(torch.atanh, torch.arctanh)),
    Activation(  # as log: it is defined from 1 on
        "acosh", torch.acosh, lambda x: _quotient(torch.acosh(x), x), aliases="arccosh",
        functions=(torch.acosh, torch.arccosh),
    ),
    Activation("cos", torch.cos, _cos_ratio, at_zero=1.0, functions=(torch.cos,)),
    Activation("cosh", torch.cosh, _cosh_ratio, at_zero=1.0, functions=(torch.cosh,)),
    Activation("sinc", torch.sinc, _sinc_ratio, at_zero=1.0, aliases="special_sinc", functions=(torch.sinc,)),
    Activation(
        "exp2", torch.exp2, lambda x: _exp_base_ratio(x, 2.0), at_zero=1.0, rate=True, decay=True,
        aliases="special_exp2", functions=(torch.exp2,),
    ),
    Activation(
        "erfc", torch.erfc, lambda x: -_erf_ratio(x), at_zero=1.0, aliases="special_erfc", functions=(torch.erfc,)
    ),
    Activation("log2", torch.log2, lambda x: _log_ratio(x) / math.log(2), functions=(torch.log2,)),
    Activation("log10", torch.log10, lambda x: _log_ratio(x) / math.log(10), functions=(torch.log10,)),
    Activation("rsqrt", torch.rsqrt, lambda x: _quotient(torch.rsqrt(x), x), gate=False, functions=(torch.rsqrt,)),
    Activation(
        "lgamma", torch.lgamma, lambda x: _quotient(torch.lgamma(x), x), aliases="special_gammaln",
        functions=(torch.lgamma,),
    ),
    Activation(
        "digamma", torch.digamma, lambda x: _quotient(torch.digamma(x), x), aliases="special_digamma special_psi",
        functions=(torch.digamma,),
    ),
    Activation(
        "logit", torch.logit, lambda x, eps=None: _quotient(torch.logit(x, eps), x), settings="float? eps=None",
        aliases="special_logit", functions=(torch.logit,),
    ),
    Activation("hardshrink", F.hardshrink, settings="Scalar lambd=0.5", functions=(F.hardshrink,)),
    Activation("softshrink", F.softshrink, slope=0.0, settings="Scalar lambd=0.5", functions=(F.softshrink,)),
    Activation(  # the native gradient would give n times as much
        "pow", torch.pow, _power_ratio, settings="Scalar exponent", gate=False, some=True,
        aten_name="pow.Tensor_Scalar", functions=(torch.pow,),
    ),
    Activation(
        "hardtanh", F.hardtanh, _clamp_ratio, settings="float min_val=-1.0, float max_val=1.0", some=True,
        functions=(F.hardtanh, F.relu6),
    ),
)  # fmt: skip
"""All of them, those too whose op this torch does not have."""

ACTIVATIONS: tuple[Activation, ...] = tuple(activation for activation in STATED if activation.aten is not None)
BY_NAME: Mapping[str, Activation] = {activation.name: activation for activation in ACTIVATIONS}


def _define(activation: Activation) -> OpOverload:
    arguments = ", ".join(filter(None, (f"Tensor {activation.operand}", activation.settings)))

    @define(f"{activation.name}({arguments}) -> Tensor")
    def kernel(x: Tensor, /, *settings: Any, **named: Any) -> Tensor:
        if activation.ratio is None and activation.slope is None:
            native: Tensor = activation.value(x, *settings, **named)
            return native
        y: Tensor = Curve.apply(  # type: ignore[no-untyped-call]
            x, lambda x: activation.value(x, *settings, **named), lambda x: activation.factor(x, *settings, **named)
        )
        return y

    return kernel


OPS: Mapping[str, OpOverload] = {activation.name: _define(activation) for activation in ACTIVATIONS}
"""The ops, by name: `activations.silu` is one of them."""

POINTWISE_OPS = frozenset({*OPS.values(), identity})
"""The ops of this file."""

FROM_ZERO = frozenset(activation.op for activation in ACTIVATIONS if activation.at_zero)
"""The ops with f(0) other than 0, which absorbs its share."""

X_OF: Mapping[Any, str] = {activation.op: activation.operand for activation in ACTIVATIONS}
"""By op, the name of its argument x."""

CLOSING = frozenset(activation.op for activation in ACTIVATIONS if activation.closes)
"""Those of them whose f(0) absorbs nothing where the value is 0, so that no relevance comes in."""


def __getattr__(name: str) -> OpOverload:
    if name in OPS:
        return OPS[name]
    raise AttributeError(f"module {__name__} has no attribute {name}")
