"""The functions of each element that have a rule, stated anew: one line for each, which every test of activations reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ANYWHERE, NOT_NEGATIVE, SMALL, BELOW_ONE = "any", "not negative", "small", "below 1"
"""Where a function is tried, as in `rule_nets`."""


@dataclass(frozen=True, slots=True)
class Curve:
    """y = f(x): torch's function and a loop's, the limit of (f(x) - f(0)) / x at 0 (where f has a kink there, its
    native gradient), f(0), where it is tried, and the settings that torch's function is called with. `overflows` says that
    it does for large x in half precision. `near` is the quotient below |x| = 1e-3 of a function that is flat at 0, where
    the difference has too few digits for a test."""

    name: str
    plain: Callable[..., Tensor]
    slow: Callable[[float], float]
    limit: float
    at_zero: float = 0.0
    where: str = ANYWHERE
    settings: tuple[float, ...] = ()
    named: Mapping[str, Any] = field(default_factory=dict)
    kink: bool = False
    overflows: bool = False
    op: str = ""
    near: Callable[[Tensor], Tensor] | None = None

    @property
    def of(self) -> Any:
        """The op of ours."""
        return getattr(torch.ops.lxt_fx, self.op or self.name).default


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def _softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def _relu6(x: float) -> float:
    return min(max(x, 0.0), 6.0)


NORMAL = NormalDist(0, math.sqrt(0.5))

CURVES = (
    Curve("silu", F.silu, lambda x: x * _sigmoid(x), 0.5),
    Curve("gelu", F.gelu, lambda x: x * 0.5 * math.erfc(-x / math.sqrt(2)), 0.5, overflows=True),
    Curve(
        "gelu_tanh", F.gelu, lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))), 0.5,
        named={"approximate": "tanh"}, op="gelu",
    ),
    Curve("relu", torch.relu, lambda x: max(x, 0.0), 0.0, kink=True),
    Curve("leaky_relu", F.leaky_relu, lambda x: x if x > 0 else 0.2 * x, 0.2, settings=(0.2,), kink=True),
    Curve("tanh", torch.tanh, math.tanh, 1.0),
    Curve("sigmoid", torch.sigmoid, _sigmoid, 0.25, at_zero=0.5),
    Curve("exp", torch.exp, math.exp, 1.0, at_zero=1.0, where=SMALL, overflows=True),
    Curve(
        "exp_base", lambda x, base: torch.pow(base, x), lambda x: 0.5**x, math.log(0.5), at_zero=1.0, where=SMALL,
        settings=(0.5,), overflows=True,
    ),
    Curve("softplus", F.softplus, _softplus, 0.5, at_zero=math.log(2)),
    Curve("square", torch.pow, lambda x: x * x, 0.0, settings=(2,), kink=True, overflows=True, op="pow"),
    Curve("cube", torch.pow, lambda x: x * x * x, 0.0, settings=(3.0,), kink=True, overflows=True, op="pow"),
    Curve("elu", F.elu, lambda x: x if x > 0 else 0.7 * math.expm1(x), 0.7, settings=(0.7,), kink=True),
    Curve(
        "selu", lambda x, *_: F.selu(x),
        lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)), 1.7580993408473766,
        settings=(1.6732632423543772, 1.0507009873554805), kink=True, op="elu",
    ),
    Curve(
        "celu", lambda x, *_: F.celu(x, 0.5), lambda x: x if x > 0 else 0.5 * math.expm1(x / 0.5), 1.0,
        settings=(0.5, 1.0, 2.0), op="elu",
    ),
    Curve("mish", F.mish, lambda x: x * math.tanh(_softplus(x)), 0.6),
    Curve("hardswish", F.hardswish, lambda x: x * _relu6(x + 3) / 6, 0.5, overflows=True),
    Curve("hardsigmoid", F.hardsigmoid, lambda x: _relu6(x + 3) / 6, 1 / 6, at_zero=0.5),
    Curve("hardtanh", F.hardtanh, lambda x: min(max(x, -1.0), 1.0), 1.0),
    Curve("relu6", lambda x, *_: F.relu6(x), _relu6, 0.0, settings=(0.0, 6.0), kink=True, op="hardtanh"),
    Curve("sin", torch.sin, math.sin, 1.0),
    Curve("erf", torch.erf, math.erf, 2 / math.sqrt(math.pi)),
    Curve("erfinv", torch.erfinv, lambda x: NORMAL.inv_cdf((x + 1) / 2), math.sqrt(math.pi) / 2, where=BELOW_ONE),
    Curve("asinh", torch.asinh, math.asinh, 1.0),
    Curve("log1p", torch.log1p, math.log1p, 1.0, where=NOT_NEGATIVE),
    Curve("sqrt", torch.sqrt, math.sqrt, 0.0, where=NOT_NEGATIVE, kink=True),
    Curve("expm1", torch.expm1, math.expm1, 1.0, where=SMALL, overflows=True),
    Curve("atan", torch.atan, math.atan, 1.0),
    Curve("acos", torch.acos, math.acos, -1.0, at_zero=math.pi / 2, where=BELOW_ONE),
    Curve("tan", torch.tan, math.tan, 1.0, where=BELOW_ONE),
    Curve("sinh", torch.sinh, math.sinh, 1.0, where=SMALL, overflows=True),
    Curve("asin", torch.asin, math.asin, 1.0, where=BELOW_ONE),
    Curve("atanh", torch.atanh, math.atanh, 1.0, where=BELOW_ONE),
    Curve("cos", torch.cos, math.cos, 0.0, at_zero=1.0, near=lambda x: -x / 2 + x**3 / 24),
    Curve(
        "cosh", torch.cosh, math.cosh, 0.0, at_zero=1.0, where=SMALL, overflows=True, near=lambda x: x / 2 + x**3 / 24
    ),
    Curve(
        "sinc", torch.sinc, lambda x: math.sin(math.pi * x) / (math.pi * x) if x else 1.0, 0.0, at_zero=1.0,
        overflows=True, near=lambda x: -(math.pi**2) * x / 6 + math.pi**4 * x**3 / 120,
    ),
    Curve("exp2", torch.exp2, lambda x: 2.0**x, math.log(2), at_zero=1.0, where=SMALL, overflows=True),
    Curve("erfc", torch.erfc, math.erfc, -2 / math.sqrt(math.pi), at_zero=1.0),
    Curve("hardshrink", F.hardshrink, lambda x: x if abs(x) > 0.25 else 0.0, 0.0, settings=(0.25,), kink=True),
    Curve(
        "softshrink", F.softshrink, lambda x: math.copysign(max(abs(x) - 0.25, 0.0), x), 0.0, settings=(0.25,), kink=True
    ),
    Curve("log_sigmoid", F.logsigmoid, lambda x: -_softplus(-x), 0.5, at_zero=-math.log(2)),
)  # fmt: skip
BY_NAME = {curve.name: curve for curve in CURVES}

INFINITE: Mapping[str, tuple[float, float]] = {
    "log": (0.0, math.inf), "log2": (0.0, math.inf), "log10": (0.0, math.inf), "reciprocal": (0.0, math.inf),
    "rsqrt": (0.0, math.inf), "lgamma": (0.0, math.inf), "digamma": (0.0, math.inf), "acosh": (1.0, math.inf),
    "logit": (0.0, 1.0),
}  # fmt: skip
"""The functions whose value at 0 is infinite, or undefined, and takes no share: between which numbers they are tried."""
