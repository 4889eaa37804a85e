"""The slow loop of every rule, for the nets of rule_cases: relevance of each input, given that of the outputs.

A reference takes a net as it is (a plain module or function of tensors), its inputs and the relevance of its outputs.
Where a rule is eq. 8 of AttnLRP the weights are read off the net, one input element after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import paper_loops as paper
import torch
from activation_cases import INFINITE
from rule_cases import CASES as OWN_CASES
from rule_cases import FUSED_SHARES, GATE_SHARES, SCORES_SHARES, TEMPERATURE, VALUES_SHARES
from rule_cases_linear import CASES as LINEAR_CASES
from rule_nets import Case, Inputs, recurrent_relevance, rotated
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import shares
from lxt_fx.rule_table.rule import Rule

Function = Callable[..., Any]
Run = Callable[[Function, Inputs, list[Tensor]], list[Tensor]]


@dataclass(frozen=True, slots=True)
class Reference:
    """Relevance of each input of a net, [its shape] in float64, by loops over Python floats; `loop` names them."""

    loop: str
    run: Run

    def __call__(self, net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
        return self.run(net, inputs, r)


STEP = 2.0**-17
"""Of difference quotients; inputs are whole multiples of 8 steps, so that a selection does not change."""


def floats(outputs: Any) -> list[Tensor]:
    """The floating-point tensors of a net's output."""
    return [output for output in tree_leaves(outputs) if output.is_floating_point()]


def flat(tensors: list[Tensor]) -> list[float]:
    """All elements, in order."""
    return [number for tensor in tensors for number in tensor.double().flatten().tolist()]


