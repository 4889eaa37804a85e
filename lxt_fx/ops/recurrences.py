"""Gated recurrences (LSTM, GRU) and plain ones (RNN), as torch has them in one op, in both forms.

A gate is held constant, so a product of gate and signal gives all relevance to the signal; the linear parts follow eq. 8,
and tanh passes relevance on unchanged (Arras et al. 2017, Explaining Recurrent Neural Network Predictions in Sentiment
Analysis, sec. 3; Arras et al. 2019, rule LRP-all). The value is that of torch's kernel. For the backward the recurrence is
written out step by step, in Python, so the number of steps is free.

A step is written once, of three operations: a sum of linear maps with biases (`affine`), a sum of signals times gates
(`gated`) and a function of one value (`curve`). What these mean depends on the form: modified gradients, relevance
itself, or the parts that constants have in each value, which is what the ledger expects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.base.torch_internals import OpOverload, aten, base_name, overload_name, pytree, schema_of
from lxt_fx.ops import activations, explicit, products
from lxt_fx.ops.library import define

State = tuple[Tensor, ...]
Linear = tuple[Tensor, Tensor, Tensor | None]
"""A value, a weight and a bias."""


class Meaning(Protocol):
    """What the operations of a step do to the values, [..., batch, features]."""

    def read(self, x: Tensor) -> Tensor:
        """The number that a gate is computed from; nothing flows back through it."""

    def affine(self, *terms: Linear) -> Tensor:
        """The sum of W x + b."""

    def gated(self, *terms: tuple[Tensor | float, Tensor]) -> Tensor:
        """The sum of gate * x, with the gates constant."""

    def curve(self, z: Tensor, name: str) -> Tensor:
        """The activation of that name, which is 0 at 0."""


def _value_of(name: str, z: Tensor) -> Tensor:
    found: Tensor = activations.BY_NAME[name].value(z)
    return found


@dataclass(frozen=True, slots=True)
class Gradients:
    """What flows back is a modified gradient."""

    epsilon: float

    def read(self, x: Tensor) -> Tensor:
        return x.detach()

    def affine(self, *terms: Linear) -> Tensor:
        return self._stable(reduce(add, (F.linear(x, weight, bias) for x, weight, bias in terms)))

    def gated(self, *terms: tuple[Tensor | float, Tensor]) -> Tensor:
        total = reduce(add, (gate * x for gate, x in terms))
        return total if len(terms) == 1 else self._stable(total)

    def curve(self, z: Tensor, name: str) -> Tensor:
        found: Tensor = activations.BY_NAME[name].op(z)
        return found

    def _stable(self, z: Tensor) -> Tensor:
        return products.epsilon(z, self.epsilon) if self.epsilon else z


@dataclass(frozen=True, slots=True)
class Equations:
    """What flows back is relevance itself: R_i = z_i / (z + epsilon sign(z)) R for each term z_i of a sum z (AttnLRP eq. 8,
    Arras et al. 2017 eq. 1), R_in = R_out through a function of one value."""

    epsilon: float

    def read(self, x: Tensor) -> Tensor:
        return x.detach()

    def affine(self, *terms: Linear) -> Tensor:
        z = reduce(add, (F.linear(explicit.enter(x), weight, bias) for x, weight, bias in terms))
        return _left(z, self.epsilon)

    def gated(self, *terms: tuple[Tensor | float, Tensor]) -> Tensor:
        if len(terms) == 1:
            gate, x = terms[0]
            return _passed(x, gate * x.detach())
        return _left(reduce(add, (gate * explicit.enter(x) for gate, x in terms)), self.epsilon)

    def curve(self, z: Tensor, name: str) -> Tensor:
        return _passed(z, _value_of(name, z.detach()))


def _left(z: Tensor, epsilon: float) -> Tensor:
    left: Tensor = explicit.leave(z, epsilon)
    return left


def _passed(x: Tensor, value: Tensor) -> Tensor:
    """The value; what comes back goes to x as it is."""
    passed: Tensor = explicit.Pass.apply(x, value, 0.0, 0.0)  # type: ignore[no-untyped-call]
    return passed


@dataclass(frozen=True, slots=True)
class Parts:
    """Nothing flows back. Each value is [4, batch, features]: the value, and what biases, other constants (values and
    states that carry nothing) and epsilon contribute to it, with the gates and the ratios tanh(z) / z constant."""

    epsilon: float

    def read(self, x: Tensor) -> Tensor:
        return x[0]

    def affine(self, *terms: Linear) -> Tensor:
        in_bias = terms[0][0].new_tensor([1.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1)
        maps = [F.linear(x, weight) for x, weight, _ in terms]
        return self._stable(reduce(add, [*maps, *(bias * in_bias for _, _, bias in terms if bias is not None)]))

    def gated(self, *terms: tuple[Tensor | float, Tensor]) -> Tensor:
        total = reduce(add, (gate * x for gate, x in terms))
        return total if len(terms) == 1 else self._stable(total)

    def curve(self, z: Tensor, name: str) -> Tensor:
        value, zero = _value_of(name, z[0]), z[0] == 0
        ratio = torch.where(zero, 1.0, value / torch.where(zero, 1.0, z[0]))
        return torch.cat([value[None], z[1:] * ratio])

    def _stable(self, z: Tensor) -> Tensor:
        """Epsilon takes z epsilon / (|z| + epsilon) and leaves the rest to the terms."""
        if self.epsilon == 0:
            return z
        passed = z[0].abs() / (z[0].abs() + self.epsilon)
        return torch.cat([z[:1], z[1:3] * passed, z[3:] * passed + z[:1] * (1 - passed)])


class Weights(NamedTuple):
    """The parameters of one layer in one direction. `projection` is that of an LSTM with proj_size."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None

    def parts(self, x: Tensor, h: Tensor, index: int, count: int) -> tuple[Linear, Linear]:
        """The two linear maps that give part `index` of `count`: a gate or the candidate."""
        chosen = [None if t is None else t.chunk(count)[index] for t in self[:4]]
        return (x, chosen[0], chosen[2]), (h, chosen[1], chosen[3])  # type: ignore[return-value]


