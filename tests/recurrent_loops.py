"""LSTM, GRU and RNN, one example and one number after the other, with relevance by Arras et al. 2017, sec. 3: all of a
product goes to the signal and nothing to the gate, sums by z_i / z, tanh passes on what it gets. Nothing here is shared
with lxt_fx.

A text is a list of vectors. A `Layer` is W [gates * hidden, in], U [gates * hidden, hidden] and their biases, in torch's
order of gates (LSTM i, f, g, o; GRU r, z, n), and the projection P of an LSTM."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from paper_loops import Matrix, Vector, linear, linear_value, ratio
from torch import Tensor

State = tuple[Vector, ...]
Back = Callable[[State], tuple[Vector, State]]
"""From the relevance of the states after a step to that of the value that it read, and of the states before it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The parameters of one layer in one direction."""

    w: Matrix
    u: Matrix
    b: Vector
    c: Vector
    p: Matrix | None = None

    def part(self, index: int, size: int) -> tuple[Matrix, Matrix, Vector, Vector]:
        """W, U and biases of one gate."""
        rows = slice(index * size, (index + 1) * size)
        return self.w[rows], self.u[rows], self.b[rows], self.c[rows]


def layers_of(params: list[Tensor], each: int, projects: bool) -> list[Layer]:
    """torch's list of parameters, `each` of them for a layer and direction."""
    found = []
    for start in range(0, len(params), each):
        own = [param.detach().double().tolist() for param in params[start : start + each]]
        p = own.pop() if projects else None
        w, u, *biases = own
        b, c = biases or ([0.0] * len(w), [0.0] * len(w))
        found.append(Layer(w, u, b, c, p))
    return found


def _sigmoid(z: Vector) -> Vector:
    return [1 / (1 + math.exp(-v)) if v > -700 else math.exp(v) for v in z]


def _add(*terms: Vector) -> Vector:
    return [sum(values) for values in zip(*terms, strict=True)]


def _joined(layer: Layer, index: int, size: int) -> tuple[Matrix, Vector]:
    """One matrix for x and h behind each other."""
    w, u, b, c = layer.part(index, size)
    return [row + other for row, other in zip(w, u, strict=True)], _add(b, c)


def _lstm(x: Vector, state: State, layer: Layer) -> tuple[State, Back]:
    h, c = state
    size = len(c)
    maps = [_joined(layer, index, size) for index in range(4)]
    i, f, g, o = (linear_value(x + h, *found) for found in maps)
    i, f, o, g = _sigmoid(i), _sigmoid(f), _sigmoid(o), [math.tanh(v) for v in g]
    kept, written = [a * b for a, b in zip(f, c, strict=True)], [a * b for a, b in zip(i, g, strict=True)]
    after = _add(kept, written)
    y = [a * math.tanh(b) for a, b in zip(o, after, strict=True)]
    h_after = y if layer.p is None else linear_value(y, layer.p, [0.0] * len(layer.p))

    def back(relevance: State) -> tuple[Vector, State]:
        r_h, r_c = relevance
        r_y = r_h if layer.p is None else linear(y, layer.p, [0.0] * len(layer.p), r_h)
        r_c = _add(r_c, r_y)  # o tanh(c): the gate gets nothing, tanh passes on all
        r_g = [ratio(a, b, r) for a, b, r in zip(written, after, r_c, strict=True)]
        before = linear(x + h, *maps[2], r_g)
        return before[: len(x)], (before[len(x) :], [ratio(a, b, r) for a, b, r in zip(kept, after, r_c, strict=True)])

    return (h_after, after), back


