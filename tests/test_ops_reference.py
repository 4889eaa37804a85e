"""Each op's backward against the slow loops of `paper_loops`, and what each op conserves, in float64."""

from __future__ import annotations

import math
from typing import Any

import paper_loops as paper
import pytest
import torch
from activation_cases import BY_NAME
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import CASES, POINTWISE, Case, leaves
from torch import Tensor

from lxt_fx.ops import activations, norms, products

same_examples_each_time = settings(max_examples=25, derandomize=True, deadline=None, database=None)

NUMBERS = st.one_of(st.just(0.0), st.floats(-4, 4, allow_subnormal=False))
NOT_NEGATIVE = st.one_of(st.just(0.0), st.floats(0.25, 4))
SIZES = st.integers(1, 4)
FEW = st.integers(1, 3)

every_pointwise = pytest.mark.parametrize("case", POINTWISE, ids=lambda case: case.name)


def vectors(size: int, numbers: st.SearchStrategy[float] = NUMBERS) -> st.SearchStrategy[list[float]]:
    """Lists of that many numbers, zeros among them."""
    return st.lists(numbers, min_size=size, max_size=size)


def matrices(
    rows: int, columns: int, numbers: st.SearchStrategy[float] = NUMBERS
) -> st.SearchStrategy[list[list[float]]]:
    """Lists of rows."""
    return st.lists(vectors(columns, numbers), min_size=rows, max_size=rows)


def tensor(values: Any) -> Tensor:
    """Nested lists as float64."""
    return torch.tensor(values, dtype=torch.float64)


def leaf(values: Any) -> Tensor:
    """A float64 tensor that carries relevance."""
    return tensor(values).requires_grad_()


def seed(gradient: Any, *divisors: Tensor) -> Tensor:
    """The gradient, but 0 where a divisor of the paper's formula is 0, or nearly so by cancellation."""
    g = tensor(gradient)
    for divisor in divisors:
        g = g * (divisor.detach().abs() > 1e-6)
    return g


def relevance(value: Tensor, gradient: Tensor, *operands: Tensor) -> list[Any]:
    """Value times gradient of each operand, as nested lists; -inf counts as 0."""
    gradients = torch.autograd.grad(value, operands, gradient)
    return [(x.detach().nan_to_num(neginf=0.0) * g).tolist() for x, g in zip(operands, gradients, strict=True)]


def assert_same(ours: Any, expected: Any, tolerance: float = 1e-9) -> None:
    """Equal but for the rounding of float64: where terms cancel, the loops lose some digits by their divisions."""
    torch.testing.assert_close(tensor(ours), tensor(expected), rtol=tolerance, atol=tolerance)


@every_pointwise
@same_examples_each_time
@given(data=st.data())
def test_pointwise_op_passes_the_relevance_of_its_output(case: Case, data: st.DataObject) -> None:
    curve = BY_NAME[case.name]
    numbers = {"not negative": NOT_NEGATIVE, "below 1": st.floats(-0.9, 0.9)}.get(curve.where, NUMBERS)
    x = leaf(data.draw(vectors(6, numbers)))
    function = curve.slow
    value = case.run(x, *case.make(torch.float64)[1:])
    g = seed(data.draw(vectors(6)), *([value] if function(0.0) else []))
    assert_same(value.tolist(), [function(xi) for xi in x.tolist()])
    expected = [paper.identity(function, xi, gi) for xi, gi in zip(x.tolist(), g.tolist(), strict=True)]
    assert_same(relevance(value, g, x)[0], expected)


@pytest.mark.parametrize("name", ["log", "reciprocal"])
@same_examples_each_time
@given(data=st.data())
def test_log_and_reciprocal_pass_the_relevance_of_their_output(name: str, data: st.DataObject) -> None:
    """Their value at 0 is infinite and takes no share."""
    x = leaf(data.draw(vectors(6, st.floats(1e-3, 1e3))))
    g = seed(data.draw(vectors(6)))
    value = activations.OPS[name](x)
    assert_same(relevance(value, g, x)[0], [yi * gi for yi, gi in zip(value.tolist(), g.tolist(), strict=True)])