def _gate(meaning: Meaning, maps: Sequence[Linear]) -> Tensor:
    return torch.sigmoid(reduce(add, (F.linear(meaning.read(x), weight, bias) for x, weight, bias in maps)))


Step = Callable[[Meaning, Tensor, State, Weights], State]
"""The states after one more value; the first of them is what the step puts out."""


def _lstm(meaning: Meaning, x: Tensor, state: State, weights: Weights) -> State:
    """c' = f c + i tanh(z), h' = o tanh(c'), with the gates i, f, o constant."""
    h, c = state
    i, f, o = (_gate(meaning, weights.parts(x, h, index, 4)) for index in (0, 1, 3))
    candidate = meaning.curve(meaning.affine(*weights.parts(x, h, 2, 4)), "tanh")
    c = meaning.gated((f, c), (i, candidate))
    h = meaning.gated((o, meaning.curve(c, "tanh")))
    return (h if weights.projection is None else meaning.affine((h, weights.projection, None))), c


def _gru(meaning: Meaning, x: Tensor, state: State, weights: Weights) -> State:
    """n = tanh(W x + b + r (U h + c)), h' = (1 - z) n + z h, with the gates r, z constant."""
    (h,) = state
    r, z = (_gate(meaning, weights.parts(x, h, index, 3)) for index in (0, 1))
    of_x, of_h = weights.parts(x, h, 2, 3)
    candidate = meaning.curve(meaning.gated((1.0, meaning.affine(of_x)), (r, meaning.affine(of_h))), "tanh")
    return (meaning.gated((1 - z, candidate), (z, h)),)


def _rnn(name: str) -> Step:
    def step(meaning: Meaning, x: Tensor, state: State, weights: Weights) -> State:
        """h' = f(W x + b + U h + c)."""
        return (meaning.curve(meaning.affine(*weights.parts(x, state[0], 0, 1)), name),)

    return step


_STEPS: Mapping[str, Step] = {"lstm": _lstm, "gru": _gru, "rnn_tanh": _rnn("tanh"), "rnn_relu": _rnn("relu")}


def _along(
    meaning: Meaning, step: Step, xs: list[Tensor], state: State, weights: Weights, *, back: bool
) -> tuple[list[Tensor], State]:
    """The outputs of all steps, in the order of `xs`, and the last state. Of a packed sequence the first n examples take a
    step; the others wait, or have ended."""
    outputs = dict[int, Tensor]()
    for place in reversed(range(len(xs))) if back else range(len(xs)):
        count = xs[place].shape[-2]
        new = step(meaning, xs[place], tuple(part[..., :count, :] for part in state), weights)
        outputs[place] = new[0]
        waiting = count < state[0].shape[-2]
        state = tuple(torch.cat([a, b[..., count:, :]], -2) for a, b in zip(new, state, strict=True)) if waiting else new
    return [outputs[place] for place in range(len(xs))], state


class _Call(NamedTuple):
    """A call of one of the ops: the values of all steps [..., batch, features], one state for each layer and direction, and
    their weights. `batch_sizes` are those of a packed sequence."""

    step: Step
    xs: list[Tensor]
    states: list[State]
    weights: list[Weights]
    both_directions: bool
    batch_first: bool
    batch_sizes: list[int] | None

    def run(self, meaning: Meaning) -> tuple[Tensor, ...]:
        """What the op returns: the outputs of the last layer, then the last states, [layers * directions, batch, ...]."""
        xs, last, count = self.xs, list[State](), 2 if self.both_directions else 1
        for start in range(0, len(self.states), count):
            found = [
                _along(meaning, self.step, xs, self.states[start + way], self.weights[start + way], back=way == 1)
                for way in range(count)
            ]
            xs = [torch.cat(both, -1) for both in zip(*(outputs for outputs, _ in found), strict=True)]
            last += [state for _, state in found]
        packed, steps = self.batch_sizes is not None, -2 if self.batch_first else -3
        whole = torch.cat(xs, -2) if packed else torch.stack(xs, steps)
        return whole, *(torch.stack(part, -3) for part in zip(*last, strict=True))


