"""float16 and bfloat16: wherever the forward value is finite the gradient is too, and right to the last digits that the
type has, also at 0, at subnormal and at large numbers, where all scores are masked and in sequences of length 1."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from activation_cases import BELOW_ONE, BY_NAME, CURVES, INFINITE, NOT_NEGATIVE
from op_cases import ACTIVE, CASES, LINEAR_RULES, POINTWISE, Case, leaves
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lxt_fx.ops import activations, norms, products

HALF = [torch.float16, torch.bfloat16]
TYPES = [*HALF, torch.float32, torch.float64]

every_pointwise = pytest.mark.parametrize("case", POINTWISE, ids=lambda case: case.name)


def every_number(dtype: torch.dtype) -> Tensor:
    """All numbers of a 16-bit type with both zeros, both infinities and the subnormal ones."""
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return numbers[~numbers.isnan()]


def ratio_of(case: Case, x: Tensor) -> tuple[Tensor, Tensor]:
    """The op's value and the factor that its backward multiplies by."""
    x = x.clone().requires_grad_()
    value = case.run(x, *case.make(x.dtype)[1:])
    (factor,) = torch.autograd.grad(value, x, torch.ones_like(value))
    return value.detach(), factor


def expected_ratio(case: Case, x: Tensor) -> Tensor:
    """(f(x) - f(0)) / x of the plain function in float64, and its limit where that quotient has no digits."""
    x = x.double()
    y = case.run_plain(x, *case.make(torch.float64)[1:])
    at_zero = case.run_plain(torch.zeros_like(x), *case.make(torch.float64)[1:])
    if case.name == "hardsigmoid":  # a closed gate passes nothing
        at_zero = torch.where(x > -3, at_zero, y)
    curve = BY_NAME[case.name]
    near = x == 0 if curve.kink else x.abs() < 1e-6  # at a kink the limit stands for 0 alone
    quotient = torch.where(near, curve.limit, (y - at_zero) / x)
    return quotient if curve.near is None else torch.where(x.abs() < 1e-3, curve.near(x), quotient)


@every_pointwise
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_factor_at_zero_is_the_limit(case: Case, dtype: torch.dtype, zero: float) -> None:
    _, factor = ratio_of(case, torch.full((8,), zero, dtype=dtype))
    limit = torch.full_like(factor, BY_NAME[case.name].limit)
    torch.testing.assert_close(factor, limit, rtol=torch.finfo(dtype).eps, atol=0)


@every_pointwise
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_factor_is_right_at_every_half_precision_number(case: Case, dtype: torch.dtype) -> None:
    """Measured: at most 1.4 times the distance of two numbers next to 1."""
    x = every_number(dtype)
    value, factor = ratio_of(case, x)
    finite = value.isfinite()
    assert finite.sum() > 1000
    assert factor[finite].isfinite().all()
    usable = finite & x.isfinite()
    torch.testing.assert_close(
        factor[usable].double(),
        expected_ratio(case, x)[usable],
        rtol=2 * torch.finfo(dtype).eps,
        atol=1e-7 if dtype is torch.float16 else 1e-15,
    )


@every_pointwise
def test_factor_is_right_at_the_edges_of_float32(case: Case) -> None:
    near = torch.logspace(-45, 1, 2000, dtype=torch.float64).float()
    x = torch.cat([near, -near, torch.tensor([88.0, -88.0, -103.0, 1e20, -1e20, 3e38, -3e38])])
    value, factor = ratio_of(case, x)
    finite = value.isfinite()
    assert factor[finite].isfinite().all()
    torch.testing.assert_close(factor[finite].double(), expected_ratio(case, x)[finite], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize(("name", "slope"), [("tanh", 1.0), ("silu", 0.5), ("exp", 1.0), ("sigmoid", 0.25)])
def test_identity_is_right_at_every_half_precision_number(name: str, slope: float, dtype: torch.dtype) -> None:
    """Where f(0) is not 0 the quotient loses digits near 0: half of those that the type has, at worst."""
    plain = CASES[name].plain
    x = every_number(dtype)
    x = x[plain(x).isfinite() & (x.abs() >= torch.finfo(dtype).tiny)].requires_grad_()
    at_zero = plain(torch.zeros(())).item()
    value = activations.identity(x, plain(x), at_zero, slope)
    (factor,) = torch.autograd.grad(value, x, torch.ones_like(value))
    finite = x.detach().isfinite()
    assert factor.isfinite().all()
    digits = 2 * (torch.finfo(dtype).eps ** (0.5 if at_zero else 1))
    expected = expected_ratio(CASES[name], x.detach())
    torch.testing.assert_close(factor[finite].double(), expected[finite], rtol=digits, atol=1e-7)


@pytest.mark.parametrize(("before", "after"), [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)])
def test_identity_takes_a_region_that_casts(before: torch.dtype, after: torch.dtype) -> None:
    """exp in another type: the coarser one says how near to 0 the quotient still has digits."""
    x = torch.linspace(-2, 2, 1001).to(before).requires_grad_()
    value = activations.identity(x, torch.exp(x.detach().to(after)), 1.0, 1.0)
    (factor,) = torch.autograd.grad(value, x, torch.ones_like(value))
    assert factor.dtype is before
    expected = expected_ratio(CASES["exp"], x.detach())
    torch.testing.assert_close(factor.double(), expected, rtol=0.1, atol=0)


