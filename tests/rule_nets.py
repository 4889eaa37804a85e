"""What a case for a rule is: a tiny net with one call of an op, and the relevance that this call absorbs, stated anew from
the paper and not by `lxt_fx.ledger.claimed`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import recurrent_loops as loops
import torch
from torch import Tensor, nn

from lxt_fx.ledger.causes import Cause
from lxt_fx.rule_table.rule import Rule, kind_text

Inputs = tuple[Tensor, ...]
Leak = Callable[[nn.Module, Inputs, Tensor], Tensor]
"""The relevance that the op under test absorbs, from the net, its inputs and the gradient c of its output: in the shape of
the output, so that each element stands where it is absorbed, or [batch]."""

ANY, NOT_NEGATIVE, POSITIVE, SMALL, EIGHTHS, BELOW_ONE = "any", "not negative", "positive", "small", "eighths", "below 1"
ABOVE_ONE, A_SHARE = "above 1", "between 0 and 1"
"""Where the values of the inputs come from: up to 4 in size, zeros and millionths among them, all times 1e-3, 1 or 1e3;
small ones are not multiplied by 1e3, eighths (which meet the constants, and are exact in float32) not at all."""


def in_domain(x: Tensor, values: str) -> Tensor:
    """Any numbers, moved to where a function is defined from 1 on, or between 0 and 1 only; as they are for others."""
    if values == A_SHARE:
        return 0.125 + 0.75 * x.abs() / (1 + x.abs())
    return 1.25 + x.abs() if values == ABOVE_ONE else x


@dataclass(frozen=True, slots=True)
class Case:
    """A net with one call of `op` under `rule`.

    `forward` takes the net, which holds the constants, and inputs of these shapes. A constant given as a shape is drawn for
    each example; one given as a tensor stays. `leak` is None where the rule's `conserves` says it. `cause` is that of the
    leak in the ledger, and how its name there ends. A net that resizes is tried on other sizes too, where it takes them.
    """

    rule: Rule
    op: Any
    forward: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...] = ((2, 3, 4),)
    constants: Mapping[str, Any] = field(default_factory=dict)
    values: str = ANY
    name: str = ""
    leak: Leak | None = None
    cause: tuple[Cause, str] | None = None
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-9
    resizes: bool = True

    @property
    def title(self) -> str:
        """Rule, op and what is special, as the name of a test."""
        op = kind_text(self.op).replace("aten.", "").replace(".default", "")
        return "-".join(part for part in (self.rule.name, op, self.name) if part).replace(" ", "_")


class Net(nn.Module):
    """The net of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        for name, constant in case.constants.items():
            if isinstance(constant, Tensor):
                self.register_buffer(name, constant)
            else:
                self.register_parameter(name, nn.Parameter(torch.zeros(constant, dtype=case.dtype)))
        self.redraw(0)

    def redraw(self, seed: int) -> None:
        """Other parameters: eighths, as inputs may be, so that they meet; a quarter of them 0; one seed in four large."""
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            drawn = torch.where(drawn.abs() < 0.3, 0.0, (8 * drawn).round() / 8) * (128.0 if seed % 4 == 3 else 1.0)
            parameter.data.copy_(drawn)

    def forward(self, a: Tensor, b: Tensor | None = None, c: Tensor | None = None, d: Tensor | None = None) -> Any:
        return self.case.forward(self, *(x for x in (a, b, c, d) if x is not None))


def eighths(*numerators: int) -> Tensor:
    """A vector of constants."""
    return torch.tensor(numerators, dtype=torch.float64) / 8