def _read_call(op: OpOverload, named: Mapping[str, Any]) -> _Call:
    """The call of a recurrent ATen op with these arguments, by schema name."""
    name = base_name(op)
    hx = named["hx"] if isinstance(named["hx"], (list, tuple)) else [named["hx"]]
    if name.endswith("_cell"):
        weights = Weights(*(None if (t := named.get(key)) is None else t.detach() for key in _CELL))  # type: ignore[arg-type]
        return _Call(_STEPS[name.removesuffix("_cell")], [named["input"]], [tuple(hx)], [weights], False, False, None)
    projects = name == "lstm" and hx[0].shape[-1] != hx[1].shape[-1]
    states = list(zip(*(part.unbind(-3) for part in hx), strict=True))
    params = [param.detach() for param in named["params"]]
    each = len(params) // len(states)
    weights_of = [_weights(params[i * each : (i + 1) * each], projects) for i in range(len(states))]
    first, sizes = bool(named.get("batch_first")), None
    if "batch_sizes" in named:
        sizes = named["batch_sizes"].tolist()
        xs = list(named["data"].split(sizes, -2))
    else:
        xs = list(named["input"].unbind(-2 if first else -3))
    return _Call(_STEPS[name], xs, states, weights_of, named["bidirectional"], first, sizes)


_CELL = ("w_ih", "w_hh", "b_ih", "b_hh")


def _weights(params: list[Tensor], projects: bool) -> Weights:
    own = params[:-1] if projects else params
    return Weights(*own)._replace(projection=params[-1] if projects else None)


def _by_name(op: OpOverload, args: tuple[Any, ...]) -> dict[str, Any]:
    return dict(zip((argument.name for argument in schema_of(op).arguments), args, strict=False))


def _kernel(op: OpOverload, form: type[Gradients] | type[Equations]) -> Callable[..., Any]:
    is_cell = base_name(op).endswith("_cell")

    def kernel(*args: Any, epsilon: float = 0.0) -> Any:
        with torch.no_grad():
            values = op(*args)
        tensors = [t for t in pytree.tree_leaves(args) if isinstance(t, Tensor)]
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
            return values
        call = _read_call(op, _by_name(op, args))
        if is_cell:
            passing = call.step(form(epsilon), call.xs[0], call.states[0], call.weights[0])
            return tuple(map(_passed, passing, values)) if isinstance(values, tuple) else _passed(passing[0], values)
        return tuple(map(_passed, call.run(form(epsilon)), values))

    return kernel


def _defined(op: OpOverload, form: type[Gradients] | type[Equations], ending: str) -> OpOverload:
    """Registers the op with the arguments of ATen's."""
    packed = "_packed" if overload_name(op) == "data" else ""
    written = str(schema_of(op)).split("(", 1)[1].replace(") -> ", ", *, float epsilon=0.0) -> ")
    return define(f"{base_name(op)}{packed}{ending}({written}")(_kernel(op, form))


_ATEN: tuple[OpOverload, ...] = (
    *(getattr(getattr(aten, name), kind) for name in _STEPS for kind in ("input", "data")),
    *(getattr(aten, f"{name}_cell").default for name in _STEPS),
)
OF: Mapping[OpOverload, OpOverload] = {op: _defined(op, Gradients, "") for op in _ATEN}
"""Our op for each of ATen's recurrent ops: same arguments and values, gates constant."""
EQUATIONS: Mapping[OpOverload, OpOverload] = {OF[op]: _defined(op, Equations, "_steps") for op in _ATEN}
"""The op of the explicit form of each of these."""
_ATEN_OF = {ours: op for op, ours in OF.items()}


def parts_of_constants(op: OpOverload, named: Mapping[str, Any], carrying: Callable[[str], bool]) -> list[Tensor]:
    """For each value that `op` (one of `OF`) returns, [3, ...] in float64: what biases, other constants and epsilon
    contribute to it. `named` are its arguments by schema name; `carrying` says whether a value or state carries
    relevance (`input`, `data`, `hx`, `hx[0]`, ...)."""

    def parts(name: str, tensor: Tensor) -> Tensor:
        x, nothing = tensor.double(), torch.zeros_like(tensor, dtype=torch.float64)
        return torch.stack([x, nothing, nothing if carrying(name) else x, nothing])

    def given(name: str, argument: Any) -> Any:
        if name not in VALUES:
            return pytree.tree_map_only(Tensor, _in_double, argument)
        if isinstance(argument, Tensor):
            return parts(name, argument)
        return [parts(f"{name}[{index}]", item) for index, item in enumerate(argument)]

    meaning, of = Parts(float(named.get("epsilon", 0.0))), _ATEN_OF[op]
    with torch.no_grad():
        call = _read_call(of, {name: given(name, argument) for name, argument in named.items()})
        if base_name(of).endswith("_cell"):
            values = call.step(meaning, call.xs[0], call.states[0], call.weights[0])
        else:
            values = call.run(meaning)
    return [value[1:] for value in values]


VALUES = frozenset({"input", "data", "hx"})
"""The arguments that hold values and states; the others are weights and settings."""


def _in_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


__all__ = ["EQUATIONS", "OF", "VALUES", "parts_of_constants"]
