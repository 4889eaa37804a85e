"""Explicit form of the rules in contributions.py: relevance flows back, through separate maps of the parts above and below
0 of x, w and b, as the papers write them. It is exact also where x is 0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.ops import contributions, explicit
from lxt_fx.ops.contributions import Linear, LinearMap, Packed, RuleOps, Run, RunPacked, ratio
from lxt_fx.ops.library import RuleFunction, in_float32


class Divide(RuleFunction):
    """y = value; the backward gives the first sum the one share of R and the second the other."""

    @staticmethod
    def forward(first: Tensor, second: Tensor, value: Tensor, share: Tensor, other_share: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[3:])

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        share, other_share = ctx.saved_tensors
        return relevance[0] * share, relevance[0] * other_share, None, None, None


class Bound(RuleFunction):
    """y = bound, in the shape of x; the backward takes the gradient g of a linear map to the relevance bound * g of x."""

    @staticmethod
    def forward(x: Tensor, bound: Tensor) -> Tensor:
        return bound.expand_as(x).clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (bound,) = ctx.saved_tensors
        return gradients[0] * bound, None


def _bound(x: Tensor, bound: Tensor) -> Tensor:
    bounded: Tensor = Bound.apply(x, bound.detach().to(x))  # type: ignore[no-untyped-call]
    return bounded


class PackedParts(RuleFunction):
    """y = value, that of a packed layer; the backward takes R z' / value, with z' = x W^T + b of the unpacked weights, to
    x by the equation of a rule, as its op for plain weights does. Saves x and value."""

    @staticmethod
    def forward(x: Tensor, value: Tensor, of: Packed, run: Callable[[Tensor], Run]) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, value, ctx.packed, ctx.run = inputs
        ctx.save_for_backward(x, value)

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor | None, ...]:
        x, value = ctx.saved_tensors
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        with torch.enable_grad():
            own = (x.float() if narrow else x).detach().requires_grad_()
            weight, bias = ctx.packed.unpacked(own.detach())
            z = F.linear(own.detach(), weight, bias)
            passing = ctx.run(z)(Linear(), own, weight, bias)
        kept = relevance[0] * ratio(z, value.to(z.dtype), 0.0)
        (found,) = torch.autograd.grad(passing, own, kept.to(passing.dtype))
        return found.to(x.dtype), None, None, None


def _above(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.clamp(min=0)


def _below(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.clamp(max=0)


def _gamma(value: Tensor, gamma: float, epsilon: float = 0.0) -> Run:
    """Zennit's generalised gamma: x+ (w + gamma w+) + x- (w + gamma w-) + b + gamma b+ where z > 0; the other parts of w
    and b where z < 0."""

    def run(of: LinearMap, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        more, less = weight + gamma * weight.clamp(min=0), weight + gamma * weight.clamp(max=0)
        plus, minus = explicit.enter(x).clamp(min=0), explicit.enter(x).clamp(max=0)
        biases = (None, None) if bias is None else (bias + gamma * bias.clamp(min=0), bias + gamma * bias.clamp(max=0))
        above = explicit.leave(of(plus, more, biases[0]) + of(minus, less, None), epsilon)
        below = explicit.leave(of(plus, less, biases[1]) + of(minus, more, None), epsilon)
        z = value.reshape(above.shape)
        divided: Tensor = Divide.apply(above, below, z, (z > 0).to(z), (z < 0).to(z))  # type: ignore[no-untyped-call]
        return divided

    return run


def _alpha_beta(value: Tensor, alpha: float, beta: float, epsilon: float = 0.0) -> Run:
    """alpha R to x+ w+ + x- w- + b+, -beta R to x+ w- + x- w+ + b- (Bach et al. 2015, eq. 60)."""

    def run(of: LinearMap, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        plus, minus = explicit.enter(x).clamp(min=0), explicit.enter(x).clamp(max=0)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        above = explicit.leave(of(plus, up, _above(bias)) + of(minus, down, None), epsilon)
        below = explicit.leave(of(plus, down, _below(bias)) + of(minus, up, None), epsilon)
        z = value.reshape(above.shape)
        shares = z.new_tensor(alpha), z.new_tensor(-beta)
        divided: Tensor = Divide.apply(above, below, z, *shares)  # type: ignore[no-untyped-call]
        return divided

    return run


def _z_plus(value: Tensor, epsilon: float = 0.0) -> Run:
    return _alpha_beta(value, 1.0, 0.0, epsilon)


def _excitation(value: Tensor, epsilon: float = 0.0) -> Run:
    """Z-plus of the map without its bias (Zhang et al. 2016)."""
    return lambda of, x, weight, bias: _z_plus(value, epsilon)(of, x, weight, None)


def _z_box(value: Tensor, low: Tensor, high: Tensor, epsilon: float = 0.0) -> Run:
    """x w - low w+ - high w- (Montavon et al. 2017)."""

    def run(of: LinearMap, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        lowest = of(_bound(x, low), weight.clamp(min=0), None)
        highest = of(_bound(x, high), weight.clamp(max=0), None)
        return _passed(of(explicit.enter(x), weight, None) - lowest - highest, value, epsilon)

    return run


def _w_square(value: Tensor, epsilon: float = 0.0) -> Run:
    """A map of ones by w^2, and b^2 (Montavon et al. 2017)."""

    def run(of: LinearMap, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        squares = None if bias is None else bias.square()
        return _passed(of(_bound(x, x.new_ones(())), weight.square(), squares), value, epsilon)

    return run


def _flat(value: Tensor, epsilon: float = 0.0) -> Run:
    """A map of ones by ones (Lapuschkin et al. 2019)."""

    def run(of: LinearMap, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _passed(of(_bound(x, x.new_ones(())), torch.ones_like(weight), None), value, epsilon)

    return run


def _passed(sums: Tensor, value: Tensor, epsilon: float) -> Tensor:
    passed: Tensor = explicit.pass_on(explicit.leave(sums, epsilon), value.reshape(sums.shape))
    return passed


def _ops(name: str, settings: str, run: Callable[..., Run]) -> RuleOps:
    """The ops of a rule in explicit form. `run` takes the held value and the rule's settings."""

    def packed(value: Tensor, **own: Any) -> RunPacked:
        def run_packed(of: Packed, x: Tensor) -> Tensor:
            passing: Tensor = PackedParts.apply(x, value, of, lambda z: run(z, **own))  # type: ignore[no-untyped-call]
            return passing

        return run_packed

    return contributions.rule_ops(f"{name}_parts", settings, run, packed, in_float32)


GAMMA = _ops("gamma", "float gamma, Tensor value, float epsilon=0.0", _gamma)
Z_PLUS = _ops("z_plus", "Tensor value, float epsilon=0.0", _z_plus)
EXCITATION = _ops("excitation", "Tensor value, float epsilon=0.0", _excitation)
ALPHA_BETA = _ops("alpha_beta", "float alpha, float beta, Tensor value, float epsilon=0.0", _alpha_beta)
Z_BOX = _ops("z_box", "Tensor low, Tensor high, Tensor value, float epsilon=0.0", _z_box)
W_SQUARE = _ops("w_square", "Tensor value, float epsilon=0.0", _w_square)
FLAT = _ops("flat", "Tensor value, float epsilon=0.0", _flat)

RULES: tuple[RuleOps, ...] = (GAMMA, Z_PLUS, EXCITATION, ALPHA_BETA, Z_BOX, W_SQUARE, FLAT)
PARTS = {
    fast: parts
    for pair in zip(contributions.RULES, RULES, strict=True)
    for fast, parts in zip(*(ops.every for ops in pair), strict=True)
}
"""The op of the explicit form of each op in contributions.py."""
