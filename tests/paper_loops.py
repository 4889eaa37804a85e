"""The propagation rules as slow loops over Python floats, copied from the papers. Nothing here is shared with lxt_fx.

A matrix is a list of rows. `r` is relevance; where the value that divides is 0 there is none to pass, so the share is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

Vector = list[float]
Matrix = list[Vector]


def ratio(part: float, whole: float, relevance: float) -> float:
    """part / whole * relevance, 0 where there is no relevance to pass."""
    return 0.0 if relevance == 0 else part / whole * relevance


def zeros(rows: int, columns: int) -> Matrix:
    """A matrix of zeros."""
    return [[0.0] * columns for _ in range(rows)]


def linear_value(x: Vector, weights: Matrix, bias: Vector) -> Vector:
    """z_j = sum_i W_ji x_i + b_j."""
    return [sum(w * xi for w, xi in zip(row, x, strict=True)) + b for row, b in zip(weights, bias, strict=True)]


def linear(x: Vector, weights: Matrix, bias: Vector, r: Vector) -> Vector:
    """R_i = sum_j W_ji x_i R_j / z_j (AttnLRP eq. 8 at epsilon 0)."""
    z = linear_value(x, weights, bias)
    return [sum(ratio(weights[j][i] * x[i], z[j], r[j]) for j in range(len(z))) for i in range(len(x))]


def matmul_value(a: Matrix, b: Matrix) -> Matrix:
    """O_jp = sum_i A_ji B_ip."""
    return [[sum(a[j][i] * b[i][p] for i in range(len(b))) for p in range(len(b[0]))] for j in range(len(a))]


def matmul(a: Matrix, b: Matrix, r: Matrix, share: float = 0.5) -> tuple[Matrix, Matrix]:
    """R_ji(A) = sum_p A_ji B_ip R_jp / (2 O_jp), and R_ip(B) = sum_j of the same (AttnLRP prop. 3.3). `share` is 1/2."""
    o = matmul_value(a, b)
    r_a, r_b = zeros(len(a), len(b)), zeros(len(b), len(b[0]))
    for j in range(len(a)):
        for i in range(len(b)):
            for p in range(len(b[0])):
                passed = ratio(a[j][i] * b[i][p], o[j][p], r[j][p]) * share
                r_a[j][i] += passed
                r_b[i][p] += passed
    return r_a, r_b


def softmax_value(x: Vector) -> Vector:
    """s_i = exp(x_i) / sum_j exp(x_j)."""
    largest = max(x)
    powers = [math.exp(xi - largest) for xi in x]
    return [power / sum(powers) for power in powers]


def softmax(x: Vector, r: Vector) -> Vector:
    """R_i = x_i (R_i - s_i sum_j R_j) (AttnLRP prop. 3.1); a masked -inf passes nothing."""
    s, total = softmax_value(x), sum(r)
    return [0.0 if xi == -math.inf else xi * (ri - si * total) for xi, ri, si in zip(x, r, s, strict=True)]


def softmax_at(x: Vector, r: Vector, temperature: float) -> Vector:
    """R_i = x_i s_T,i (R_i / s_i - sum_j s_T,j R_j / s_j) with s_T = softmax(x / T) (GIM, section 4.1: the gradient of the
    softmax at temperature T, without its factor 1 / T)."""
    s, at = softmax_value(x), softmax_value([xi / temperature for xi in x])
    g = [ratio(1.0, si, ri) for si, ri in zip(s, r, strict=True)]
    mean = sum(a * gi for a, gi in zip(at, g, strict=True))
    return [0.0 if xi == -math.inf else xi * a * (gi - mean) for xi, a, gi in zip(x, at, g, strict=True)]


def attention_value(q: Matrix, k: Matrix, v: Matrix, scale: float, mask: Matrix) -> Matrix:
    """softmax(scale q k^T + mask) v."""
    return matmul_value([softmax_value(row) for row in scores(q, k, scale, mask)], v)


def scores(q: Matrix, k: Matrix, scale: float, mask: Matrix) -> Matrix:
    """scale q k^T + mask."""
    transposed = [list(column) for column in zip(*k, strict=True)]
    product = matmul_value(q, transposed)
    return [[scale * p + m for p, m in zip(*rows, strict=True)] for rows in zip(product, mask, strict=True)]


def attention(
    q: Matrix, k: Matrix, v: Matrix, scale: float, mask: Matrix, r: Matrix, temperature: float = 1.0
) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Matmul, softmax, sum with the mask, matmul: the relevance of q, k, v and the mask."""
    x = scores(q, k, scale, mask)
    r_weights, r_v = matmul([softmax_value(row) for row in x], v, r)
    r_scores = [
        softmax(row, r_row) if temperature == 1.0 else softmax_at(row, r_row, temperature)
        for row, r_row in zip(x, r_weights, strict=True)
    ]
    transposed = [list(column) for column in zip(*k, strict=True)]
    product = matmul_value(q, transposed)
    r_product, r_mask = zeros(len(q), len(k)), zeros(len(q), len(k))
    for i in range(len(q)):
        for j in range(len(k)):
            if x[i][j] != -math.inf:
                r_product[i][j] = ratio(scale * product[i][j], x[i][j], r_scores[i][j])
                r_mask[i][j] = ratio(mask[i][j], x[i][j], r_scores[i][j])
    r_q, r_transposed = matmul(q, transposed, r_product)
    return r_q, [list(column) for column in zip(*r_transposed, strict=True)], r_v, r_mask


