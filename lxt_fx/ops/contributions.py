"""Rules that weigh the contributions c_ij = x_i w_ij of a linear map with constant weights, in gradient form.

z = map(x, w, b) = sum_i c_ij + b_j is the native value. Backward, R = z g reaches it, a rule divides R among the c_ij, and
x gets R_i / x_i, written without that division where there is a closed form. c+ and c- are the parts above and below 0; the
bias is one more contribution. Zennit's rules of the same names are equal, also in what biases absorb.

An op saves its operands and its value, and computes the sums of the rule in the backward. A sum without contributions is 0
and passes nothing on. The op of a packed layer saves x only, and unpacks the weights in the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.torch_internals import OpOverload
from lxt_fx.ops.library import Casts, RuleFunction, define, narrowed
from lxt_fx.ops.packed import PACKED, packed_value, unpacked_bias, unpacked_weight


class LinearMap(Protocol):
    """A map that is linear in x."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """map(x, weight) + bias."""

    def transposed(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """W^T gradient, in the shape of x."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x W^T + b for x [..., in] and W [out, in]."""

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def transposed(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return torch.matmul(gradient, weight)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A packed layer: its kernel's value of x [..., in], and x W^T + b for its unpacked weights."""

    weight: Tensor
    dtype: torch.dtype | None

    def value(self, x: Tensor) -> Tensor:
        """What the kernel computes."""
        found: Tensor = packed_value(x, self.weight, self.dtype)
        return found

    def unpacked(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """W [out, in] and b [out], in the dtype of `like`. The bias is first: some layers unpack both for it."""
        bias = unpacked_bias(self.weight, like)
        return unpacked_weight(self.weight, like), bias


@dataclass(frozen=True, slots=True)
class Matmul:
    """x @ W, or W @ x where the first operand is the constant."""

    weight_first: bool

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.matmul(weight, x) if self.weight_first else torch.matmul(x, weight)

    def transposed(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        found = torch.matmul(weight.mT, gradient) if self.weight_first else torch.matmul(gradient, weight.mT)
        return found if found.shape == x.shape else found.sum_to_size(x.shape)


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of x [batch, channels, ...] as `aten.convolution` takes it. `uneven` is what F.pad adds first: what
    a padding "same" has more behind than before. Padded places are no inputs."""

    uneven: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    is_transposed: bool
    output_padding: Sequence[int]
    groups: int

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(self._padded(x), weight, bias, *self._settings())

    def transposed(self, gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        wanted = [True, False, False]
        operands = gradient, self._padded(x), weight, None
        found: Tensor = torch.ops.aten.convolution_backward(*operands, *self._settings(), wanted)[0]
        return F.pad(found, [-number for number in self.uneven]) if any(self.uneven) else found

    def _padded(self, x: Tensor) -> Tensor:
        return F.pad(x, list(self.uneven)) if any(self.uneven) else x

    def _settings(self) -> tuple[Any, ...]:
        return self.stride, self.padding, self.dilation, self.is_transposed, self.output_padding, self.groups


@dataclass(frozen=True, slots=True)
class Call:
    """What a rule reads: the map, its operands, its value z, and the bounds of x where the rule has any."""

    map: LinearMap
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    z: Tensor
    bounds: tuple[Tensor, ...]

    def back(self, relevance: Tensor, weight: Tensor) -> Tensor:
        """The map with these weights, transposed."""
        return self.map.transposed(relevance, self.x, weight)


class ContributionRule(Protocol):
    """Takes the gradient g of z to that of x: R_i / x_i with R = z g."""

    def __call__(self, call: Call, gradient: Tensor) -> Tensor: ...


def ratio(part: Tensor, whole: Tensor, epsilon: float) -> Tensor:
    """part / (whole + epsilon sign(whole)), and 0 where the whole is 0: then no contribution gets anything."""
    stable = whole if epsilon == 0 else torch.add(whole, whole.sign(), alpha=epsilon)
    return torch.where(whole == 0, 0, part / stable)


def over(relevance: Tensor, x: Tensor) -> Tensor:
    """R_i / x_i. An element that is 0 gets 0: value * gradient cannot carry its relevance."""
    largest = torch.finfo(x.dtype).max
    return ratio(relevance, x, 0.0).clamp(-largest, largest)


@dataclass(frozen=True, slots=True)
class Gamma:
    """R_i = sum_j (c_ij + gamma c+_ij) R_j / sum_i (c_ij + gamma c+_ij) where z_j > 0; with c- where z_j < 0.

    With c± = (c ± |c|) / 2 and a = map(|x|, |w|, |b|) the sum is ±((1 + gamma/2) |z| + gamma/2 a): one extra map.
    """

    gamma: float
    epsilon: float

    def __call__(self, call: Call, gradient: Tensor) -> Tensor:
        half, size = self.gamma / 2, call.z.abs()
        sums = (1 + half) * size + half * _sizes(call)
        passed = ratio(gradient * size, sums, self.epsilon)
        by_size = call.back(passed * call.z.sign(), call.weight.abs())
        return (1 + half) * call.back(passed, call.weight) + half * call.x.sign() * by_size


@dataclass(frozen=True, slots=True)
class ZPlus:
    """R_i = sum_j c+_ij R_j / p_j with p_j = sum_i c+_ij. Nothing cancels: c+ = x+ w+ + x- w-."""

    epsilon: float

    def __call__(self, call: Call, gradient: Tensor) -> Tensor:
        above, below = call.weight.clamp(min=0), call.weight.clamp(max=0)
        bias = None if call.bias is None else call.bias.clamp(min=0)
        sums = call.map(call.x.clamp(min=0), above, bias) + call.map(call.x.clamp(max=0), below, None)
        passed = ratio(call.z * gradient, sums, self.epsilon)
        return torch.where(call.x > 0, call.back(passed, above), call.back(passed, below))


@dataclass(frozen=True, slots=True)
class Excitation:
    """Z-plus with a bias that absorbs nothing: R_i = sum_j c+_ij R_j / p_j with p_j without b_j."""

    epsilon: float

    def __call__(self, call: Call, gradient: Tensor) -> Tensor:
        return ZPlus(self.epsilon)(replace(call, bias=None), gradient)


@dataclass(frozen=True, slots=True)
class AlphaBeta:
    """R_i = sum_j (alpha c+_ij / p_j - beta c-_ij / n_j) R_j with p = sum c+ and n = sum c-.

    p = (a + z) / 2 and -n = (a - z) / 2 with a = map(|x|, |w|, |b|): one extra map. A p or n that is a part of 1/k of a has
    k times the rounding of a, and one that is no more than rounding of a counts as 0.
    """

    alpha: float
    beta: float
    epsilon: float

    def __call__(self, call: Call, gradient: Tensor) -> Tensor:
        sizes, relevance = _sizes(call), call.z * gradient
        above = self.alpha / 2 * ratio(relevance, _part((sizes + call.z) / 2, sizes), self.epsilon)
        below = self.beta / 2 * ratio(relevance, _part((sizes - call.z) / 2, sizes), self.epsilon)
        by_size = call.back(above - below, call.weight.abs())
        return call.back(above + below, call.weight) + call.x.sign() * by_size


@dataclass(frozen=True, slots=True)
class ZBox:
    """R_i = sum_j d_ij R_j / sum_i d_ij with d_ij = x_i w_ij - low_i w+_ij - high_i w-_ij, which is not below 0.

    Nothing cancels: d = (x - low) w+ + (x - high) w-. The bias absorbs nothing.
    """

    epsilon: float

    def __call__(self, call: Call, gradient: Tensor) -> Tensor:
        low, high = call.bounds
        above, below = call.weight.clamp(min=0), call.weight.clamp(max=0)
        from_low, from_high = call.x - low.to(call.x), call.x - high.to(call.x)
        sums = call.map(from_low, above, None) + call.map(from_high, below, None)
        passed = ratio(call.z * gradient, sums, self.epsilon)
        return over(from_low * call.back(passed, above) + from_high * call.back(passed, below), call.x)


@dataclass(frozen=True, slots=True)
class WSquare:
    """R_i = sum_j w_ij^2 R_j / (sum_i w_ij^2 + b_j^2)."""

    epsilon: float

    def __call__(self, call: Call, gradient: Tensor) -> Tensor:
        squares = call.weight.square()
        sums = call.map(torch.ones_like(call.x), squares, None if call.bias is None else call.bias.square())
        return over(call.back(ratio(call.z * gradient, sums, self.epsilon), squares), call.x)


@dataclass(frozen=True, slots=True)
class Flat:
    """R_i = sum_j R_j / n_j, where n_j counts the inputs that z_j reads. The bias absorbs nothing."""

    epsilon: float

    def __call__(self, call: Call, gradient: Tensor) -> Tensor:
        ones = torch.ones_like(call.weight)
        counts = call.map(torch.ones_like(call.x), ones, None)
        return over(call.back(ratio(call.z * gradient, counts, self.epsilon), ones), call.x)


def _sizes(call: Call) -> Tensor:
    """a = map(|x|, |w|, |b|): the sum of the sizes of the contributions."""
    return call.map(call.x.abs(), call.weight.abs(), None if call.bias is None else call.bias.abs())


def _part(part: Tensor, sizes: Tensor) -> Tensor:
    """p or -n, 0 where it is only rounding of a."""
    return torch.where(part > 2 * torch.finfo(sizes.dtype).eps * sizes, part, 0)


class ByContribution(RuleFunction):
    """z = map(x, w, b); the backward is that of a rule. Saves the operands and z."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, of: LinearMap, rule: ContributionRule, *bounds: Tensor
    ) -> Tensor:
        return of(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.map, ctx.rule, *bounds = inputs
        ctx.save_for_backward(x, weight, bias, output, *bounds)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        kind, largest = gradients[0].dtype, torch.finfo(gradients[0].dtype).max
        narrow = kind in (torch.float16, torch.bfloat16)  # whose quotients and sums would overflow
        given = [t.float() if narrow and t is not None else t for t in (*ctx.saved_tensors, gradients[0])]
        x, weight, bias, z, *bounds, gradient = given
        found = ctx.rule(Call(ctx.map, x, weight, bias, z, tuple(bounds)), gradient)
        found = found.clamp(-largest, largest).to(kind) if narrow else found
        return found, None, None, None, None, *(None for _ in bounds)


class PackedByContribution(RuleFunction):
    """z = kernel(x) of a packed layer; the backward is that of a rule, for the map of the unpacked weights. What the kernel
    rounds, (z - x W^T - b) g, passes nothing on. Saves x."""

    @staticmethod
    def forward(x: Tensor, of: Packed, rule: ContributionRule, *bounds: Tensor) -> Tensor:
        return of.value(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.packed, ctx.rule, *bounds = inputs
        ctx.save_for_backward(x, *bounds)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, *bounds = ctx.saved_tensors
        narrow = x.dtype in (torch.float16, torch.bfloat16)
        own, gradient = (x.float(), gradients[0].float()) if narrow else (x, gradients[0].to(x.dtype))
        weight, bias = ctx.packed.unpacked(gradient)
        z = F.linear(own, weight, bias)
        found = ctx.rule(Call(Linear(), own, weight, bias, z, tuple(bounds)), gradient)
        largest = torch.finfo(x.dtype).max
        found = found.clamp(-largest, largest).to(x.dtype) if narrow else found
        return found, None, None, *(None for _ in bounds)


Run = Callable[[LinearMap, Tensor, Tensor, Tensor | None], Tensor]
"""Computes a map with the backward of a rule."""

RunPacked = Callable[[Packed, Tensor], Tensor]
"""The same for a packed layer."""

CONVOLUTION = (
    "Tensor input, Tensor weight, Tensor? bias=None, *, SymInt[] stride=[1], SymInt[] padding=[0], SymInt[] dilation=[1], "
    "bool transposed=False, SymInt[] output_padding=[0], SymInt groups=1"
)
"""As `aten.convolution`, also without a batch. Padding is a number for each dim, or two (before, after) where uneven."""


@dataclass(frozen=True, slots=True)
class RuleOps:
    """The ops of a rule, one for each kind of linear map."""

    linear: OpOverload
    convolution: OpOverload
    matmul: OpOverload
    packed: OpOverload

    @property
    def every(self) -> tuple[OpOverload, ...]:
        """All of them."""
        return self.linear, self.convolution, self.matmul, self.packed


def rule_ops(
    name: str, settings: str, run: Callable[..., Run], packed: Callable[..., RunPacked], casts: Casts = narrowed
) -> RuleOps:
    """Defines `linear_<name>`, `convolution_<name>`, `matmul_<name>` and `packed_<name>`. `settings` are the rule's own
    arguments as a schema; `run` and `packed` take them by name. `casts` is what autocast does to the operands; the kernel
    of a packed layer casts by itself."""

    @define(f"linear_{name}(Tensor input, Tensor weight, Tensor? bias=None, *, {settings}) -> Tensor", casts=casts)
    def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None, **own: Any) -> Tensor:
        return run(**own)(Linear(), input, weight.detach(), None if bias is None else bias.detach())

    @define(f"convolution_{name}({CONVOLUTION}, {settings}) -> Tensor", casts=casts)
    def convolution(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        stride: Sequence[int] = (1,),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        transposed: bool = False,
        output_padding: Sequence[int] = (0,),
        groups: int = 1,
        **own: Any,
    ) -> Tensor:
        dims = weight.dim() - 2
        uneven, before = _uneven(padding, dims)
        by, around, apart, behind = (_each(numbers, dims) for numbers in (stride, before, dilation, output_padding))
        of = Convolution(uneven, by, around, apart, transposed, behind, groups)
        batched = input.dim() == weight.dim()
        x = input if batched else input.unsqueeze(0)
        z = run(**own)(of, x, weight.detach(), None if bias is None else bias.detach())
        return z if batched else z.squeeze(0)

    @define(f"matmul_{name}(Tensor self, Tensor other, *, str held='other', {settings}) -> Tensor", casts=casts)
    def matmul(self: Tensor, other: Tensor, *, held: str = "other", **own: Any) -> Tensor:
        x, weight = (other, self) if held == "self" else (self, other)
        return run(**own)(Matmul(held == "self"), x, weight.detach(), None)

    @define(f"packed_{name}({PACKED}, *, {settings}) -> Tensor")
    def packed_linear(
        input: Tensor, weight: Tensor, scheme: str, dtype: torch.dtype | None = None, **own: Any
    ) -> Tensor:
        return packed(**own)(Packed(weight, dtype), input)

    return RuleOps(linear, convolution, matmul, packed_linear)


def _uneven(padding: Sequence[int], dims: int) -> tuple[list[int], Sequence[int]]:
    """What F.pad adds first, and a padding of one number for each dim: "same" is done in these two steps by torch too."""
    if len(padding) != 2 * dims:
        return [], padding
    before, after = padding[::2], padding[1::2]
    more = [(max(b - a, 0), max(a - b, 0)) for b, a in zip(before, after, strict=True)]
    return [number for pair in reversed(more) for number in pair], [min(b, a) for b, a in zip(before, after, strict=True)]


def _each(numbers: Sequence[int], dims: int) -> list[int]:
    """One number for each dim."""
    return list(numbers) * dims if len(numbers) == 1 else list(numbers)


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule, with the bounds of x where it has any, for maps of both kinds."""

    rule: Callable[..., ContributionRule]
    bounds: tuple[str, ...] = ()

    def _made(self, own: dict[str, Any]) -> tuple[Any, ...]:
        bounds = [own.pop(name).detach() for name in self.bounds]
        return self.rule(**{"epsilon": 0.0, **own}), *bounds

    def plain(self, **own: Any) -> Run:
        made = self._made(own)

        def run(of: LinearMap, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            z: Tensor = ByContribution.apply(x, weight, bias, of, *made)  # type: ignore[no-untyped-call]
            return z

        return run

    def packed(self, **own: Any) -> RunPacked:
        made = self._made(own)

        def run(of: Packed, x: Tensor) -> Tensor:
            z: Tensor = PackedByContribution.apply(x, of, *made)  # type: ignore[no-untyped-call]
            return z

        return run


def _ops(name: str, settings: str, rule: _Rule) -> RuleOps:
    return rule_ops(name, settings, rule.plain, rule.packed)


GAMMA = _ops("gamma", "float gamma, float epsilon=0.0", _Rule(Gamma))
Z_PLUS = _ops("z_plus", "float epsilon=0.0", _Rule(ZPlus))
EXCITATION = _ops("excitation", "float epsilon=0.0", _Rule(Excitation))
ALPHA_BETA = _ops("alpha_beta", "float alpha, float beta, float epsilon=0.0", _Rule(AlphaBeta))
Z_BOX = _ops("z_box", "Tensor low, Tensor high, float epsilon=0.0", _Rule(ZBox, ("low", "high")))
W_SQUARE = _ops("w_square", "float epsilon=0.0", _Rule(WSquare))
FLAT = _ops("flat", "float epsilon=0.0", _Rule(Flat))

RULES = (GAMMA, Z_PLUS, EXCITATION, ALPHA_BETA, Z_BOX, W_SQUARE, FLAT)
BY_CONTRIBUTION = frozenset(op for ops in RULES for op in ops.every)
"""All ops of this file."""

OF_UNPACKED = {ops.packed: ops.linear for ops in RULES}
"""For each op of a packed layer, that of the same rule for plain weights."""

HOLDS = dict.fromkeys(BY_CONTRIBUTION, frozenset({"weight", "bias", "self", "other", "low", "high"}))
"""The arguments of an op that get no gradient, where they are not its input."""