@pytest.mark.parametrize(
    ("name", "slope"),
    [("silu", 0.5), ("cube", 0.0), ("square", 0.0), ("exp", 1.0), ("sigmoid", 0.25), ("softplus", 0.5)],
)
@same_examples_each_time
@given(x=vectors(6), gradient=vectors(6))
def test_identity_passes_the_relevance_of_a_value_computed_elsewhere(
    name: str, slope: float, x: list[float], gradient: list[float]
) -> None:
    """Where f(0) is not 0, the slope stands for the quotient below |x| = 1.5e-8, which costs as much."""
    function = BY_NAME[name].slow
    origin = leaf(x)
    value = activations.identity(origin, leaf([function(xi) for xi in x]), function(0.0), slope)
    expected = [paper.identity(function, xi, gi) for xi, gi in zip(x, gradient, strict=True)]
    assert_same(relevance(value, tensor(gradient), origin)[0], expected, tolerance=1e-7)


@same_examples_each_time
@given(data=st.data(), inputs=SIZES, outputs=SIZES)
def test_linear_passes_relevance_by_contribution(data: st.DataObject, inputs: int, outputs: int) -> None:
    x, weights, bias = data.draw(vectors(inputs)), data.draw(matrices(outputs, inputs)), data.draw(vectors(outputs))
    value = products.linear(origin := leaf(x), leaf(weights), leaf(bias))
    g = seed(data.draw(vectors(outputs)), value)
    assert_same(relevance(value, g, origin)[0], paper.linear(x, weights, bias, (value * g).tolist()))


@pytest.mark.parametrize("op", ["matmul", "einsum"])
@same_examples_each_time
@given(data=st.data(), rows=SIZES, inner=SIZES, columns=SIZES)
def test_product_of_two_carrying_matrices_gives_half_to_each(
    data: st.DataObject, op: str, rows: int, inner: int, columns: int
) -> None:
    a, b = leaf(data.draw(matrices(rows, inner))), leaf(data.draw(matrices(inner, columns)))
    value = products.matmul(a, b) if op == "matmul" else products.einsum("ji,ip->jp", [a, b])
    g = seed(data.draw(matrices(rows, columns)), value)
    expected = paper.matmul(a.tolist(), b.tolist(), (value * g).tolist())
    for ours, wanted in zip(relevance(value, g, a, b), expected, strict=True):
        assert_same(ours, wanted)


@same_examples_each_time
@given(data=st.data(), rows=SIZES, inner=SIZES, columns=SIZES)
def test_matmul_by_a_constant_gives_all_to_the_other(data: st.DataObject, rows: int, inner: int, columns: int) -> None:
    a, b = data.draw(matrices(rows, inner)), leaf(data.draw(matrices(inner, columns)))
    value = products.matmul_held(tensor(a), b)
    g = seed(data.draw(matrices(rows, columns)), value)
    expected = paper.matmul(a, b.tolist(), (value * g).tolist(), share=1.0)[1]
    assert_same(relevance(value, g, b)[0], expected)


@same_examples_each_time
@given(data=st.data(), rows=SIZES, columns=SIZES)
def test_einsum_of_three_gives_a_third_to_each(data: st.DataObject, rows: int, columns: int) -> None:
    x, a, y = leaf(data.draw(vectors(rows))), leaf(data.draw(matrices(rows, columns))), leaf(data.draw(vectors(columns)))
    value = products.einsum("i,ij,j->i", [x, a, y])
    g = seed(data.draw(vectors(rows)), value)
    expected = paper.product_of_three(x.tolist(), a.tolist(), y.tolist(), (value * g).tolist())
    for ours, wanted in zip(relevance(value, g, x, a, y), expected, strict=True):
        assert_same(ours, wanted)


@same_examples_each_time
@given(a=vectors(5), b=vectors(5), gradient=vectors(5))
def test_product_of_two_carrying_values_gives_half_to_each(a: Any, b: Any, gradient: Any) -> None:
    value = products.mul(x := leaf(a), y := leaf(b))
    half = [ai * bi * gi / 2 for ai, bi, gi in zip(a, b, gradient, strict=True)]
    for ours in relevance(value, tensor(gradient), x, y):
        assert_same(ours, half)