FILLS: dict[str, Callable[[torch.dtype], float]] = {
    "zero": lambda dtype: 0.0,
    "subnormal": lambda dtype: torch.finfo(dtype).tiny / 4,
    "large": lambda dtype: torch.finfo(dtype).max * 0.9,
}

OVERFLOWS_WHEN_LARGE = {
    *(curve.name for curve in CURVES if curve.overflows or curve.where == BELOW_ONE), *INFINITE,
    "linear", "linear_without_bias", "head", "matmul", "matmul_held",
    "einsum", "einsum_of_three", "mul", "normalize_div", "layer_norm", "layer_norm_over_two_dims", "group_norm",
    "group_norm_without_weight", "sdpa", "sdpa_causal", "sdpa_masked", "sdpa_biased", "sdpa_of_carrying_mask",
    "sdpa_of_groups", "sdpa_held", "gated_by_silu", "gated_by_gelu", "gated_by_gelu_tanh", "rotate",
    "linears", "linears_sparse", "grouped_sdpa", "grouped_matmul", "active_gelu", "active_hardswish",
    "matmul_by_shares", "einsum_by_shares", "mul_by_shares", "mul_by_a_position",
    *(name for name in CASES if name.startswith("sdpa_at_a_temperature")),
    *(f"linear_{kind}" for kind in ACTIVE), "patches_1d", "patches_2d", "patches_3d",
}  # fmt: skip
"""Cases whose plain op overflows in one of the types, so that nothing is asked of the gradient."""

DIVISIONS_BY_NEXT_TO_NOTHING = {
    ("div", "zero"), ("div", "subnormal"), *((name, fill) for name in INFINITE for fill in ("zero", "subnormal")),
}  # fmt: skip
"""The gradient of a / b is 1 / b, which is no number of these types, though a / b and its relevance are. Functions that are
infinite at 0, or undefined, have no value here."""


@pytest.mark.parametrize(
    ("name", "fill"),
    [
        (name, fill)
        for name in CASES
        for fill in FILLS
        if name != "hold" and (name, fill) not in DIVISIONS_BY_NEXT_TO_NOTHING
    ],
)
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_gradient_is_finite_where_the_value_is(name: str, fill: str, dtype: torch.dtype) -> None:
    case = CASES[name]
    arguments = case.make(dtype)
    with torch.no_grad():
        for leaf in leaves(arguments):
            leaf.fill_(FILLS[fill](dtype))
            leaf.view(-1)[::2] *= 1 if name in INFINITE or (name in BY_NAME and BY_NAME[name].where == NOT_NEGATIVE) else -1
    value = case.run(*arguments)
    if not value.isfinite().all():
        assert fill == "large"
        assert name in OVERFLOWS_WHEN_LARGE | {case.name for case in LINEAR_RULES}
        return
    for gradient in torch.autograd.grad(value, leaves(arguments), torch.ones_like(value)):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("op", ["layer_norm", "group_norm"])