def bias(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
    """<bias, g>: the bias is added to the last dim."""
    return c * net.bias


def number(at_zero: float) -> Leak:
    """f(0) at each element."""
    return lambda net, inputs, c: c * at_zero


def softmax_offset(dim: int = -1, temperature: float = 1.0) -> Leak:
    """sum_j R_j - sum_i R_i with R_i = x_i (R_i - s_i sum_j R_j), each vector in a slow loop (AttnLRP prop. 3.1)."""

    def leak(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
        x, mask = inputs[0], getattr(net, "mask", None)
        x = x if mask is None else x.masked_fill(mask, -math.inf)
        vectors = zip(
            x.movedim(dim, -1).reshape(-1, x.shape[dim]), c.movedim(dim, -1).reshape(-1, x.shape[dim]), strict=True
        )
        absorbed = torch.stack([_offset(v.tolist(), g.tolist(), v.tolist(), temperature) for v, g in vectors])
        first = c.movedim(dim, -1).shape[:-1]
        return absorbed.reshape(first)

    return leak


def _offset(scores: list[float], gradient: list[float], passing: list[float], temperature: float = 1.0) -> Tensor:
    """What one softmax absorbs: its relevance r_j = s_j g_j less what it gives to `passing`, the part of the scores that
    carries relevance: x_i s_i (g_i - sum_j s_j g_j), with s at the temperature."""
    reaching = sum(si * gi for si, gi in zip(_softmax(scores, 1.0), gradient, strict=True))
    s = _softmax(scores, temperature)
    mean = sum(si * gi for si, gi in zip(s, gradient, strict=True))
    taken = [0.0 if si == 0 else xi * si * (gi - mean) for xi, gi, si in zip(passing, gradient, s, strict=True)]
    return torch.tensor(reaching - sum(taken), dtype=torch.float64)


def _softmax(scores: list[float], temperature: float) -> list[float]:
    powers = [math.exp((score - max(scores)) / temperature) for score in scores]
    return [power / sum(powers) for power in powers]


def log_softmax_offset(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
    """sum_j y_j g_j - sum_i x_i (g_i - s_i sum_j g_j), each vector in a slow loop."""
    x = inputs[0]
    absorbed = []
    for v, g in zip(x.reshape(-1, x.shape[-1]).tolist(), c.reshape(-1, x.shape[-1]).tolist(), strict=True):
        total = math.log(sum(math.exp(vi) for vi in v))
        y = sum((vi - total) * gi for vi, gi in zip(v, g, strict=True))
        absorbed.append(y - sum(vi * (gi - math.exp(vi - total) * sum(g)) for vi, gi in zip(v, g, strict=True)))
    return torch.tensor(absorbed, dtype=torch.float64).reshape(x.shape[:-1])


def logsumexp_offset(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
    """g (y - sum_i s_i x_i), each vector in a slow loop."""
    x, absorbed = inputs[0], []
    for v, g in zip(x.reshape(-1, x.shape[-1]).tolist(), c.reshape(-1).tolist(), strict=True):
        total = math.log(sum(math.exp(vi) for vi in v))
        absorbed.append(g * (total - sum(math.exp(vi - total) * vi for vi in v)))
    return torch.tensor(absorbed, dtype=torch.float64).reshape(x.shape[:-1])


def attention_offset(weights: float, *, bias_carries: bool = False, temperature: float = 1.0) -> Leak:
    """The softmax offset of softmax(q k^T / sqrt(d) + mask) v where that share of relevance goes to the weights."""

    def leak(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
        q, k, v = [x for x in inputs if x.dim() == 4][:3] if len(inputs) > 2 else _completed(net, inputs)
        mask = inputs[3] if bias_carries else getattr(net, "mask", None)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        products = q @ k.mT / math.sqrt(q.shape[-1])
        added = torch.zeros_like(products)
        if mask is not None:
            added = torch.where(mask, 0.0, -math.inf) if mask.dtype is torch.bool else mask
            added = added.expand_as(products)
        if getattr(net, "causal", None) is not None:
            added = added.masked_fill(~torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(), -math.inf)
        absorbed = torch.zeros(q.shape[:3], dtype=torch.float64)
        gradient = c @ v.mT
        for b, h, t in torch.cartesian_prod(*map(torch.arange, q.shape[:3])).tolist():
            scores = products[b, h, t] + added[b, h, t]
            passing = scores if mask is None or mask.dtype is torch.bool or bias_carries else products[b, h, t]
            vectors = (x.tolist() for x in (scores, gradient[b, h, t], passing))
            absorbed[b, h, t] = weights * _offset(*vectors, temperature)
        return absorbed

    return leak


def rotated(net: Any, x: Tensor) -> Tensor:
    """x cos + rot(x) sin, as Llama writes it."""
    first, second = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return x * net.cos + torch.cat((-second, first), -1) * net.sin


def position_share(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
    """Half of the quarter that rotated queries get of an attention."""
    q = rotated(net, inputs[0]).requires_grad_()
    with torch.enable_grad():
        attended = torch.nn.functional.scaled_dot_product_attention(q, *inputs[1:])
    (gradient,) = torch.autograd.grad(attended, q, c)
    return q.detach() * gradient / 4 / 2


def recurrent_leak(op: Any) -> Leak:
    """What the biases of a recurrence absorb: its relevance less what the loops of Arras et al. give to the inputs,
    [batch]."""

    def leak(net: nn.Module, inputs: Inputs, c: Tensor) -> Tensor:
        y = net(*inputs).detach()
        passed = recurrent_relevance(op, net, inputs, y * c)
        return (y * c).flatten(1).sum(1) - sum(part.flatten(1).sum(1) for part in passed)

    return leak


def recurrent_relevance(op: Any, net: Any, inputs: Inputs, r: Tensor) -> list[Tensor]:
    """The relevance of the values and first states of a net with one recurrence, from its outputs', in slow loops."""
    name = str(op).split(".")[1]
    steps = 1 if name.endswith("_cell") else 2
    layers = loops.layers_of([net.w, net.u, net.b, net.c], 4, projects=False)
    found = [torch.zeros(x.shape, dtype=torch.float64) for x in inputs]
    for example in range(len(r)):
        text, of_y = (x[example].double().reshape(steps, -1).tolist() for x in (inputs[0], r))
        start = tuple(state[example].double().tolist() for state in inputs[1:])
        nothing = tuple([0.0] * len(part) for part in start)
        of_text, (of_start,) = loops.recurrence(name.removesuffix("_cell"), text, [start], layers, 1, of_y, [nothing])
        for whole, part in zip(found, (of_text, *of_start), strict=True):
            whole[example] = torch.tensor(part, dtype=torch.float64).reshape(whole.shape[1:])
    return found


def _completed(net: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Queries, keys and values where some are constants of the net."""
    found = iter(inputs)
    return [
        constant.detach() if (constant := getattr(net, name, None)) is not None else next(found) for name in ("q", "k", "v")
    ]