def held_norm(x: Vector, weights: Vector, bias: Vector, eps: float, r: Vector) -> Vector:
    """y = (x - mean) / std * w + b. The bias takes its share (eq. 8), identity through the product with the held w / std
    (prop. 3.4, eq. 9), then x - mean is the linear map 1 - 1/n."""
    n = len(x)
    y = norm_value(x, weights, bias, eps)
    r = [ratio(yi - b, yi, ri) for yi, b, ri in zip(y, bias, r, strict=True)]
    return linear(x, [[(1.0 if i == j else 0.0) - 1 / n for i in range(n)] for j in range(n)], [0.0] * n, r)


def norm_value(x: Vector, weights: Vector, bias: Vector, eps: float) -> Vector:
    """(x - mean) / std * w + b."""
    mean = sum(x) / len(x)
    std = math.sqrt(sum((xi - mean) ** 2 for xi in x) / len(x) + eps)
    return [(xi - mean) / std * w + b for xi, w, b in zip(x, weights, bias, strict=True)]


def identity(function: Callable[[float], float], x: float, gradient: float) -> float:
    """R_in = R_out (eq. 9), less the share that the constant f(0) takes of y (eq. 8). R_out is y times the gradient."""
    y, at_zero = function(x), function(0.0)
    return ratio(y - at_zero, y, y * gradient)


def log_softmax(x: Vector, r: Vector) -> Vector:
    """R_i = x_i (g_i - s_i sum_j g_j) with g_j = R_j / y_j: the Taylor expansion of y_j = x_j - log sum exp x at x."""
    total = math.log(sum(math.exp(xi) for xi in x))
    g = [ratio(1.0, xi - total, ri) for xi, ri in zip(x, r, strict=True)]
    return [xi * (gi - math.exp(xi - total) * sum(g)) for xi, gi in zip(x, g, strict=True)]


def logsumexp(x: Vector, r: float) -> Vector:
    """R_i = x_i s_i R / y."""
    total = math.log(sum(math.exp(xi) for xi in x))
    return [ratio(xi * math.exp(xi - total), total, r) for xi in x]


def product_of_three(x: Vector, a: Matrix, y: Vector, r: Vector) -> tuple[Vector, Matrix, Vector]:
    """z_i = sum_j x_i a_ij y_j: a third of each product's part of R_i to each of its three factors (prop. 3.2, N = 3)."""
    r_x, r_a, r_y = [0.0] * len(x), zeros(len(x), len(y)), [0.0] * len(y)
    for i in range(len(x)):
        z = sum(x[i] * a[i][j] * y[j] for j in range(len(y)))
        for j in range(len(y)):
            passed = ratio(x[i] * a[i][j] * y[j], z, r[i]) / 3
            r_x[i] += passed
            r_a[i][j] += passed
            r_y[j] += passed
    return r_x, r_a, r_y


Map = list[tuple[float, dict[int, float]]]
"""For each output its constant, and the weight of each input that it reads."""


