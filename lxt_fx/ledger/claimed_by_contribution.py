"""What biases, epsilon, missing contributions and inputs of 0 absorb under the rules of ops/contributions.py: by formula,
in float64, from the parts of x, w and b above and below 0. The backward of the ops is not used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.ops import contributions
from lxt_fx.ops.contributions import BY_CONTRIBUTION, RuleOps


@dataclass(frozen=True, slots=True)
class Absorbed:
    """What each cause absorbs of sum R; scalars."""

    bias: Tensor
    epsilon: Tensor
    one_sided: Tensor
    zero: Tensor


@dataclass(frozen=True, slots=True)
class MapCall:
    """A call of one of the ops: its operands in float64, the relevance of its value, and its map without the bias."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    relevance: Tensor
    z: Tensor
    settings: Mapping[str, Any]
    map: Callable[[Tensor, Tensor], Tensor]

    @property
    def zeros(self) -> Tensor:
        """1 where the input is 0."""
        return (self.x == 0).double()

    def setting(self, name: str) -> Any:
        """A setting of the rule; epsilon is 0 where none is set."""
        found = self.settings.get(name, 0.0)
        return found.double() if isinstance(found, Tensor) else found


@dataclass(frozen=True, slots=True)
class _Sum:
    """One sum that a rule divides by: `relevance` is divided among its terms; `bias` and `zero` are the terms that absorb
    theirs."""

    relevance: Tensor
    whole: Tensor
    bias: Tensor
    zero: Tensor


def absorbed(op: Any, call: MapCall) -> Absorbed:
    """The shares of one call of an op of ops/contributions.py."""
    epsilon = call.setting("epsilon")
    total = Absorbed(*(torch.zeros((), dtype=torch.float64, device=call.z.device) for _ in range(4)))
    for part in _SUMS[op](call):
        added = epsilon * torch.where(part.whole < 0, -1.0, 1.0).to(part.whole)
        none = part.whole + added == 0
        each = torch.where(none, 0, part.relevance / torch.where(none, 1, part.whole + added))
        total = Absorbed(
            total.bias + (each * part.bias).sum(),
            total.epsilon + (each * added).sum(),
            total.one_sided + torch.where(none, part.relevance, 0).sum(),
            total.zero + (each * part.zero).sum(),
        )
    return total


def _signed(call: MapCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of the positive and of the negative contributions without the bias, then the positive and negative bias."""
    up, down = call.weight.clamp(min=0), call.weight.clamp(max=0)
    plus, minus = call.x.clamp(min=0), call.x.clamp(max=0)
    above, below = call.map(plus, up) + call.map(minus, down), call.map(plus, down) + call.map(minus, up)
    return above, below, call.bias.clamp(min=0), call.bias.clamp(max=0)


def _gamma(call: MapCall) -> list[_Sum]:
    gamma = call.setting("gamma")
    above, below, bias_above, bias_below = _signed(call)
    positive = call.z > 0
    bias = call.bias + gamma * torch.where(positive, bias_above, bias_below)
    whole = above + below + gamma * torch.where(positive, above, below) + bias
    return [_Sum(call.relevance, whole, bias, torch.zeros_like(whole))]


def _alpha_beta(call: MapCall) -> list[_Sum]:
    above, below, bias_above, bias_below = _signed(call)
    alpha, beta = call.settings.get("alpha", 1.0), call.settings.get("beta", 0.0)
    zero = torch.zeros_like(above)
    return [
        _Sum(alpha * call.relevance, above + bias_above, bias_above, zero),
        _Sum(-beta * call.relevance, below + bias_below, bias_below, zero),
    ]


def _excitation(call: MapCall) -> list[_Sum]:
    above, *_ = _signed(call)
    return [_Sum(call.relevance, above, torch.zeros_like(above), torch.zeros_like(above))]


def _z_box(call: MapCall) -> list[_Sum]:
    from_low, from_high = call.x - call.setting("low"), call.x - call.setting("high")
    up, down = call.weight.clamp(min=0), call.weight.clamp(max=0)
    whole = call.map(from_low, up) + call.map(from_high, down)
    zero = call.map(from_low * call.zeros, up) + call.map(from_high * call.zeros, down)
    return [_Sum(call.relevance, whole, torch.zeros_like(whole), zero)]


def _w_square(call: MapCall) -> list[_Sum]:
    squares, bias = call.weight.square(), call.bias.square()
    whole = call.map(torch.ones_like(call.x), squares) + bias
    return [_Sum(call.relevance, whole, bias, call.map(call.zeros, squares))]


def _flat(call: MapCall) -> list[_Sum]:
    ones = torch.ones_like(call.weight)
    counts = call.map(torch.ones_like(call.x), ones)
    return [_Sum(call.relevance, counts, torch.zeros_like(counts), call.map(call.zeros, ones))]


_BY_RULE: tuple[tuple[RuleOps, Callable[[MapCall], list[_Sum]]], ...] = (
    (contributions.GAMMA, _gamma),
    (contributions.Z_PLUS, _alpha_beta),
    (contributions.EXCITATION, _excitation),
    (contributions.ALPHA_BETA, _alpha_beta),
    (contributions.Z_BOX, _z_box),
    (contributions.W_SQUARE, _w_square),
    (contributions.FLAT, _flat),
)
_SUMS = {op: sums for ops, sums in _BY_RULE for op in ops.every}
assert set(_SUMS) == BY_CONTRIBUTION


def map_call(op: Any, arguments: Mapping[str, Any], z: Tensor, gradient: Tensor) -> MapCall:
    """The call of an op with these arguments by schema name; z is its value and `gradient` what reaches that."""
    names = ("self", "other") if "self" in arguments else ("input", "weight")
    first, second = names[::-1] if arguments.get("held") == "self" else names
    weight, bias = arguments[second].double(), arguments.get("bias")
    channels = (-1, *[1] * (weight.dim() - 2)) if "input" in names else (-1,)
    settings = {name: found for name, found in arguments.items() if name not in (*names, "bias")}

    def apply(x: Tensor, weight: Tensor) -> Tensor:
        with torch.no_grad():
            found: Tensor = op(**{first: x, second: weight}, **settings)
        return found

    return MapCall(
        arguments[first].double(),
        weight,
        weight.new_zeros(()) if bias is None else bias.double().reshape(channels),
        z.double() * gradient.double(),
        z,
        settings,
        apply,
    )