def by_weights(*carrying: int, step: float = 1.0, loop: Callable[..., paper.Vector] = paper.by_contribution) -> Reference:
    """A loop for linear maps on the weights that the net has for the inputs at these positions, or for all; the others are
    constants and get nothing."""

    def found(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
        chosen = carrying or tuple(range(len(inputs)))
        sizes = [inputs[position].numel() for position in chosen]

        def function(numbers: paper.Vector) -> paper.Vector:
            given = list(inputs)
            parts = torch.tensor(numbers, dtype=torch.float64).split(sizes)
            for position, part in zip(chosen, parts, strict=True):
                given[position] = part.reshape(inputs[position].shape).to(inputs[position].dtype)
            with torch.no_grad():
                return flat(floats(net(*given)))

        x = flat([inputs[position] for position in chosen])
        passed = torch.tensor(loop(x, paper.read_off(function, x, step), flat(r)), dtype=torch.float64).split(sizes)
        relevances = [torch.zeros(x.shape, dtype=torch.float64) for x in inputs]
        for position, part in zip(chosen, passed, strict=True):
            relevances[position] = part.reshape(inputs[position].shape)
        return relevances

    named: Any = getattr(loop, "func", loop)
    return Reference(f"{named.__module__}.{named.__name__}", found)


by_gradient = by_weights(step=STEP)
"""x_i dz_j/dx_i R_j / z_j by difference quotients: what a piecewise linear selection is, and the native gradient."""


def _same(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
    """R_in = R_out, element by element."""
    return [r[0].double()]


def _nothing(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
    """No relevance passes."""
    return [torch.zeros(x.shape, dtype=torch.float64) for x in inputs]


def _identity(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
    """R_in = R_out (y - f(0)) / y: eq. 9, and eq. 8 for the constant f(0)."""
    y, at_zero = flat([net(*inputs)]), flat([net(*(torch.zeros_like(x) for x in inputs))])
    passed = [paper.ratio(yi - zero, yi, ri) for yi, zero, ri in zip(y, at_zero, flat(r), strict=True)]
    return [torch.tensor(passed, dtype=torch.float64).reshape(inputs[0].shape)]


def held_norm(size: int, *, channels: bool = False, eps: float = 1e-5) -> Reference:
    """A norm that subtracts the mean of `size` elements that follow each other; weight and bias are those of the net, by
    channel or for the last dims."""

    def found(net: Any, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
        x, found = inputs[0], []
        constants = [_spread(getattr(net, n, None), x, channels, start) for n, start in (("weight", 1.0), ("bias", 0.0))]
        runs = zip(*(t.detach().reshape(-1, size).tolist() for t in (x, *constants, r[0])), strict=True)
        for numbers, weights, bias, relevance in runs:
            found.append(paper.held_norm(numbers, weights, bias, eps, relevance))
        return [torch.tensor(found, dtype=torch.float64).reshape(x.shape)]

    return Reference("paper_loops.held_norm", found)


def _spread(constant: Tensor | None, x: Tensor, channels: bool, start: float) -> Tensor:
    if constant is None:
        return torch.full_like(x, start)
    return (constant[:, None] if channels else constant).expand(x.shape)


def softmax(
    dim: int, scores: Callable[..., Tensor] = lambda net, x: x, loop: Callable[..., paper.Vector] = paper.softmax
) -> Reference:
    """Prop. 3.1 for each vector along `dim`; `scores` says what the softmax is taken of."""

    def found(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
        x = scores(net, *inputs).movedim(dim, -1)
        vectors = zip(x.reshape(-1, x.shape[-1]).tolist(), _vectors(r[0], dim), strict=True)
        passed = torch.tensor([loop(v, rv) for v, rv in vectors], dtype=torch.float64)
        return [passed.reshape(x.shape).movedim(-1, dim)]

    named: Any = getattr(loop, "func", loop)
    return Reference(f"paper_loops.{named.__name__}", found)


def _log_softmax(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
    """The Taylor expansion, for each vector of the last dim."""
    vectors = zip(_vectors(inputs[0], -1), _vectors(r[0], -1), strict=True)
    return [torch.tensor([paper.log_softmax(v, rv) for v, rv in vectors], dtype=torch.float64).reshape(inputs[0].shape)]


def _logsumexp(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
    """The same for the sum's logarithm."""
    vectors = zip(_vectors(inputs[0], -1), flat(r), strict=True)
    return [torch.tensor([paper.logsumexp(v, rv) for v, rv in vectors], dtype=torch.float64).reshape(inputs[0].shape)]


def _vectors(x: Tensor, dim: int) -> list[list[float]]:
    moved = x.double().movedim(dim, -1)
    found: list[list[float]] = moved.reshape(-1, moved.shape[-1]).tolist()
    return found


def _attention(net: Any, inputs: Inputs, r: list[Tensor], temperature: float = 1.0) -> list[Tensor]:
    """Prop. 3.3, 3.1, 3.3 for each head of [batch, heads, tokens, width]; a fourth input is a mask that carries."""
    q, k, v = inputs[:3]
    mask = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    given = inputs[3] if len(inputs) == 4 else getattr(net, "mask", None)
    given = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril() if hasattr(net, "causal") else given
    if given is not None:
        mask = mask + (torch.where(given, 0.0, -math.inf) if given.dtype is torch.bool else given.detach())
    found = [torch.zeros(x.shape, dtype=torch.float64) for x in inputs]
    for b, h in product(range(q.shape[0]), range(q.shape[1])):
        shared = h * k.shape[1] // q.shape[1]
        heads = [x[b, index].tolist() for x, index in ((q, h), (k, shared), (v, shared))]
        parts = paper.attention(*heads, 1 / math.sqrt(q.shape[3]), mask[b, h].tolist(), r[0][b, h].tolist(), temperature)
        for total, part, index in zip(found, parts, (h, shared, shared, 0), strict=False):
            total[b, index] += torch.tensor(part, dtype=torch.float64)
    return found


def _rotated_attention(net: Any, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
    """Attention, then eq. 8 through the rotation of the queries, of which half goes on."""
    q, *others = inputs
    of_rotated, *rest = _attention(net, (rotated(net, q), *others), r)
    (passed,) = by_weights()(lambda x: rotated(net, x), (q,), [of_rotated])
    return [passed / 2, *rest]


def contraction(equation: str, epsilon: float = 0.0, signed: bool = True) -> Reference:
    """A matmul or einsum of inputs that all carry."""

    def found(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
        passed = paper.contraction(equation, [_cells(x) for x in inputs], _cells(r[0]), epsilon, signed)
        pairs = zip(inputs, passed, strict=True)
        return [torch.tensor(list(cells.values()), dtype=torch.float64).reshape(x.shape) for x, cells in pairs]

    return Reference("paper_loops.contraction", found)


def _cells(x: Tensor) -> paper.Cells:
    return dict(zip(product(*map(range, x.shape)), x.double().flatten().tolist(), strict=True))


def _uniform(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
    """An equal part to each input, which are broadcast."""
    places = [torch.arange(x.numel()).reshape(x.shape).expand(r[0].shape).flatten().tolist() for x in inputs]
    passed = paper.uniform([x.numel() for x in inputs], places, flat(r))
    return [torch.tensor(part, dtype=torch.float64).reshape(x.shape) for x, part in zip(inputs, passed, strict=True)]


def taylor(reference: float, bias: bool) -> Reference:
    """First-order Taylor decomposition at a point of equal numbers."""
    return Reference("paper_loops.taylor", partial(_taylor, reference=reference, bias=bias))


def _taylor(net: Function, inputs: Inputs, r: list[Tensor], reference: float, bias: bool) -> list[Tensor]:
    shape = inputs[0].shape

    def function(numbers: paper.Vector) -> paper.Vector:
        return flat([net(torch.tensor(numbers, dtype=torch.float64).reshape(shape))])

    x = flat([inputs[0]])
    passed = paper.taylor(function, x, [reference] * len(x), flat(r), bias, STEP)
    return [torch.tensor(passed, dtype=torch.float64).reshape(shape)]


def recurrence(op: Any) -> Reference:
    """The rule of Arras et al. 2017, step by step."""

    def found(net: Function, inputs: Inputs, r: list[Tensor]) -> list[Tensor]:
        return recurrent_relevance(op, net, inputs, r[0].double())

    return Reference("recurrent_loops.recurrence", found)


same = Reference("R_in = R_out", _same)
nothing = Reference("R_in = 0", _nothing)
identity = Reference("paper_loops.ratio", _identity)
attention = Reference("paper_loops.attention", _attention)
uniform = Reference("paper_loops.uniform", _uniform)

at_temperature_2 = partial(paper.softmax_at, temperature=2.0)

BY_RULE: dict[Rule, Reference] = {
    TEMPERATURE: Reference("paper_loops.softmax_at", partial(_attention, temperature=2.0)),
    **dict.fromkeys((FUSED_SHARES, SCORES_SHARES, VALUES_SHARES), attention),
    GATE_SHARES: uniform,
    basic.POSITION: Reference("paper_loops.attention, by_contribution", _rotated_attention),
    shares.NATIVE_ACTIVATION: by_gradient,
    shares.NATIVE_REGION: by_gradient,
    basic.NORM: same,
    basic.NORMALIZE: same,
    basic.ATTENTION: attention,
    basic.ATTENTION_LINEAR: by_weights(0),
    basic.ATTENTION_HELD: by_weights(2),
    basic.ATTENTION_WEIGHTS_HELD: by_weights(2),
    basic.SOFTMAX: softmax(-1),
    **dict.fromkeys((basic.IDENTITY, basic.IDENTITY_POWER, basic.IDENTITY_CLAMP, basic.IDENTITY_FROM_ZERO), identity),
    **dict.fromkeys((basic.IDENTITY_BASE, basic.IDENTITY_SOFTPLUS, basic.IDENTITY_REGION), identity),
    basic.IDENTITY_PIECEWISE: by_weights(0, step=STEP),
    basic.LOG_SOFTMAX: Reference("paper_loops.log_softmax", _log_softmax),
    basic.SUM_BY_INDEX: by_weights(),
    basic.SAMPLE: by_weights(0),
    basic.SELECT_BY_INDEX: by_gradient,
    basic.UNIFORM: uniform,
    basic.GATE_HELD: by_weights(1),
    basic.PARAMETER_HELD: by_weights(0),
    basic.SOLVE: by_weights(1),
    **dict.fromkeys((basic.LINEAR, basic.CONVOLUTION, basic.MATMUL_LINEAR, basic.LINEAR_NATIVE), by_weights()),
    **dict.fromkeys((basic.SCALE, basic.SCALE_DIV, basic.BATCH_NORM, basic.SUM, basic.MOVE), by_weights()),
    basic.SOLVE_LINEAR: by_weights(),
    **dict.fromkeys((basic.SELECT, basic.SOFT_CAP_NATIVE, basic.ROUTER_NATIVE, basic.NATIVE), by_gradient),
}
"""What the cases of a rule follow, but for those named below."""

BY_TITLE: dict[str, Reference] = {
    "norm-layer_norm": held_norm(4),
    "norm-layer_norm-two_dims_without_weight": held_norm(12),
    "norm-group_norm": held_norm(6, channels=True),
    "normalize-group_x_*_statistic": held_norm(4, eps=1e-6),
    "softmax-softmax.int-over_tokens": softmax(1),
    "softmax_at_a_temperature-softmax.int-over_tokens": softmax(1, loop=at_temperature_2),
    "softmax_at_a_temperature-softmax.int-masked": softmax(
        -1, lambda net, x: x.masked_fill(net.mask, -math.inf), at_temperature_2
    ),
    "softmax-softmax.int-masked": softmax(-1, lambda net, x: x.masked_fill(net.mask, -math.inf)),
    **{f"identity-{name}": same for name in INFINITE},
    "identity-pow.Tensor_Scalar-below_0": same,
    "log_softmax-logsumexp": Reference("paper_loops.logsumexp", _logsumexp),
    "matmul-matmul": contraction("bij,bjk->bik"),
    "matmul-matmul-broadcast": contraction("abij,jk->abik"),
    "matmul-matmul-vector": contraction("ij,j->i"),
    "einsum-einsum": contraction("bij,bjk->bik"),
    "einsum-einsum-of_three": contraction("bi,ij,bj->b"),
    "parameter_held-matmul": by_weights(1),
    "move-getitem-of_max": by_gradient,
}

LEFT_OUT = frozenset(
    {
        "attention-scaled_dot_product_attention-constant_values",
        "attention-scaled_dot_product_attention-constant_queries",
    }
)
"""Attention with an operand that carries nothing: the papers do not say who gets its share."""

REFERENCES: dict[str, tuple[Case, Reference]] = {
    case.title: (case, BY_TITLE.get(case.title) or BY_RULE[case.rule])
    for case in (*OWN_CASES, *LINEAR_CASES)
    if case.title not in LEFT_OUT and (case.title in BY_TITLE or case.rule in BY_RULE)
} | {
    case.title: (case, recurrence(case.op)) for case in OWN_CASES if case.rule is basic.GATED_RECURRENCE
}
"""Each net of rule_cases that has a slow loop."""