def read_off(function: Callable[[Vector], Vector], x: Vector, step: float) -> Map:
    """The map that f is around x: w_ij = (f_j(x + step e_i) - f_j(x - step e_i)) / (2 step), and what it adds. Exact where
    f is linear between these points, else its gradient to the order of step^2."""
    value = function(x)
    weights: list[dict[int, float]] = [{} for _ in value]
    for i, xi in enumerate(x):
        above, below = (function([*x[:i], xi + sign * step, *x[i + 1 :]]) for sign in (1, -1))
        for j, (high, low) in enumerate(zip(above, below, strict=True)):
            if high != low:
                weights[j][i] = (high - low) / (2 * step)
    constants = [z - sum(w * x[i] for i, w in read.items()) for z, read in zip(value, weights, strict=True)]
    return list(zip(constants, weights, strict=True))


def by_contribution(x: Vector, reads: Map, r: Vector, epsilon: float = 0.0, signed: bool = True) -> Vector:
    """R_i = sum_j x_i w_ij R_j / (z_j + epsilon sign(z_j)) (AttnLRP eq. 8); z + epsilon where it is not signed."""
    found = [0.0] * len(x)
    for (constant, read), relevance in zip(reads, r, strict=True):
        z = constant + sum(w * x[i] for i, w in read.items())
        z += epsilon if z >= 0 or not signed else -epsilon
        for i, w in read.items():
            found[i] += ratio(w * x[i], z, relevance)
    return found


Cells = dict[tuple[int, ...], float]
"""The elements of a tensor by their indices."""


def contraction(equation: str, operands: list[Cells], r: Cells, epsilon: float = 0.0, signed: bool = True) -> list[Cells]:
    """z of an einsum of n operands: each product of n elements gives 1/n of its part of R to each of the n (prop. 3.3 for
    n = 2, and for every n by prop. 3.2)."""
    inputs, output = equation.split("->")
    names = inputs.split(",")
    sizes = {
        letter: 1 + max(index[place] for index in operand)
        for name, operand in zip(names, operands, strict=True)
        for place, letter in enumerate(name)
    }
    places = [dict(zip(sizes, index, strict=True)) for index in product(*map(range, sizes.values()))]
    products: list[tuple[list[tuple[int, ...]], tuple[int, ...], float]] = []
    z = dict.fromkeys(r, 0.0)
    for place in places:
        read = [tuple(place[letter] for letter in name) for name in names]
        wrote = tuple(place[letter] for letter in output)
        passed = math.prod(operand[index] for operand, index in zip(operands, read, strict=True))
        products.append((read, wrote, passed))
        z[wrote] += passed
    found = [dict.fromkeys(operand, 0.0) for operand in operands]
    for read, wrote, passed in products:
        whole = z[wrote] + (epsilon if z[wrote] >= 0 or not signed else -epsilon)
        for part, index in zip(found, read, strict=True):
            part[index] += ratio(passed, whole, r[wrote]) / len(operands)
    return found


def uniform(sizes: list[int], elements: list[list[int]], r: Vector) -> list[Vector]:
    """R / n to each of n operands of these sizes (prop. 3.2); `elements` says which of its elements each output reads."""
    found = [[0.0] * size for size in sizes]
    for part, read in zip(found, elements, strict=True):
        for i, relevance in zip(read, r, strict=True):
            part[i] += relevance / len(sizes)
    return found


def taylor(
    function: Callable[[Vector], Vector], x: Vector, reference: Vector, r: Vector, bias: bool, step: float
) -> Vector:
    """R_i = (x - x0)_i sum_j J_ji R_j / z_j with J the gradient of f at x0 (Montavon et al. 2017). z is f(x), or J (x - x0)
    where the constant terms have no share."""
    reads = read_off(function, reference, step)
    moved = [xi - start for xi, start in zip(x, reference, strict=True)]
    first_order = [sum(w * moved[i] for i, w in read.items()) for _, read in reads]
    wholes = function(x) if bias else first_order
    found = [0.0] * len(x)
    for (_, read), z, relevance in zip(reads, wholes, r, strict=True):
        for i, w in read.items():
            found[i] += ratio(w * moved[i], z, relevance)
    return found