@same_examples_each_time
@given(a=vectors(5), b=vectors(5, st.floats(0.1, 4)), sign=st.sampled_from([-1, 1]), gradient=vectors(5))
def test_quotient_of_two_carrying_values_gives_half_to_each(a: Any, b: Any, sign: int, gradient: Any) -> None:
    value = products.div(x := leaf(a), y := leaf([bi * sign for bi in b]))
    half = [ai / (bi * sign) * gi / 2 for ai, bi, gi in zip(a, b, gradient, strict=True)]
    for ours in relevance(value, tensor(gradient), x, y):
        assert_same(ours, half)


@pytest.mark.parametrize("dim", [0, 1, -1])
@same_examples_each_time
@given(data=st.data(), rows=SIZES, columns=SIZES)
def test_softmax_passes_relevance_by_its_taylor_expansion(
    data: st.DataObject, dim: int, rows: int, columns: int
) -> None:
    """Along whatever dim, with some values masked by -inf, never a whole row."""
    values, gradient = data.draw(matrices(rows, columns)), data.draw(matrices(rows, columns))
    for row in values:
        for position in data.draw(st.sets(st.integers(0, columns - 1), max_size=columns - 1)):
            row[position] = -math.inf
    x = leaf(values)
    value = products.softmax(x.T, 0).T if dim == 0 else products.softmax(x, dim)
    r = (tensor([paper.softmax_value(row) for row in values]) * tensor(gradient)).tolist()
    expected = [paper.softmax(row, r_row) for row, r_row in zip(values, r, strict=True)]
    assert_same(relevance(value, tensor(gradient), x)[0], expected)


@pytest.mark.parametrize("mask_carries", [False, True])
@pytest.mark.parametrize("causal", [False, True])
@same_examples_each_time
@given(data=st.data(), queries=FEW, keys=FEW, width=FEW)
def test_attention_is_matmul_softmax_matmul(
    data: st.DataObject, mask_carries: bool, causal: bool, queries: int, keys: int, width: int
) -> None:
    """All terms of a score have one sign, so that none is 0 by cancellation: the paper divides by it."""
    sign = tensor(data.draw(st.lists(st.sampled_from([-1.0, 1.0]), min_size=queries, max_size=queries)))[:, None]
    q = (tensor(data.draw(matrices(queries, width, NOT_NEGATIVE))) * sign).requires_grad_()
    k, v = leaf(data.draw(matrices(keys, width, NOT_NEGATIVE))), leaf(data.draw(matrices(keys, width)))
    mask = tensor(data.draw(matrices(queries, keys, NOT_NEGATIVE))) * sign
    if causal:
        mask = mask.masked_fill(torch.ones(queries, keys).triu(1) > 0, -math.inf)
    operands = (q, k, v, mask.requires_grad_()) if mask_carries else (q, k, v)
    value = products.sdpa(q[None, None], k[None, None], v[None, None], mask[None, None], scale=0.7)
    g = seed([[data.draw(matrices(queries, width))]], value)
    r = (value * g)[0, 0].tolist()
    expected = paper.attention(q.tolist(), k.tolist(), v.tolist(), 0.7, mask.tolist(), r)
    for ours, wanted in zip(relevance(value, g, *operands), expected, strict=False):
        assert_same(ours, wanted)


@same_examples_each_time
@given(data=st.data(), queries=FEW, keys=FEW, width=FEW)
def test_attention_with_held_weights_is_linear_in_the_values(
    data: st.DataObject, queries: int, keys: int, width: int
) -> None:
    q, k, v = (leaf(data.draw(matrices(rows, width))) for rows in (queries, keys, keys))
    value = products.sdpa_held(q[None, None], k[None, None], v[None, None], scale=0.7)
    g = seed([[data.draw(matrices(queries, width))]], value)
    weights = [paper.softmax_value(row) for row in paper.scores(q.tolist(), k.tolist(), 0.7, [[0.0] * keys] * queries)]
    expected = paper.matmul(weights, v.tolist(), (value * g)[0, 0].tolist(), share=1.0)[1]
    assert_same(relevance(value, g, v)[0], expected)


@same_examples_each_time
@given(data=st.data(), rows=FEW, width=st.integers(1, 5))
def test_layer_norm_holds_the_standard_deviation(data: st.DataObject, rows: int, width: int) -> None:
    x, weights, bias = leaf(data.draw(matrices(rows, width))), data.draw(vectors(width)), data.draw(vectors(width))
    value = norms.layer_norm(x, [width], leaf(weights), leaf(bias), 1e-3)
    g = seed(data.draw(matrices(rows, width)), value, x - x.mean(-1, keepdim=True))
    expected = [
        paper.held_norm(row, weights, bias, 1e-3, r)
        for row, r in zip(x.tolist(), (value * g).tolist(), strict=True)
    ]  # fmt: skip
    assert_same(relevance(value, g, x)[0], expected)


