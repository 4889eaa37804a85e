"""The rules for linear maps as slow loops over Python floats, copied from the papers. Nothing here is shared with lxt_fx.

A map is a list with one entry for each output: its bias, and the weight of each input that it reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

Reads = list[tuple[float, dict[int, float]]]
Vector = list[float]


def linear_reads(weights: list[Vector], bias: Vector) -> Reads:
    """W [out, in]: every output reads every input."""
    return [(b, dict(enumerate(row))) for row, b in zip(weights, bias, strict=True)]


def convolution_reads(
    weights: list[list[list[Vector]]],
    bias: Vector,
    size: tuple[int, int],
    stride: int,
    padding: int,
    dilation: int,
    groups: int,
) -> Reads:
    """W [out, in / groups, height, width] on an image of `size`; inputs and outputs are counted by channel, row, column."""
    height, width = size
    outs, ins, k, m = len(weights), len(weights[0]), len(weights[0][0]), len(weights[0][0][0])
    rows = (height + 2 * padding - dilation * (k - 1) - 1) // stride + 1
    columns = (width + 2 * padding - dilation * (m - 1) - 1) // stride + 1
    found: Reads = []
    for o, p, q in product(range(outs), range(rows), range(columns)):
        first = o // (outs // groups) * ins
        read: dict[int, float] = {}
        for c, u, v in product(range(ins), range(k), range(m)):
            row, column = p * stride + u * dilation - padding, q * stride + v * dilation - padding
            if 0 <= row < height and 0 <= column < width:
                read[((first + c) * height + row) * width + column] = weights[o][c][u][v]
        found.append((bias[o], read))
    return found


def value(x: Vector, reads: Reads) -> Vector:
    """z_j = sum_i w_ij x_i + b_j."""
    return [b + sum(w * x[i] for i, w in weights.items()) for b, weights in reads]


def _spread(x: Vector, parts: Iterator[tuple[dict[int, float], float, float]]) -> Vector:
    """R_i += part_i / whole * relevance; a sum that is 0 passes nothing."""
    found = [0.0] * len(x)
    for part, whole, relevance in parts:
        for i, c in part.items():
            found[i] += c / whole * relevance if whole else 0.0
    return found


def gamma(x: Vector, reads: Reads, r: Vector, gamma: float) -> Vector:
    """c + gamma c+ where z_j > 0, c + gamma c- where z_j < 0, the bias being one c."""

    def parts() -> Iterator[tuple[dict[int, float], float, float]]:
        for (b, weights), z, relevance in zip(reads, value(x, reads), r, strict=True):
            of_sign = (lambda c: max(c, 0.0)) if z > 0 else (lambda c: min(c, 0.0))
            part = {i: w * x[i] + gamma * of_sign(w * x[i]) for i, w in weights.items()}
            yield part, b + gamma * of_sign(b) + sum(part.values()), relevance if z else 0.0

    return _spread(x, parts())


def alpha_beta(x: Vector, reads: Reads, r: Vector, alpha: float, beta: float) -> Vector:
    """(alpha c+ / sum c+ - beta c- / sum c-) R_j."""

    def parts() -> Iterator[tuple[dict[int, float], float, float]]:
        signs: list[tuple[float, Callable[[float, float], float]]] = [(alpha, max), (-beta, min)]
        for (b, weights), relevance in zip(reads, r, strict=True):
            for factor, of_sign in signs:
                part = {i: of_sign(w * x[i], 0.0) for i, w in weights.items()}
                yield part, of_sign(b, 0.0) + sum(part.values()), factor * relevance

    return _spread(x, parts())


def z_plus(x: Vector, reads: Reads, r: Vector) -> Vector:
    """c+ / sum c+ R_j."""
    return alpha_beta(x, reads, r, 1.0, 0.0)


def excitation(x: Vector, reads: Reads, r: Vector) -> Vector:
    """As z_plus, of the map without its bias."""
    return z_plus(x, [(0.0, weights) for _, weights in reads], r)


def z_box(x: Vector, reads: Reads, r: Vector, low: float, high: float) -> Vector:
    """x w - low w+ - high w-; the bias is not in the sum."""

    def parts() -> Iterator[tuple[dict[int, float], float, float]]:
        for (_, weights), relevance in zip(reads, r, strict=True):
            part = {i: x[i] * w - low * max(w, 0.0) - high * min(w, 0.0) for i, w in weights.items()}
            yield part, sum(part.values()), relevance

    return _spread(x, parts())


def w_square(x: Vector, reads: Reads, r: Vector) -> Vector:
    """w^2 / (sum w^2 + b^2) R_j."""

    def parts() -> Iterator[tuple[dict[int, float], float, float]]:
        for (b, weights), relevance in zip(reads, r, strict=True):
            part = {i: w * w for i, w in weights.items()}
            yield part, b * b + sum(part.values()), relevance

    return _spread(x, parts())


def flat(x: Vector, reads: Reads, r: Vector) -> Vector:
    """An equal part to each input that is read."""

    def parts() -> Iterator[tuple[dict[int, float], float, float]]:
        for (_, weights), relevance in zip(reads, r, strict=True):
            yield dict.fromkeys(weights, 1.0), float(len(weights)), relevance

    return _spread(x, parts())
