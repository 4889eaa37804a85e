"""One case or more for every `torch.ops.lxt_fx.*` op: its arguments, the plain torch function whose value it has, what it
saves for the backward and what it leaks. Tensors that carry relevance require a gradient, weights do not."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from activation_cases import BELOW_ONE, CURVES, INFINITE, NOT_NEGATIVE, Curve
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves

from lxt_fx.ops import (
    activations,
    active,
    contributions,
    exempt,
    experts,
    fused,
    moves,
    norms,
    products,
    selection,
    sources,
)  # fmt: skip
from lxt_fx.ops.head import head
from lxt_fx.ops.patches import patches

Arguments = tuple[Any, ...]
Leak = Callable[[Arguments, Tensor, Tensor], Tensor]


def carrying(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A normal leaf of that shape that carries relevance."""
    return weight(seed, *shape, dtype=dtype).requires_grad_()


def positive(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A leaf between 0.5 and 1.5 that carries relevance."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5).to(dtype).requires_grad_()


def below_one(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A leaf between -0.9 and 0.9 that carries relevance."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 1.8 - 0.9).to(dtype).requires_grad_()


def weight(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A normal tensor of that shape that carries nothing."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def nothing(arguments: Arguments, value: Tensor, gradient: Tensor) -> Tensor:
    """sum R_in == sum R_out."""
    return torch.zeros(())


def constant(at_zero: float) -> Leak:
    """f(0) takes its share like a bias."""
    return lambda arguments, value, gradient: at_zero * gradient.sum()


def bias(position: int) -> Leak:
    """The bias takes its share; it is added to the last dim, or to dim 1 of a group norm."""

    def taken(arguments: Arguments, value: Tensor, gradient: Tensor) -> Tensor:
        b = arguments[position]
        over_channels = value.dim() == 4
        return (gradient * (b.reshape(-1, 1, 1) if over_channels else b)).sum()

    return taken


def everything(arguments: Arguments, value: Tensor, gradient: Tensor) -> Tensor:
    """Nothing passes."""
    return (value * gradient).sum()


def softmax_offset(arguments: Arguments, value: Tensor, gradient: Tensor) -> Tensor:
    """b_j of the Taylor expansion s_j = sum_i J_ji x_i + b_j takes its share (AttnLRP eq. 13)."""
    x, dim = arguments[:2]
    mean = (value * x).sum(dim, keepdim=True)
    return (gradient * value * (1 - x + mean)).sum()


@dataclass(frozen=True, slots=True)
class Case:
    """An op on some arguments. `saved` names what it saves for the backward: arguments by schema name, `output`, or shapes;
    None where it depends on the kernel. `leak` is sum R_out - sum R_in, or None where another test states it."""

    name: str
    op: OpOverload
    plain: Callable[..., Tensor]
    make: Callable[[torch.dtype], Arguments]
    saved: tuple[str, ...] | None = ("self",)
    leak: Leak | None = nothing
    keywords: Mapping[str, Any] = field(default_factory=dict)
    differs: frozenset[str] = frozenset()
    """Keywords that the plain function does not take."""

    def run(self, *arguments: Any) -> Tensor:
        """The op's value."""
        value: Tensor = self.op(*arguments, **self.keywords)
        return value

    def run_plain(self, *arguments: Any) -> Tensor:
        """The plain torch function's value."""
        return self.plain(*arguments, **{k: v for k, v in self.keywords.items() if k not in self.differs})


def leaves(arguments: Arguments) -> list[Tensor]:
    """The tensors that carry relevance."""
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.requires_grad]


def open_gates(arguments: Arguments, value: Tensor, gradient: Tensor) -> Tensor:
    """f(0) = 1/2 takes its share where the gate is not closed."""
    return 0.5 * gradient[value != 0].sum()


DRAWN = {NOT_NEGATIVE: positive, BELOW_ONE: below_one}


def _pointwise(curve: Curve) -> Case:
    leak = constant(curve.at_zero) if curve.at_zero else nothing
    return Case(
        curve.name,
        curve.of,
        curve.plain,
        lambda dtype: (DRAWN.get(curve.where, carrying)(0, 2, 3, 4, dtype=dtype), *curve.settings),
        saved=("output",) if curve.name == "relu" else (curve.of._schema.arguments[0].name,),
        leak=open_gates if curve.name == "hardsigmoid" else leak,
        keywords=curve.named,
    )


def _between(low: float, high: float) -> Callable[[torch.dtype], Arguments]:
    """Numbers between the bounds."""

    def make(dtype: torch.dtype) -> Arguments:
        x = positive(0, 2, 3, 4, dtype=dtype).detach()
        return ((low + (x if high == math.inf else (high - low) * x / (1 + x))).requires_grad_(),)

    return make


POINTWISE = tuple(map(_pointwise, CURVES))
"""Ops of one tensor, f(x) of each element."""


def _rms_norm(x: Tensor, dims: list[int], eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + eps)


def _of_value(function: Callable[[Tensor], Tensor], at_zero: float, slope: float) -> Callable[[torch.dtype], Arguments]:
    def make(dtype: torch.dtype) -> Arguments:
        x = carrying(0, 2, 3, 4, dtype=dtype)
        return x, function(x.detach()), at_zero, slope

    return make


def _attention(
    mask: Callable[[torch.dtype], Tensor | None] = lambda dtype: None, *, read: int = 3, groups: int = 2
) -> Callable[[torch.dtype], Arguments]:
    """Queries [2, 2, 3, 4], keys and values [2, groups, read, 4], and the mask."""
    return lambda dtype: (
        carrying(0, 2, 2, 3, 4, dtype=dtype),
        carrying(1, 2, groups, read, 4, dtype=dtype),
        carrying(2, 2, groups, read, 4, dtype=dtype),
        mask(dtype),
    )


def _held_attention(dtype: torch.dtype) -> Arguments:
    query, key, value, _ = _attention()(dtype)
    return query.detach(), key.detach(), value


def _with_a_masked_vector(dtype: torch.dtype) -> Tensor:
    scores = weight(0, 2, 3, 4, dtype=dtype)
    scores[:, 2] = torch.finfo(dtype).min
    return scores.requires_grad_()


sdpa = F.scaled_dot_product_attention
SHARES = {"query_share": 0.5, "key_share": 0.5, "value_share": 0.5, "mask_share": 1.0}

OTHERS = (
    *(Case(name, activations.OPS[name], getattr(torch, name), _between(*INFINITE[name])) for name in INFINITE),
    Case(
        "epsilon", products.epsilon, lambda x, epsilon: x, lambda d: (carrying(0, 3, 4, dtype=d), 0.5),
        leak=lambda arguments, value, gradient: (value * gradient * 0.5 / (value.abs() + 0.5)).sum(),
    ),
    Case(
        "positions", selection.positions, lambda x, dim, positions: x[:, positions],
        lambda d: (carrying(0, 2, 3, 4, dtype=d), 1, [-1, 0]), saved=(),
    ),
    Case(
        "to_device", moves.to_device, lambda x, device: x,
        lambda d: (carrying(0, 3, 4, dtype=d), torch.device("cpu")), saved=(),
    ),
    Case("exempt", exempt.exempt, lambda x: x, lambda d: (carrying(0, 3, 4, dtype=d),), saved=()),
    Case("hold", products.hold, lambda x: x, lambda d: (carrying(0, 3, 4, dtype=d),), saved=(), leak=everything),
    Case("source", sources.source, lambda x: x, lambda d: (carrying(0, 3, 4, dtype=d),), saved=(), leak=everything),
    Case(
        "reconstruction_error", sources.reconstruction_error, torch.sub,
        lambda d: (carrying(0, 3, 4, dtype=d), carrying(1, 3, 4, dtype=d)), saved=(), leak=everything,
    ),
    Case("identity", activations.identity, lambda x, value, *_: value, _of_value(F.silu, 0.0, 0.5), saved=("[2, 3, 4]",)),
    Case(
        "identity_with_intercept", activations.identity, lambda x, value, *_: value, _of_value(torch.exp, 1.0, 1.0),
        saved=("[2, 3, 4]",), leak=constant(1.0),
    ),
    Case(
        "linear", products.linear, F.linear,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), weight(1, 5, 4, dtype=d), weight(2, 5, dtype=d)),
        saved=("weight",), leak=bias(2),
    ),
    Case(
        "linear_without_bias", products.linear, F.linear,
        lambda d: (carrying(0, 2, 4, dtype=d), weight(1, 5, 4, dtype=d)), saved=("weight",),
    ),
    Case(
        "grouped_matmul", experts.grouped_matmul, lambda x, w, ends: torch.cat([x[:3] @ w[0], x[3:] @ w[1]]),
        lambda d: (carrying(0, 8, 4, dtype=d), weight(1, 2, 4, 5, dtype=d), torch.tensor([3, 8], dtype=torch.int32)),
        saved=("input", "weight"),
    ),
    Case(
        "matmul", products.matmul, torch.matmul,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), carrying(1, 2, 4, 5, dtype=d)), saved=("other", "self"),
    ),
    Case(
        "matmul_held", products.matmul_held, torch.matmul,
        lambda d: (weight(0, 2, 3, 4, dtype=d), carrying(1, 2, 4, 5, dtype=d)), saved=("self",),
    ),
    Case(
        "einsum", products.einsum, torch.einsum,
        lambda d: ("bij,bjk->bik", [carrying(0, 2, 3, 4, dtype=d), carrying(1, 2, 4, 5, dtype=d)]),
        saved=("tensors[0]", "tensors[1]"),
    ),
    Case(
        "einsum_of_three", products.einsum, torch.einsum,
        lambda d: ("i,ij,j->i", [carrying(0, 3, dtype=d), carrying(1, 3, 4, dtype=d), carrying(2, 4, dtype=d)]), saved=None,
    ),
    Case(
        "mul", products.mul, torch.mul,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), carrying(1, 3, 1, dtype=d)), saved=("other", "self"),
    ),
    Case(
        "div", products.div, torch.div,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), positive(1, 3, 1, dtype=d)), saved=("other", "self"),
    ),
    Case(
        "softmax", products.softmax, torch.softmax,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), -1), saved=("output",), leak=softmax_offset,
    ),
    Case(
        "softmax_over_tokens", products.softmax, torch.softmax,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), 1, torch.float64), saved=("output",), leak=softmax_offset,
    ),
    Case(
        "softmax_of_a_masked_vector", products.softmax, torch.softmax,
        lambda d: (_with_a_masked_vector(d), -1),
        saved=("output", "[2, 3, 1]"), leak=None,
    ),
    Case(
        "softmax_at_a_temperature", products.softmax, torch.softmax, lambda d: (carrying(0, 2, 3, 4, dtype=d), -1),
        saved=("self",), leak=None, keywords={"temperature": 2.0}, differs=frozenset({"temperature"}),
    ),
    Case(
        "softmax_of_a_masked_vector_at_a_temperature", products.softmax, torch.softmax,
        lambda d: (_with_a_masked_vector(d), -1),
        saved=("self",), leak=None, keywords={"temperature": 0.5}, differs=frozenset({"temperature"}),
    ),
    Case(
        "matmul_by_shares", products.matmul, torch.matmul,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), carrying(1, 2, 4, 5, dtype=d)), saved=("other", "self"),
        keywords={"self_share": 0.75, "other_share": 0.25}, differs=frozenset({"self_share", "other_share"}),
    ),
    Case(
        "einsum_by_shares", products.einsum, torch.einsum,
        lambda d: ("bij,bjk->bik", [carrying(0, 2, 3, 4, dtype=d), carrying(1, 2, 4, 5, dtype=d)]),
        saved=("tensors[0]", "tensors[1]"), keywords={"shares": [0.75, 0.25]}, differs=frozenset({"shares"}),
    ),
    Case(
        "mul_by_shares", products.mul, torch.mul,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), carrying(1, 3, 1, dtype=d)), saved=("other", "self"),
        keywords={"self_share": 0.75, "other_share": 0.25}, differs=frozenset({"self_share", "other_share"}),
    ),
    Case(
        "mul_by_a_position", products.mul, torch.mul,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), weight(1, 3, 4, dtype=d)), saved=("other",),
        leak=lambda arguments, value, gradient: (value * gradient).sum() / 2,
    ),
    *(
        Case(
            f"sdpa_at_a_temperature{name}", products.sdpa, sdpa, _attention(mask), None, None,
            {"temperature": 2.0, **settings}, frozenset({"temperature"}),
        )
        for name, mask, settings in (
            ("", lambda d: None, {}),
            ("_causal", lambda d: None, {"is_causal": True, "scale": 0.3}),
            ("_masked", lambda d: weight(3, 3, 3) > -1, {}),
            ("_biased", lambda d: weight(3, 3, 3, dtype=d), {}),
        )
    ),
    Case("sdpa", products.sdpa, sdpa, _attention(), None, None),
    Case("sdpa_causal", products.sdpa, sdpa, _attention(), None, None, {"is_causal": True, "scale": 0.3}),
    Case("sdpa_masked", products.sdpa, sdpa, _attention(lambda d: weight(3, 3, 5) > -1, read=5), None, None),
    Case("sdpa_biased", products.sdpa, sdpa, _attention(lambda d: weight(3, 3, 3, dtype=d)), None, None),
    Case(
        "sdpa_of_carrying_mask", products.sdpa, sdpa, _attention(lambda d: carrying(3, 2, 1, 3, 3, dtype=d)),
        None, None, SHARES, frozenset(SHARES),
    ),
    Case("sdpa_of_groups", products.sdpa, sdpa, _attention(groups=1), None, None, {"enable_gqa": True}),
    Case("sdpa_held", products.sdpa_held, sdpa, _held_attention, saved=None),
    Case("rms_norm", norms.rms_norm, _rms_norm, lambda d: (carrying(0, 2, 3, 4, dtype=d), [-1], 1e-6), ("[2, 3, 1]",)),
    Case(
        "rms_norm_over_image", norms.rms_norm, _rms_norm,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), [1, 2], 1e-6), ("[2, 1, 1]",),
    ),
    Case(
        "rms_norm_fused", norms.rms_norm_fused, F.rms_norm,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), [3, 4], weight(1, 3, 4, dtype=d)), saved=("[2, 1, 1]", "weight"),
    ),
    Case(
        "layer_norm", norms.layer_norm, F.layer_norm,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), [4], weight(1, 4, dtype=d), weight(2, 4, dtype=d)),
        saved=("[2, 3, 1]", "weight"), leak=bias(3),
    ),
    Case(
        "layer_norm_over_two_dims", norms.layer_norm, F.layer_norm,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), [3, 4]), saved=("[2, 1, 1]",),
    ),
    Case(
        "group_norm", norms.group_norm, F.group_norm,
        lambda d: (carrying(0, 2, 4, 3, 2, dtype=d), 2, weight(1, 4, dtype=d), weight(2, 4, dtype=d)),
        saved=("[2, 2]", "weight"), leak=bias(3),
    ),
    Case(
        "group_norm_without_weight", norms.group_norm, F.group_norm,
        lambda d: (carrying(0, 2, 6, 3, dtype=d), 3), saved=("[2, 3]",),
    ),
    Case(
        "normalize_mul", norms.normalize_mul, torch.mul,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), weight(1, 2, 3, 1, dtype=d)), saved=("statistic",),
    ),
    Case(
        "normalize_div", norms.normalize_div, torch.div,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), positive(1, 2, 3, 1, dtype=d).detach()), saved=("statistic",),
    ),
)  # fmt: skip



