"""Activations that save their ratio y / x for the backward, alone or with the linear map before them, for the graph that
runs (AttnLRP eq. 9: R_in = R_out, so the backward is g * y / x).

The value is that of the model's own ops. The ratio is computed with it, where y and x are in the cache, and takes the place
of x, which nothing else reads: one tensor is saved, as for the plain gradient. The backward is one product, where that of
the plain gradient computes the error function and the exponential again. The relevance of x is that of y to one rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import any_autocast
from lxt_fx.ops.activations import BY_NAME
from lxt_fx.ops.gradient_product import times_weight
from lxt_fx.ops.library import RuleFunction, define, is_batched

Both = Callable[[Tensor, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Kind:
    """An activation. `both` gives y and y / x; its flag says that x may be overwritten. `op` is the name of the activation
    of `activations.py` that has this value, none for one that models write out; `approximate` is that of GELU."""

    both: Both
    op: str = ""
    approximate: str | None = None


def _quotient(value: Callable[[Tensor], Tensor], at_zero: float) -> Both:
    """y and y / x, with the slope at 0 where x is 0."""

    def both(x: Tensor, owned: bool) -> tuple[Tensor, Tensor]:
        y = value(x)
        if x.dtype is torch.float16:  # below 6e-5 its numbers lose digits; nearer to 0 than this the ratio is its limit
            return y, torch.where(x.abs() < 1e-3, at_zero, y / x)
        if is_compiling():
            return y, torch.where(x == 0, at_zero, y / x)
        ratio = torch.div(y, x, out=x) if owned else y / x
        return y, ratio.nan_to_num_(at_zero)  # 0 / 0: `masked_fill_` takes ten times as long (CPU, 2.13)

    return both


def _gelu_written_out(x: Tensor, owned: bool) -> tuple[Tensor, Tensor]:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), op by op as GPT-2 writes it: the same bits. Half of the sum is the
    ratio."""
    if is_compiling() or any_autocast():  # autocast of a GPU takes powers in float32
        total = 1.0 + torch.tanh(SQRT_2_OVER_PI * (x + 0.044715 * x.pow(3.0)))
        return 0.5 * x * total, 0.5 * total
    total = x.pow(3.0).mul_(0.044715).add_(x).mul_(SQRT_2_OVER_PI).tanh_().add_(1.0)
    half = x.mul_(0.5) if owned else x * 0.5
    return half.mul_(total), total.mul_(0.5)


def _quick_gelu(x: Tensor, owned: bool) -> tuple[Tensor, Tensor]:
    """x sigmoid(1.702 x), as CLIP writes it."""
    ratio = torch.sigmoid(1.702 * x)
    return x * ratio, ratio


SQRT_2_OVER_PI = 0.7978845608028654


_SLOPES = {"silu": 0.5, "hardswish": 0.5, "mish": 0.6, "tanh": 1.0}
"""Further activations of `activations.py` with f(0) = 0, and their slope there; tanh(log 2) = 0.6."""

KINDS: Mapping[str, Kind] = {
    "gelu": Kind(_quotient(F.gelu, 0.5), "gelu", "none"),
    "gelu_tanh": Kind(_quotient(lambda x: F.gelu(x, approximate="tanh"), 0.5), "gelu", "tanh"),
    "gelu_written_out": Kind(_gelu_written_out),
    "quick_gelu": Kind(_quick_gelu),
    **{name: Kind(_quotient(BY_NAME[name].value, slope), name) for name, slope in _SLOPES.items() if name in BY_NAME},
}
"""By the name that `active` and `linear_active` have for them."""


class Active(RuleFunction):
    """y = f(x); the backward is g * y / x. Saves y / x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        y, ratio = KINDS[kind].both(x, False)
        ctx.save_for_backward(ratio)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (ratio,) = ctx.saved_tensors
        return gradients[0] * ratio, None


class LinearActive(RuleFunction):
    """y = f(a) with a = x W^T + b; the backward is (g * y / a) W. Saves y / a in the place of a."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kind: str, sparse: bool) -> Tensor:
        y, ratio = KINDS[kind].both(F.linear(x, weight, bias), True)
        ctx.save_for_backward(ratio, weight.to(ratio.dtype))
        ctx.shape, ctx.sparse = x.shape, sparse
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        ratio, weight = ctx.saved_tensors
        flat = (gradients[0] * ratio).to(weight.dtype).reshape(-1, weight.shape[0])
        through = torch.mm(flat, weight) if is_batched(flat) else times_weight(flat, weight, ctx.sparse)
        return through.reshape(ctx.shape), None, None, None, None


@define("active(Tensor self, str kind) -> Tensor")
def active(self: Tensor, kind: str) -> Tensor:
    """y = f(x) for f one of `KINDS`: R_in = R_out (AttnLRP eq. 9). Saves y / x."""
    y: Tensor = Active.apply(self, kind)  # type: ignore[no-untyped-call]
    return y


@define("linear_active(Tensor input, Tensor weight, Tensor? bias, str kind, bool sparse=False) -> Tensor")
def linear_active(input: Tensor, weight: Tensor, bias: Tensor | None, kind: str, sparse: bool = False) -> Tensor:
    """y = f(x W^T + b) with constant W, b, for f one of `KINDS`: R_in = R_out through f (AttnLRP eq. 9), then eq. 8. Saves
    f(a) / a. `sparse` says that many positions may have a gradient of 0; they are not multiplied."""
    held = None if bias is None else bias.detach()
    y: Tensor = LinearActive.apply(input, weight.detach(), held, kind, sparse)  # type: ignore[no-untyped-call]
    return y