def test_mean_of_a_norm_is_not_rounded_to_half_precision(op: str, dtype: torch.dtype) -> None:
    """A rounded mean is off by the same amount at every element: together 1.1 % of all that passes, and 0.02 % without."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4096, generator=generator).to(dtype).requires_grad_()
    g = (1 + 4 * torch.finfo(dtype).eps * torch.randn(1, 4096, generator=generator)).to(dtype)
    value = norms.layer_norm(x, [4096]) if op == "layer_norm" else norms.group_norm(x, 1)
    (gradient,) = torch.autograd.grad(value, x, g)
    assert gradient.double().sum().abs() < 0.001 * gradient.double().abs().sum()


BACKENDS = pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=["math", "flash"])


@BACKENDS
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("tokens", [1, 5, 40])
@pytest.mark.parametrize("mask", ["none of True", "-inf", "smallest number"])
@pytest.mark.parametrize("name", ["sdpa", "sdpa_held"])
def test_attention_with_a_fully_masked_query_is_finite(
    name: str, mask: str, tokens: int, dtype: torch.dtype, backend: SDPBackend
) -> None:
    """The query is one of padding; a query that is masked by False or -inf everywhere reads nothing and gets nothing."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, tokens, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    allowed = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    allowed[tokens // 2] = False
    fill = -math.inf if mask == "-inf" else torch.finfo(dtype).min
    given = allowed if mask == "none of True" else torch.zeros(tokens, tokens, dtype=dtype).masked_fill(~allowed, fill)
    with sdpa_kernel(backend):
        value = (products.sdpa if name == "sdpa" else products.sdpa_held)(q, k, v, given)
        gradients = torch.autograd.grad(value, (q, k, v) if name == "sdpa" else (v,), torch.ones_like(value))
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    if mask != "smallest number":
        assert value[:, :, tokens // 2].abs().max() == 0
        assert name == "sdpa_held" or gradients[0][:, :, tokens // 2].abs().max() == 0


@BACKENDS
def test_masked_padding_query_that_nothing_reads_adds_nothing(backend: SDPBackend) -> None:
    """Torch's flash kernel multiplies the gradient of a query whose mask is the smallest number everywhere by the number of
    keys. No gradient reaches the queries of padding tokens, so relevance stays right."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1, 4, 8, generator=generator).requires_grad_() for _ in range(3))
    mask = torch.zeros(4, 4)
    mask[:, 0] = mask[0] = torch.finfo(torch.float32).min
    with sdpa_kernel(backend):
        value = products.sdpa(q, k, v, mask)
        ours = torch.autograd.grad(value[:, :, 1:].sum(), (q, k, v))
    unpadded = products.sdpa(q[:, :, 1:], k[:, :, 1:], v[:, :, 1:])
    torch.testing.assert_close(ours, torch.autograd.grad(unpadded.sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_softmax_of_masked_scores_is_finite(dtype: torch.dtype) -> None:
    """One query masked but for one key, one masked by the smallest number throughout, one of length 1."""
    scores = torch.zeros(2, 4, dtype=dtype)
    scores[0, 1:] = -math.inf
    scores[1] = torch.finfo(dtype).min
    for x in (scores, scores[:, :1]):
        x = x.clone().requires_grad_()
        value = products.softmax(x, -1)
        (gradient,) = torch.autograd.grad(value, x, torch.arange(value.numel()).reshape(value.shape).to(dtype))
        assert value.isfinite().all()
        assert gradient.isfinite().all()
        assert gradient[0].abs().max() == 0


@pytest.mark.parametrize("dtype", [*HALF, torch.float32], ids=str)
def test_softmax_in_a_smaller_type_takes_scores_that_are_all_the_smallest_number(dtype: torch.dtype) -> None:
    """The lowest float64 would be -inf in float32, and the weights NaN."""
    x = torch.full((2, 4), torch.finfo(torch.float64).min, dtype=torch.float64)
    x[0, 0] = 1
    value = products.softmax(x.requires_grad_(), -1, dtype)
    (gradient,) = torch.autograd.grad(value, x, torch.arange(8).reshape(2, 4).to(dtype))
    assert value.tolist() == [[1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_norm_of_a_single_element_passes_nothing_through_its_mean(dtype: torch.dtype) -> None:
    """x - mean(x) is 0 for one element, so layer norm passes nothing; RMS norm passes g / |x|."""
    x = torch.tensor([[3.0], [-3.0]], dtype=dtype, requires_grad=True)
    (layer,) = torch.autograd.grad(norms.layer_norm(x, [1]).sum(), x)
    (rms,) = torch.autograd.grad(norms.rms_norm(x, [-1], 1e-4).sum(), x)
    assert layer.abs().max() == 0
    torch.testing.assert_close(rms, torch.full_like(x, 1 / 3), rtol=2 * torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_norm_of_small_numbers_passes_relevance_and_of_zeros_none(dtype: torch.dtype) -> None:
    """The squares of the first vector are 0 in float16, its norm is not. A vector of zeros has no relevance to pass on."""
    x = torch.tensor([[1e-4, -1e-4], [0.0, 0.0]], dtype=dtype, requires_grad=True)
    value = norms.rms_norm(x, [-1], 1e-6)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(x[0] * gradient[0], value[0], rtol=2 * torch.finfo(dtype).eps, atol=0)
    assert gradient[1].abs().max() == 0