class Several(Case):
    """An op that returns several tensors; here one after the other in the last dim."""

    def run(self, *arguments: Any) -> Tensor:
        return torch.cat(self.op(*arguments, **self.keywords), -1)


def _weighted_rms_norm(x: Tensor, weight: Tensor, dims: list[int], eps: float) -> Tensor:
    return weight * _rms_norm(x, dims, eps)


def _weighted_rms_norm_in_float32(x: Tensor, weight: Tensor, dims: list[int], eps: float, **_: Any) -> Tensor:
    return (_rms_norm(x.float(), dims, eps).to(torch.bfloat16) * weight).to(torch.float64)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def _two_linears(x: Tensor, weights: list[Tensor], biases: list[Tensor | None], shares: list[float]) -> Tensor:
    return torch.cat([F.linear(x, w, b) for w, b in zip(weights, biases, strict=True)], -1)


def _gate(activation: Callable[[Tensor], Tensor], kind: str) -> Case:
    return Case(
        f"gated_by_{kind}", fused.gated, lambda a, b, *_: activation(a) * b,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), carrying(1, 2, 3, 4, dtype=d), kind), saved=("gate", "up"),
    )  # fmt: skip


def _gelu_written_out(x: Tensor) -> Tensor:
    """As `NewGELUActivation` of transformers."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


ACTIVE: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "gelu_written_out": _gelu_written_out,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x), "silu": F.silu, "hardswish": F.hardswish, "mish": F.mish,
    "tanh": torch.tanh,
}  # fmt: skip
"""The plain function of each kind of `active`."""


def _active(kind: str) -> Case:
    return Case(
        f"active_{kind}", active.active, lambda x, kind: ACTIVE[kind](x),
        lambda d: (carrying(0, 2, 3, 4, dtype=d), kind), saved=("[2, 3, 4]",),
    )  # fmt: skip


def _linear_active(kind: str) -> Case:
    """What the bias takes is its part of the ratio times what came in."""

    def leak(arguments: Arguments, value: Tensor, gradient: Tensor) -> Tensor:
        x, weight, bias, kind = arguments
        sums = F.linear(x, weight, bias)
        return (gradient * ACTIVE[kind](sums) / sums * bias).sum()

    return Case(
        f"linear_{kind}", active.linear_active, lambda x, w, b, kind, sparse=False: ACTIVE[kind](F.linear(x, w, b)),
        lambda d: (carrying(0, 2, 3, 4, dtype=d), weight(1, 5, 4, dtype=d), weight(2, 5, dtype=d), kind),
        ("[2, 3, 5]", "weight"), leak,
    )  # fmt: skip


def _patches(*sizes: int) -> Case:
    """Some of the last dim remain beside the last window."""
    plain = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(sizes)]
    kernel = (2, 3, 2)[: len(sizes)]
    return Case(
        f"patches_{len(sizes)}d", patches, lambda x, w, b: plain(x, w, b, kernel),
        lambda d: (carrying(0, 2, 3, *sizes, dtype=d), weight(1, 5, 3, *kernel, dtype=d), weight(2, 5, dtype=d)),
        ("weight",),
        lambda arguments, value, gradient: (gradient.movedim(1, -1) * arguments[2]).sum(),
    )  # fmt: skip


NO_SHARES = dict.fromkeys(("query_share", "key_share", "value_share"), 1.0)

FUSED = (
    Case(
        "weighted_rms_norm", fused.weighted_rms_norm, _weighted_rms_norm,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), weight(1, 4, dtype=d), [-1], 1e-6), ("[2, 3, 1]", "weight"),
    ),
    Case(
        "weighted_rms_norm_with_casts", fused.weighted_rms_norm, _weighted_rms_norm_in_float32,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), weight(1, 4, dtype=torch.bfloat16), [-1], 1e-6),
        ("[2, 3, 1]", "weight"), None, {"inner": torch.float32, "middle": torch.bfloat16, "outer": torch.float64},
    ),
    _gate(F.silu, "silu"),
    _gate(F.gelu, "gelu"),
    _gate(lambda x: F.gelu(x, approximate="tanh"), "gelu_tanh"),
    Case(
        "rotate", fused.rotate, _rotated,
        lambda d: (carrying(0, 2, 3, 5, 4, dtype=d), weight(1, 5, 4, dtype=d), weight(2, 5, 4, dtype=d)),
        saved=("cos", "sin"),
    ),
    Several(
        "linears", fused.linears, _two_linears,
        lambda d: (
            carrying(0, 2, 3, 4, dtype=d), [weight(1, 5, 4, dtype=d), weight(2, 2, 4, dtype=d)], [None, None], [1.0, 1.0]
        ), saved=("weights[0]", "weights[1]"),
    ),
    Several(
        "linears_sparse", fused.linears, _two_linears,
        lambda d: (
            carrying(0, 2, 3, 4, dtype=d), [weight(1, 5, 4, dtype=d), weight(2, 2, 4, dtype=d)], [None, None], [1.0, 1.0]
        ), saved=("weights[0]", "weights[1]"), keywords={"sparse": True}, differs=frozenset({"sparse"}),
    ),
    *map(_active, active.KINDS),
    *map(_linear_active, active.KINDS),
    *(_patches(*sizes) for sizes in ((5,), (4, 7), (2, 3, 5))),
    Case(
        "head", head, F.linear,
        lambda d: (carrying(0, 2, 3, 4, dtype=d), weight(1, 5, 4, dtype=d), weight(2, 5, dtype=d)),
        saved=("weight",), leak=bias(2),
    ),
    Case(
        "share", fused.share, lambda x, share: x, lambda d: (carrying(0, 3, 4, dtype=d), 0.25),
        saved=(), leak=lambda arguments, value, gradient: 0.75 * (value * gradient).sum(),
    ),
    Case(
        "grouped_sdpa", fused.grouped_sdpa, lambda *args, **keywords: sdpa(*args, enable_gqa=True, **keywords),
        _attention(groups=1), None, None, NO_SHARES, frozenset(NO_SHARES),
    ),
)  # fmt: skip
"""Ops that `passes/fuse/fuse.py` puts in the place of several."""

BY_RULE: Mapping[str, tuple[contributions.RuleOps, dict[str, Any]]] = {
    "gamma": (contributions.GAMMA, {"gamma": 0.25}),
    "z_plus": (contributions.Z_PLUS, {}),
    "excitation": (contributions.EXCITATION, {}),
    "alpha_beta": (contributions.ALPHA_BETA, {"alpha": 2.0, "beta": 1.0, "epsilon": 0.1}),
    "z_box": (contributions.Z_BOX, {"low": torch.tensor(-4.0), "high": torch.full((4, 1), 4.0)}),
    "w_square": (contributions.W_SQUARE, {}),
    "flat": (contributions.FLAT, {}),
}


def _contribution_cases(rule: str) -> tuple[Case, ...]:
    """A rule on its three kinds of maps. What leaks stands in test_linear_rules.py."""
    ops, settings = BY_RULE[rule]
    bounds = [str(list(found.shape)) for found in settings.values() if isinstance(found, Tensor)]
    strided = {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2], "groups": 2}
    return (
        Case(
            f"linear_{rule}", ops.linear, F.linear,
            lambda d: (carrying(0, 2, 4, 4, dtype=d), weight(1, 5, 4, dtype=d), weight(2, 5, dtype=d)),
            ("bias", "input", "output", "weight", *bounds), None, settings, frozenset(settings),
        ),
        Case(
            f"convolution_{rule}", ops.convolution, F.conv2d,
            lambda d: (carrying(0, 2, 4, 4, 5, dtype=d), weight(1, 6, 2, 3, 2, dtype=d), weight(2, 6, dtype=d)),
            ("bias", "input", "output", "weight", *bounds), None, {**strided, **settings}, frozenset(settings),
        ),
        Case(
            f"matmul_{rule}", ops.matmul, torch.matmul,
            lambda d: (weight(0, 2, 3, 4, dtype=d), carrying(1, 4, 5, dtype=d)),
            ("other", "output", "self", *bounds), None, {"held": "self", **settings}, frozenset({"held", *settings}),
        ),
    )  # fmt: skip


LINEAR_RULES = tuple(case for rule in BY_RULE for case in _contribution_cases(rule))
"""Ops of rules that weigh the contributions of a linear map."""

CASES = {case.name: case for case in (*POINTWISE, *OTHERS, *FUSED, *LINEAR_RULES)}