def _gru(x: Vector, state: State, layer: Layer) -> tuple[State, Back]:
    (h,) = state
    size = len(h)
    r, z = (_sigmoid(linear_value(x + h, *_joined(layer, index, size))) for index in (0, 1))
    w, u, b, c = layer.part(2, size)
    of_x, of_h = linear_value(x, w, b), [a * v for a, v in zip(r, linear_value(h, u, c), strict=True)]
    n = [math.tanh(v) for v in _add(of_x, of_h)]
    new, old = [(1 - a) * v for a, v in zip(z, n, strict=True)], [a * v for a, v in zip(z, h, strict=True)]
    after = _add(new, old)

    def back(relevance: State) -> tuple[Vector, State]:
        r_n = [ratio(a, v, rel) for a, v, rel in zip(new, after, relevance[0], strict=True)]
        r_old = [ratio(a, v, rel) for a, v, rel in zip(old, after, relevance[0], strict=True)]
        whole = _add(of_x, of_h)
        r_x = linear(x, w, b, [ratio(a, v, rel) for a, v, rel in zip(of_x, whole, r_n, strict=True)])
        r_h = linear(h, u, c, [ratio(a, v, rel) for a, v, rel in zip(of_h, whole, r_n, strict=True)])
        return r_x, (_add(r_h, r_old),)

    return (after,), back


def _rnn(x: Vector, state: State, layer: Layer, function: Callable[[float], float]) -> tuple[State, Back]:
    (h,) = state
    found = _joined(layer, 0, len(h))
    after = [function(v) for v in linear_value(x + h, *found)]

    def back(relevance: State) -> tuple[Vector, State]:
        before = linear(x + h, *found, relevance[0])
        return before[: len(x)], (before[len(x) :],)

    return (after,), back


STEPS: dict[str, Callable[[Vector, State, Layer], tuple[State, Back]]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": lambda x, state, layer: _rnn(x, state, layer, math.tanh),
    "rnn_relu": lambda x, state, layer: _rnn(x, state, layer, lambda v: max(v, 0.0)),
}


def _along(
    kind: str, text: Matrix, start: State, layer: Layer
) -> tuple[Matrix, State, Callable[[Matrix, State], tuple[Matrix, State]]]:
    """The outputs, the last state, and the way back: from relevance of outputs and last state to text and first state."""
    state, outputs, backs = start, [], []
    for x in text:
        state, back = STEPS[kind](x, state, layer)
        outputs.append(state[0])
        backs.append(back)

    def through(of_outputs: Matrix, of_last: State) -> tuple[Matrix, State]:
        relevance, of_text = of_last, []
        for back, r in zip(reversed(backs), reversed(of_outputs), strict=True):
            of_x, relevance = back((_add(relevance[0], r), *relevance[1:]))
            of_text.append(of_x)
        return of_text[::-1], relevance

    return outputs, state, through


def recurrence(
    kind: str,
    text: Matrix,
    starts: list[State],
    layers: list[Layer],
    directions: int,
    r_outputs: Matrix,
    r_last: list[State],
) -> tuple[Matrix, list[State]]:
    """Relevance of a text [steps, in] and of the first states, one for each layer and direction; `r_outputs` is that of the
    outputs of the last layer, [steps, directions * hidden], `r_last` that of the last states."""
    ways = []
    for first in range(0, len(layers), directions):
        parts = []
        for way in range(directions):
            read = text[::-1] if way else text
            outputs, _, through = _along(kind, read, starts[first + way], layers[first + way])
            parts.append(outputs[::-1] if way else outputs)
            ways.append(through)
        text = [sum(both, []) for both in zip(*parts, strict=True)]
    r_first: list[State] = [()] * len(layers)
    relevance = r_outputs
    for first in reversed(range(0, len(layers), directions)):
        width, found = len(relevance[0]) // directions, []
        for way in range(directions):
            own = [r[way * width : (way + 1) * width] for r in relevance]
            of_text, r_first[first + way] = ways[first + way](own[::-1] if way else own, r_last[first + way])
            found.append(of_text[::-1] if way else of_text)
        relevance = [_add(*both) for both in zip(*found, strict=True)]
    return relevance, r_first
