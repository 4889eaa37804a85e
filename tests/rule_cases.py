"""Tiny nets for the rules of the tables: at least one for each op that a rule lists."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from activation_cases import BY_NAME as CURVE
from activation_cases import INFINITE, Curve
from rule_nets import (
    A_SHARE,
    ABOVE_ONE,
    ANY,
    POSITIVE,
    SMALL,
    Case,
    Leak,
    attention_offset,
    bias,
    eighths,
    log_softmax_offset,
    logsumexp_offset,
    number,
    position_share,
    recurrent_leak,
    rotated,
    softmax_offset,
)  # fmt: skip
from torch import Tensor

from lxt_fx.ledger.causes import Cause
from lxt_fx.ops.aten_kinds import GROUPED_MATMULS, LOSSES
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import shares
from lxt_fx.rule_table.rule import GroupKind, Rule
from lxt_fx.rule_table.tables import TABLES

aten = torch.ops.aten


def activation(rule: Rule, op: Any, *settings: Any, values: str = ANY, leak: Leak | None = None, name: str = "") -> Case:
    """y = f(x) on [batch, tokens, hidden]."""
    cause = None if leak is None else (Cause.INTERCEPT, f"{str(op).split('.')[1]} at 0")
    return Case(rule, op, lambda net, a: op(a, *settings), values=values, leak=leak, name=name, cause=cause)


def _rms(a: Tensor) -> Tensor:
    return a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + 1e-6)


QKV = ((2, 2, 3, 4),) * 3
sdpa = F.scaled_dot_product_attention
SDPA = aten.scaled_dot_product_attention.default
CAUSAL = {"causal": torch.ones(())}
SOME = torch.tensor([[True, False, True], [True, True, False], [False, True, True]])

NORMS = (
    Case(basic.NORM, aten.rms_norm.default, lambda net, a: F.rms_norm(a, (4,), net.weight), constants={"weight": (4,)}),
    Case(basic.NORM, GroupKind.RMS_NORM, lambda net, a: _rms(a)),
    Case(basic.NORM, GroupKind.RMS_NORM, lambda net, a: net.weight * _rms(a), constants={"weight": (4,)}, name="weight"),
    Case(
        basic.NORM, aten.layer_norm.default, lambda net, a: F.layer_norm(a, (4,), net.weight, net.bias),
        constants={"weight": (4,), "bias": (4,)}, leak=bias, cause=(Cause.BIAS, "bias"),
    ),
    Case(basic.NORM, aten.layer_norm.default, lambda net, a: F.layer_norm(a, (3, 4)), name="two_dims_without_weight"),
    Case(
        basic.NORM, aten.group_norm.default, lambda net, a: F.group_norm(a, 2, net.weight, net.bias), ((2, 4, 3),),
        {"weight": (4,), "bias": (4,)}, leak=lambda net, inputs, c: c * net.bias[:, None], cause=(Cause.BIAS, "bias"),
    ),
    Case(
        basic.NORMALIZE, GroupKind.NORMALIZE,
        lambda net, a: (a - a.mean(-1, True)) * torch.rsqrt(a.var(-1, correction=0, keepdim=True) + 1e-6),
    ),
    Case(
        basic.NORMALIZE, GroupKind.NORMALIZE, lambda net, a: a * (a.square().sum(1, True) + 1e-3).pow(-0.5),
        name="over_tokens",
    ),
    Case(basic.NORMALIZE, GroupKind.NORMALIZE_QUOTIENT, lambda net, a: a / torch.sqrt(a.pow(2).mean(-1, True) + 1e-6)),
    Case(basic.NORMALIZE, GroupKind.NORMALIZE_QUOTIENT, lambda net, a: a / a.sum(-1, True), values=POSITIVE, name="router"),
)  # fmt: skip

ATTENTIONS = (
    Case(basic.ATTENTION, SDPA, lambda net, a, b, c: sdpa(a, b, c), QKV, leak=attention_offset(0.5)),
    Case(
        basic.ATTENTION, SDPA, lambda net, a, b, c: sdpa(a, b, c, is_causal=True), QKV, CAUSAL, name="causal",
        leak=attention_offset(0.5),
    ),
    Case(
        basic.ATTENTION, SDPA, lambda net, a, b, c: sdpa(a, b, c, net.mask), QKV, {"mask": SOME}, name="mask",
        leak=attention_offset(0.5),
    ),
    Case(
        basic.ATTENTION, SDPA, lambda net, a, b, c: sdpa(a, b, c, net.mask), QKV, {"mask": (3, 3)},
        name="added_constant_mask", leak=attention_offset(0.5),
    ),
    Case(
        basic.ATTENTION, SDPA, lambda net, a, b, c, d: sdpa(a, b, c, d), (*QKV, (2, 1, 3, 3)), name="carrying_mask",
        leak=attention_offset(0.5, bias_carries=True),
    ),
    Case(
        basic.ATTENTION, SDPA, lambda net, a, b, c: sdpa(a, b, c, enable_gqa=True), ((2, 4, 3, 4), *QKV[1:]),
        name="grouped",
        leak=attention_offset(0.5),
    ),
    Case(
        basic.ATTENTION, SDPA, lambda net, a, b: sdpa(a, b, net.v), QKV[1:], {"v": (2, 2, 3, 4)}, name="constant_values",
        resizes=False,
        leak=attention_offset(1.0),
    ),
    Case(
        basic.ATTENTION, SDPA, lambda net, a, b: sdpa(net.q, a, b), QKV[1:], {"q": (2, 2, 3, 4)}, name="constant_queries",
        resizes=False,
        leak=attention_offset(0.5),
    ),
    Case(
        basic.ATTENTION_LINEAR, SDPA, lambda net, a: sdpa(net.q, net.k, a), QKV[2:], {"q": (2, 2, 3, 4), "k": (2, 2, 3, 4)},
        resizes=False,
    ),
    Case(basic.ATTENTION_HELD, SDPA, lambda net, a, b, c: sdpa(a, b, c), QKV),
    Case(basic.ATTENTION_HELD, SDPA, lambda net, a, b, c: sdpa(a, b, c, net.mask), QKV, {"mask": (3, 3)}, name="mask"),
    Case(basic.SOFTMAX, aten.softmax.int, lambda net, a: torch.softmax(a, -1), leak=softmax_offset()),
    Case(basic.SOFTMAX, aten.softmax.int, lambda net, a: torch.softmax(a, 1), name="over_tokens", leak=softmax_offset(1)),
    Case(
        basic.SOFTMAX, aten.softmax.int, lambda net, a: torch.softmax(a.masked_fill(net.mask, -math.inf), -1), ((2, 3, 3),),
        {"mask": ~SOME}, name="masked", leak=softmax_offset(),
    ),
    Case(
        basic.LOG_SOFTMAX, aten.log_softmax.int, lambda net, a: torch.log_softmax(a, -1), values=SMALL,
        leak=log_softmax_offset, cause=(Cause.OFFSET, "log_softmax"),
    ),
    Case(
        basic.LOG_SOFTMAX, aten.logsumexp.default, lambda net, a: torch.logsumexp(a, -1), values=SMALL,
        leak=logsumexp_offset, cause=(Cause.OFFSET, "logsumexp"),
    ),
    Case(
        basic.ATTENTION_WEIGHTS_HELD, aten.softmax.int, lambda net, a, b, c: torch.softmax(a @ b.mT, -1) @ c, QKV,
        values=SMALL,
    ),
)  # fmt: skip

TEMPERATURE = TABLES["gim"].rules[0]
FUSED_SHARES, SCORES_SHARES, VALUES_SHARES, GATE_SHARES = TABLES["dpa"].rules[:4]


def _written(net: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """An attention in single ops."""
    return torch.softmax(a @ b.mT / 2, -1) @ c


def _by_einsum(net: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    weights = torch.softmax(torch.einsum("bhid,bhjd->bhij", a, b) / 2, -1)
    return torch.einsum("bhij,bhjd->bhid", weights, c)


BY_NUMBERS = (
    Case(
        TEMPERATURE, SDPA, lambda net, a, b, c: sdpa(a, b, c), QKV, leak=attention_offset(0.5, temperature=2.0),
        cause=(Cause.OFFSET, "softmax"),
    ),
    Case(
        TEMPERATURE, SDPA, lambda net, a, b, c: sdpa(a, b, c, is_causal=True), QKV, CAUSAL, name="causal",
        leak=attention_offset(0.5, temperature=2.0),
    ),
    Case(
        TEMPERATURE, SDPA, lambda net, a, b, c: sdpa(a, b, c, net.mask), QKV, {"mask": SOME}, name="mask",
        leak=attention_offset(0.5, temperature=2.0),
    ),
    Case(
        TEMPERATURE, SDPA, lambda net, a, b, c: sdpa(a, b, c, net.mask), QKV, {"mask": (3, 3)}, name="added_constant_mask",
        leak=attention_offset(0.5, temperature=2.0),
    ),
    Case(
        TEMPERATURE, SDPA, lambda net, a, b, c: sdpa(a, b, c, enable_gqa=True), ((2, 4, 3, 4), *QKV[1:]), name="grouped",
        leak=attention_offset(0.5, temperature=2.0),
    ),
    Case(
        TEMPERATURE, aten.softmax.int, lambda net, a: torch.softmax(a, 1), name="over_tokens",
        leak=softmax_offset(1, 2.0), cause=(Cause.OFFSET, "softmax"),
    ),
    Case(
        TEMPERATURE, aten.softmax.int, lambda net, a: torch.softmax(a.masked_fill(net.mask, -math.inf), -1), ((2, 3, 3),),
        {"mask": ~SOME}, name="masked", leak=softmax_offset(-1, 2.0),
    ),
    Case(FUSED_SHARES, SDPA, lambda net, a, b, c: sdpa(a, b, c), QKV, leak=attention_offset(0.5)),
    *(
        Case(rule, op, written, QKV, values=SMALL)
        for rule in (SCORES_SHARES, VALUES_SHARES)
        for op, written in ((aten.matmul.default, _written), (aten.einsum.default, _by_einsum))
    ),
    Case(GATE_SHARES, aten.mul.Tensor, lambda net, a, b: F.silu(a) * b, ((2, 3, 4),) * 2),
    Case(GATE_SHARES, aten.mul.Tensor, lambda net, a, b: b * F.silu(a), ((2, 3, 4),) * 2, name="second"),
    Case(
        basic.POSITION, aten.mul.Tensor, lambda net, a, b, c: sdpa(rotated(net, a), b, c), QKV,
        {"cos": eighths(5, 8, -3, 2), "sin": eighths(6, 1, 7, -7)}, leak=position_share, cause=(Cause.POSITION, ""),
    ),
    Case(shares.NATIVE_ACTIVATION, aten.silu.default, lambda net, a: F.silu(a)),
    Case(shares.NATIVE_REGION, GroupKind.ELEMENTWISE, lambda net, a: a * torch.sigmoid(1.702 * a)),
)  # fmt: skip

PRODUCTS = (
    Case(basic.MATMUL, aten.matmul.default, lambda net, a, b: a @ b, ((2, 3, 4), (2, 4, 5))),
    Case(basic.MATMUL, aten.matmul.default, lambda net, a, b: a @ b, ((2, 5, 3, 4), (4, 2)), name="broadcast"),
    Case(basic.MATMUL, aten.matmul.default, lambda net, a, b: a @ b, ((3, 4), (4,)), name="vector", resizes=False),
    Case(basic.EINSUM, aten.einsum.default, lambda net, a, b: torch.einsum("bij,bjk->bik", a, b), ((2, 3, 4), (2, 4, 5))),
    Case(
        basic.EINSUM, aten.einsum.default, lambda net, a, b, c: torch.einsum("bi,ij,bj->b", a, b, c),
        ((2, 3), (3, 4), (2, 4)), name="of_three",
    ),
    Case(basic.UNIFORM, aten.mul.Tensor, lambda net, a, b: a * b, ((2, 3, 4),) * 2),
    Case(basic.UNIFORM, aten.mul.Tensor, lambda net, a, b: a * b, ((2, 3, 4), (3, 1)), name="broadcast"),
    Case(basic.UNIFORM, aten.div.Tensor, lambda net, a, b: a / b, ((2, 3, 4),) * 2, values=POSITIVE),
    Case(
        basic.UNIFORM, aten.div.Tensor, lambda net, a, b: a / b, ((2, 3, 4), (2, 1, 4)), values=POSITIVE, name="broadcast"
    ),
    Case(basic.GATE_HELD, aten.mul.Tensor, lambda net, a, b: F.silu(a) * b, ((2, 3, 4),) * 2),
    Case(basic.GATE_HELD, aten.mul.Tensor, lambda net, a, b: b * (2 * torch.sigmoid(a)), ((2, 3, 4),) * 2, name="second"),
    Case(basic.PARAMETER_HELD, aten.mul.Tensor, lambda net, a, b: a * torch.sigmoid(b), ((2, 3, 4),) * 2),
    Case(
        basic.PARAMETER_HELD, aten.mul.Tensor, lambda net, a, b: torch.exp(b).mT * a.mT, ((2, 3, 4),) * 2, values=SMALL,
        name="decay",
    ),
    Case(basic.PARAMETER_HELD, aten.div.Tensor, lambda net, a, b: a / F.softplus(b), ((2, 3, 4),) * 2, values=SMALL),
    Case(basic.PARAMETER_HELD, aten.matmul.default, lambda net, a, b: torch.sigmoid(a) @ b, ((2, 3, 4), (2, 4, 5))),
    Case(
        basic.PARAMETER_HELD, aten.einsum.default, lambda net, a, b: torch.einsum("btj,bjd->btd", a, torch.sigmoid(b)),
        ((2, 3, 4), (2, 4, 5)),
    ),
    Case(
        basic.LINEAR, aten.linear.default, lambda net, a: F.linear(a, net.weight, net.bias),
        constants={"weight": (5, 4), "bias": (5,)}, leak=bias, cause=(Cause.BIAS, "bias"),
    ),
    Case(
        basic.LINEAR, aten.linear.default, lambda net, a: F.linear(a, net.weight), constants={"weight": (5, 4)},
        name="no_bias",
    ),
    Case(basic.MATMUL_LINEAR, aten.matmul.default, lambda net, a: a @ net.weight, constants={"weight": (4, 5)}),
    Case(
        basic.MATMUL_LINEAR, aten.matmul.default, lambda net, a: net.weight @ a, constants={"weight": (5, 3)}, name="left"
    ),
    Case(
        basic.LINEAR_NATIVE, aten.einsum.default, lambda net, a: torch.einsum("btd,de->bte", a, net.weight),
        constants={"weight": (4, 5)},
    ),
    Case(
        basic.LINEAR_NATIVE, aten.addmm.default, lambda net, a: torch.addmm(net.bias, a, net.weight), ((2, 4),),
        {"weight": (4, 5), "bias": (2, 5)}, leak=bias, cause=(Cause.BIAS, "bias"),
    ),
    Case(
        basic.LINEAR_NATIVE, aten.addmm.default, lambda net, a: torch.addmm(net.bias, a, net.weight, beta=0.5, alpha=-2),
        ((2, 4),), {"weight": (4, 5), "bias": (5,)}, name="factors", leak=lambda net, x, c: c * net.bias / 2,
        cause=(Cause.BIAS, "bias"),
    ),
    *(
        Case(
            basic.LINEAR_NATIVE, op, lambda net, a, op=op: op(a, net.weight, net.ends), ((8, 16),),  # type: ignore[misc]
            {"weight": (2, 16, 8), "ends": torch.tensor([3, 8], dtype=torch.int32)}, dtype=torch.float32, tolerance=1e-4,
        )
        for op in sorted(GROUPED_MATMULS, key=str)  # in float32, which torch's has no wider one than
    ),
    Case(
        basic.LINEAR_NATIVE, aten.stft.default,
        lambda net, a: torch.view_as_real(aten.stft.default(a, 4, 2, 4, net.window, False, True, True)), ((2, 8),),
        {"window": eighths(3, 8, 8, 3)}, resizes=False,
    ),
    Case(
        basic.LINEAR_NATIVE, aten.istft.default,
        lambda net, a: torch.istft(torch.view_as_complex(a), 4, 2, window=net.window), ((3, 4, 2),),
        {"window": eighths(3, 8, 8, 3)}, resizes=False,
    ),
    Case(
        basic.SOLVE_LINEAR, aten.linalg_solve.default, lambda net, a: torch.linalg.solve(net.matrix, a), ((3, 4),),
        {"matrix": eighths(16, 3, -5, 2, 24, 1, 8, -8, 20).reshape(3, 3)}, resizes=False,
    ),
    Case(basic.SCALE, aten.mul.Tensor, lambda net, a: a * net.weight, constants={"weight": (3, 1)}, name="weight"),
    Case(basic.SCALE, aten.mul.Tensor, lambda net, a: -2.5 * a, name="number"),
    Case(basic.SCALE_DIV, aten.div.Tensor, lambda net, a: a / 8, name="number"),
    Case(
        basic.SCALE_DIV, aten.div.Tensor, lambda net, a: a / (net.weight.abs() + 1), constants={"weight": (4,)},
        name="weight",
    ),
    Case(
        basic.BATCH_NORM, aten.batch_norm.default,
        lambda net, a: F.batch_norm(a, net.mean, net.variance, net.weight, net.bias), ((2, 3, 4),),
        {"mean": eighths(-3, 0, 5), "variance": eighths(1, 8, 30), "weight": (3,), "bias": (3,)},
        leak=lambda net, x, c: c * (net.bias - net.mean * net.weight / (net.variance + 1e-5).sqrt())[:, None],
    ),
)  # fmt: skip

LOG2 = math.log(2)
BETWEEN = {(0.0, math.inf): POSITIVE, (1.0, math.inf): ABOVE_ONE, (0.0, 1.0): A_SHARE}


def _by_curve(rule: Rule) -> tuple[Case, ...]:
    """Each op of an identity rule as `activation_cases` has it; those whose f(0) is infinite and takes nothing apart."""
    names = {op: str(op).split(".")[1] for op in rule.ops}
    curves = [(op, CURVE[name]) for op, name in names.items() if name not in INFINITE]
    return tuple(
        activation(
            rule, op, *(curve.settings if _has_to_be_set(op) else ()), values=curve.where,
            leak=_share_of_zero(curve) if curve.at_zero else None,
        )
        for op, curve in curves
    )  # fmt: skip


def _has_to_be_set(op: Any) -> bool:
    return any(not argument.has_default_value() for argument in op._schema.arguments[1:])


def _share_of_zero(curve: Curve) -> Leak:
    if curve.name == "hardsigmoid":  # a closed gate has nothing to share
        return lambda net, x, c: c * curve.at_zero * (x[0] > -3)
    return number(curve.at_zero)


ACTIVATIONS = (
    *_by_curve(basic.IDENTITY),
    *(
        activation(basic.IDENTITY, getattr(aten, name).default, values=BETWEEN[bounds])
        for name, bounds in INFINITE.items()
    ),
    activation(basic.IDENTITY_POWER, aten.pow.Tensor_Scalar, -0.75, values=POSITIVE, name="below_0"),
    Case(
        basic.IDENTITY_PIECEWISE, aten.prelu.default, lambda net, a: F.prelu(a, net.weight), constants={"weight": (3,)},
    ),
    activation(basic.IDENTITY, aten.leaky_relu.default, -0.3, name="negative"),
    Case(basic.IDENTITY, aten.gelu.default, lambda net, a: F.gelu(a, approximate="tanh"), name="by_tanh"),
    activation(basic.IDENTITY, aten.elu.default, 1.6732632423543772, 1.0507009873554805, 0.5, name="alpha_and_scales"),
    activation(basic.IDENTITY_POWER, aten.pow.Tensor_Scalar, 2, name="square"),
    activation(basic.IDENTITY_POWER, aten.pow.Tensor_Scalar, 3.0, name="cube"),
    activation(basic.IDENTITY_CLAMP, aten.hardtanh.default),
    Case(basic.IDENTITY_CLAMP, aten.hardtanh.default, lambda net, a: F.relu6(a), name="relu6"),
    *_by_curve(basic.IDENTITY_FROM_ZERO),
    Case(
        basic.IDENTITY_BASE, aten.pow.Scalar, lambda net, a: 2**a, values=SMALL, leak=number(1.0),
        cause=(Cause.INTERCEPT, "exp_base at 0"),
    ),
    Case(
        basic.IDENTITY_BASE, aten.pow.Scalar, lambda net, a: 0.3**a, values=SMALL, leak=number(1.0), name="below_1",
        cause=(Cause.INTERCEPT, "exp_base at 0"),
    ),
    activation(basic.IDENTITY_SOFTPLUS, aten.softplus.default, leak=number(LOG2)),
    Case(basic.IDENTITY_REGION, GroupKind.ELEMENTWISE, lambda net, a: a * torch.sigmoid(1.702 * a)),
    Case(
        basic.IDENTITY_REGION, GroupKind.ELEMENTWISE, lambda net, a: torch.exp(-a) + torch.tanh(a), values=SMALL,
        name="not_0_at_0", leak=number(1.0), cause=(Cause.INTERCEPT, "written-out activation at 0"),
    ),
)  # fmt: skip

CLAIMING_NOTHING = (
    Case(basic.SOFT_CAP_NATIVE, aten.tanh.default, lambda net, a: torch.tanh(a / 3) * 3),
    Case(basic.ROUTER_NATIVE, aten.div.Tensor, lambda net, a: a / a.sum(-1, True), values=POSITIVE),
    Case(basic.NATIVE, aten.silu.default, lambda net, a: F.silu(a)),
    Case(basic.NATIVE, aten.mul.Tensor, lambda net, a, b: a * b, ((2, 3, 4), (3, 1))),
    Case(basic.NATIVE, aten.layer_norm.default, lambda net, a: F.layer_norm(a, (4,))),
    Case(basic.NATIVE, SDPA, lambda net, a, b, c: sdpa(a, b, c), QKV),
    Case(basic.NATIVE, aten.sort.default, lambda net, a: torch.sort(a)[0]),
    Case(
        basic.NATIVE, aten.linear.default, lambda net, a: F.linear(a, net.weight, net.bias),
        constants={"weight": (5, 4), "bias": (5,)}, cause=(Cause.BIAS, "bias"), name="with_bias",
    ),
    Case(basic.NATIVE, aten.softmax.int, lambda net, a: torch.softmax(a, -1)),
)  # fmt: skip



def _recurrent(op: Any) -> Case:
    """A recurrence of 2 steps on [batch, 2, 3], or a cell, with first states [batch, 2]; its outputs."""
    name, is_cell = str(op).split(".")[1], str(op).split(".")[1].endswith("_cell")
    gates = {"lstm": 4, "gru": 3}.get(name.split("_")[0], 1)

    def forward(net: Any, a: Tensor, *states: Tensor) -> Any:
        weights = [net.w, net.u, net.b, net.c]
        found: Any = op(*_recurrent_arguments(op, a, states, weights))
        y = found if isinstance(found, Tensor) else found[0]
        return y.unflatten(0, (2, -1)).transpose(0, 1) if str(op).endswith(".data") else y

    shapes = ((2, 3) if is_cell else (2, 2, 3), *((2, 2),) * (2 if gates == 4 else 1))
    constants = {"w": (gates * 2, 3), "u": (gates * 2, 2), "b": (gates * 2,), "c": (gates * 2,)}
    return Case(
        basic.GATED_RECURRENCE, op, forward, shapes, constants, values=SMALL, leak=recurrent_leak(op), resizes=False,
        cause=(Cause.BIAS, f"biases of lxt_fx.{name}{'_packed' if str(op).endswith('.data') else ''}"),
    )  # fmt: skip


def _recurrent_arguments(op: Any, a: Tensor, states: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Any, ...]:
    name = str(op).split(".")[1]
    if name.endswith("_cell"):
        return (a, list(states) if len(states) == 2 else states[0], *weights)
    hx: Any = [state[None] for state in states]
    settings = (hx if len(hx) == 2 else hx[0], weights, True, 1, 0.0, False, False)
    if str(op).endswith(".input"):
        return (a, *settings, True)
    return (a.transpose(0, 1).flatten(0, 1), torch.tensor([len(a), len(a)]), *settings)


RECURRENCES = (
    *map(_recurrent, basic.GATED_RECURRENCE.ops),
    Case(
        basic.SOLVE, aten.linalg_solve_triangular.default, lambda net, a, b: torch.linalg.solve_triangular(
            a.tril(-1), b, upper=False, unitriangular=True
        ), ((2, 3, 3), (2, 3, 4)), values=SMALL,
    ),
)  # fmt: skip

CASES = (*NORMS, *ATTENTIONS, *BY_NUMBERS, *PRODUCTS, *ACTIVATIONS, *RECURRENCES, *CLAIMING_NOTHING)
"""For the rules with a formula of their own, and for those that claim nothing."""

_OWN = "a Function of the user, whose formula is its own; tests/test_autograd_functions.py"
_SPLICED = "an op that splice puts into a graph, where relevance ends; tests/test_splice.py"
NOT_REACHED = {
    "move: aten.to.device": "a move to another device, where one CPU is; a move to the same one is dropped",
    "move: lxt_fx.exempt.default": "x itself, but under autocast; tests/test_autocast.py",
    "own backward: lxt_fx.own_backward.default": _OWN,
    "own backward: lxt_fx.own_backward_of_several.default": _OWN,
    "source: lxt_fx.source.default": _SPLICED,
    "source: lxt_fx.reconstruction_error.default": _SPLICED,
    **{f"loss: {op}": "a loss, with torch's own gradient; tests/test_labels.py" for op in LOSSES},
}
"""Ops that rules list and no net on one CPU has."""