@same_examples_each_time
@given(data=st.data(), groups=FEW, in_group=FEW, inner=FEW)
def test_group_norm_holds_the_standard_deviation_of_each_group(
    data: st.DataObject, groups: int, in_group: int, inner: int
) -> None:
    channels, size = groups * in_group, in_group * inner
    x, weights, bias = leaf([data.draw(matrices(channels, inner))]), *data.draw(matrices(2, channels))
    value = norms.group_norm(x, groups, leaf(weights), leaf(bias), 1e-3)
    grouped = x.reshape(groups, size)
    from_mean = (grouped - grouped.mean(-1, keepdim=True)).reshape(x.shape)
    g = seed([data.draw(matrices(channels, inner))], value, from_mean)
    spread = tensor([weights, bias])[:, :, None].expand(2, channels, inner).reshape(2, groups, size).tolist()
    r = (value * g).reshape(groups, size).tolist()
    expected = [
        paper.held_norm(row, w, b, 1e-3, r_row)
        for row, w, b, r_row in zip(grouped.tolist(), *spread, r, strict=True)
    ]  # fmt: skip
    assert_same(tensor(relevance(value, g, x)[0]).reshape(groups, size).tolist(), expected)


@pytest.mark.parametrize("op", ["rms_norm", "normalize_mul", "normalize_div"])
@same_examples_each_time
@given(x=matrices(2, 4), gradient=matrices(2, 4))
def test_norm_without_mean_passes_the_relevance_of_its_output(op: str, x: Any, gradient: Any) -> None:
    origin = leaf(x)
    statistic = [math.sqrt(sum(xi * xi for xi in row) / 4 + 1e-3) for row in x]
    value = {
        "rms_norm": lambda: norms.rms_norm(origin, [-1], 1e-3),
        "normalize_mul": lambda: norms.normalize_mul(origin, 1 / torch.sqrt(origin.square().mean(-1, True) + 1e-3)),
        "normalize_div": lambda: norms.normalize_div(origin, torch.sqrt(origin.square().mean(-1, True) + 1e-3)),
    }[op]()
    expected = [
        [xi / s * gi for xi, gi in zip(row, g_row, strict=True)]
        for row, s, g_row in zip(x, statistic, gradient, strict=True)
    ]
    assert_same(relevance(value, tensor(gradient), origin)[0], expected)


@pytest.mark.parametrize("case", [pytest.param(c, id=n) for n, c in CASES.items() if c.leak is not None])
def test_op_conserves_all_but_its_known_leak(case: Case) -> None:
    arguments = case.make(torch.float64)
    value = case.run(*arguments)
    g = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
    passed = torch.zeros((), dtype=torch.float64)
    if value.requires_grad:
        operands = leaves(arguments)
        passed = sum(map(torch.sum, map(torch.mul, operands, torch.autograd.grad(value, operands, g))), passed)
    assert case.leak is not None
    torch.testing.assert_close(passed + case.leak(arguments, value, g), (value * g).sum(), rtol=1e-12, atol=1e-12)


def test_hold_passes_nothing() -> None:
    held = products.hold(leaf([1.0, 2.0]))
    assert not held.requires_grad
    assert held.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["sdpa", "sdpa_causal", "sdpa_masked", "sdpa_biased", "sdpa_of_groups"])
def test_attention_gives_half_to_values_and_as_much_to_queries_as_to_keys(name: str) -> None:
    """The softmax absorbs a part of the half of the weights; queries and keys share the rest alike."""
    arguments = CASES[name].make(torch.float64)
    value = CASES[name].run(*arguments)
    g = torch.linspace(-1, 2, value.numel(), dtype=torch.float64).reshape(value.shape)
    r_q, r_k, r_v = (tensor(r).sum() for r in relevance(value, g, *leaves(arguments)))
    torch.testing.assert_close(r_v, (value * g).sum() / 2, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(r_q, r_k, rtol=1e-12, atol=1e-12)
