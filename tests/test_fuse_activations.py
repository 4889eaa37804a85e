"""Activations that save y / x, patches of images, and linear maps that skip positions without a gradient: the fused graph
against the lowered one and against the closed form, what is not fused, and what a backward does not compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_cases import ACTIVE
from rounding import assert_same
from shared_captures import explained, one_worker
from test_fuse import check_equal, ops
from torch import Tensor, nn

import lxt_fx
from lxt_fx.ops import active, fused, gradient_product, products
from lxt_fx.ops.active import linear_active
from lxt_fx.ops.patches import patches
from lxt_fx.passes.fuse.fuse import fuse

RATIOS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: torch.special.ndtr(x),
    "gelu_tanh": lambda x: (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "gelu_written_out": lambda x: (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: torch.sigmoid(1.702 * x),
    "silu": torch.sigmoid,
    "hardswish": lambda x: (x / 6 + 0.5).clamp(0, 1),
    "mish": lambda x: torch.tanh(F.softplus(x)),
    "tanh": lambda x: torch.where(x == 0, 1.0, torch.tanh(x) / x),
}
"""y / x of each kind in closed form, written apart from lxt_fx."""

EDGES = (0.0, -0.0, 1e-300, -1e-300, 1e-40, 1e-3, -1e-3, 3.0, -3.0, 20.0, -20.0, 1e3, -1e3)
"""Sums at which a quotient might fail."""


class Net(nn.Module):
    """A linear map or convolution, an activation, and a linear map."""

    def __init__(self, function: Callable[[Tensor], Tensor], first: nn.Module, width: int) -> None:
        super().__init__()
        self.function, self.first, self.last = function, first, nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))  # type: ignore[no-any-return]


def of_linear(function: Callable[[Tensor], Tensor]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Net(function, nn.Linear(4, 6), 6).double().eval(), torch.randn(2, 5, 4, dtype=torch.float64)


@pytest.mark.parametrize("kind", ACTIVE)
def test_activation_of_a_linear_map_is_one_op_and_of_another_value_another(kind: str) -> None:
    net, x = of_linear(ACTIVE[kind])
    module = lxt_fx.transform(net, (x,))
    assert linear_active in ops(module) and products.linear not in ops(module)[:-2]
    check_equal(module, x=x.requires_grad_())
    torch.manual_seed(0)
    convolved = lxt_fx.transform(Net(ACTIVE[kind], nn.Conv1d(5, 5, 3, padding=1), 4).double().eval(), (x.detach(),))
    assert active.active in ops(convolved) and linear_active not in ops(convolved)
    check_equal(convolved, x=x)


@pytest.mark.parametrize("kind", ACTIVE)
def test_gradient_is_that_of_the_closed_form_at_zero_and_far_from_it(kind: str) -> None:
    """Sums are the inputs (the map is the identity), and the gradient of each is its ratio."""
    sums = torch.tensor([*EDGES, *torch.linspace(-6, 6, 25).tolist()], dtype=torch.float64)[:, None].requires_grad_()
    one = torch.ones(1, 1, dtype=torch.float64)
    for value in (linear_active(sums, one, None, kind), active.active(sums, kind)):
        (gradient,) = torch.autograd.grad(value.sum(), sums)
        torch.testing.assert_close(gradient, RATIOS[kind](sums.detach()), rtol=1e-12, atol=4e-16)


@pytest.mark.parametrize("kind", ACTIVE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ratio_in_lower_precision_is_that_of_float64_to_two_roundings(kind: str, dtype: torch.dtype) -> None:
    sums = torch.cat([torch.tensor([0.0, 1e-7, -1e-7, 60.0, -60.0]), torch.linspace(-8, 8, 201)]).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad(active.active(sums, kind).sum(), sums)
    assert gradient.dtype == dtype
    expected = RATIOS[kind](sums.detach().double())
    torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["gelu", "gelu_written_out"])
def test_relevance_is_that_of_the_lowered_graph_in_float32(kind: str) -> None:
    net, x = of_linear(ACTIVE[kind])
    check_equal(lxt_fx.transform(net.float(), (x.float(),)), 1e-6, x=x.float().requires_grad_())


def test_written_out_activation_has_the_dtypes_of_the_model_under_autocast() -> None:
    net, x = of_linear(ACTIVE["gelu_written_out"])
    net, x = net.float(), x.float()
    module = lxt_fx.transform(net, (x,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        leaf = x.clone().requires_grad_()
        value, expected = module(leaf), net(x)
        assert value.dtype == expected.dtype and torch.equal(value, expected)
        value.sum().backward()
    assert leaf.grad is not None and leaf.grad.dtype == torch.float32
    exact = x.clone().requires_grad_()
    module(exact).sum().backward()
    assert exact.grad is not None
    assert_same(leaf.grad, exact.grad, 3e-2)


def _read_twice(x: Tensor) -> Tensor:
    return F.gelu(x) + x.flip(-1)


def _almost_gelu(x: Tensor) -> Tensor:
    """With another factor of x^3."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.05 * torch.pow(x, 3.0))))


@pytest.mark.parametrize(
    ("function", "expected"),
    [(_read_twice, {active.active: 1, linear_active: 0}), (_almost_gelu, {active.active: 0, linear_active: 0})],
)
def test_what_is_read_elsewhere_or_is_another_function_is_not_fused(
    function: Callable[[Tensor], Tensor], expected: dict[Any, int]
) -> None:
    net, x = of_linear(function)
    module = lxt_fx.transform(net, (x,))
    assert {op: ops(module).count(op) for op in expected} == expected
    check_equal(module, x=x.requires_grad_())


CONVOLUTIONS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...], bool]] = {
    "patches": (lambda: nn.Conv2d(3, 4, 2, stride=2), (2, 3, 6, 4), True),
    "patches with a rest": (lambda: nn.Conv2d(3, 4, (2, 3), stride=(2, 3)), (2, 3, 7, 11), True),
    "frames": (lambda: nn.Conv1d(3, 4, 5, stride=5, bias=False), (2, 3, 17), True),
    "tubes": (lambda: nn.Conv3d(1, 4, 2, stride=2), (2, 1, 4, 5, 4), True),
    "overlapping": (lambda: nn.Conv2d(3, 4, 3, stride=2), (2, 3, 7, 7), False),
    "padded": (lambda: nn.Conv2d(3, 4, 2, stride=2, padding=1), (2, 3, 6, 6), False),
    "in groups": (lambda: nn.Conv2d(4, 4, 2, stride=2, groups=2), (2, 4, 6, 6), False),
    "dilated": (lambda: nn.Conv2d(3, 4, 2, stride=2, dilation=2), (2, 3, 7, 7), False),
    "with gaps": (lambda: nn.Conv2d(3, 4, 2, stride=3), (2, 3, 8, 8), False),
    "of single pixels": (lambda: nn.Conv2d(3, 4, 1), (2, 3, 4, 4), False),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_without_overlap_is_patches(name: str) -> None:
    make, size, fits = CONVOLUTIONS[name]
    torch.manual_seed(0)
    x = torch.randn(size, dtype=torch.float64)
    module = lxt_fx.transform(nn.Sequential(make(), nn.Tanh()).double().eval(), (x,))
    assert (patches in ops(module)) == fits
    check_equal(module, input=x.requires_grad_())


# --- positions without a gradient -----------------------------------------------------------------------------------------


def test_positions_without_a_gradient_are_not_multiplied() -> None:
    """NaN in the matrix would show: 0 * NaN is NaN."""
    matrix = torch.full((5, 4), math.nan, dtype=torch.float64)
    gradient = torch.zeros(6, 5, dtype=torch.float64)
    gradient[2, 3] = 2.0
    with torch.no_grad():
        found, whole = (gradient_product.times_weight(gradient, matrix, sparse) for sparse in (True, False))
    assert bool(found[2].isnan().all()) and bool((found[[0, 1, 3, 4, 5]] == 0).all())
    assert bool(whole.isnan().all())


@pytest.mark.parametrize("reached", [[], [0], [2, 5], [0, 1, 2, 3, 4, 5]])
def test_product_of_few_positions_is_that_of_all(reached: list[int]) -> None:
    torch.manual_seed(0)
    matrix, gradient = torch.randn(5, 4, dtype=torch.float64), torch.zeros(6, 5, dtype=torch.float64)
    gradient[reached] = torch.randn(len(reached), 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(gradient_product.times_weight(gradient, matrix, sparse=True), gradient @ matrix)
    torch.library.opcheck(gradient_product.product, (gradient, matrix, True))


def test_a_position_that_is_nan_stays_one() -> None:
    gradient = torch.zeros(3, 5)
    gradient[1, 2] = math.nan
    with torch.no_grad():
        found = gradient_product.times_weight(gradient, torch.ones(5, 4), sparse=True)
    assert bool(found[1].isnan().all()) and bool((found[0] == 0).all())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("strided", [False, True])
def test_product_by_onednn_is_that_of_torch(strided: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on processors on which torch's own is as fast, and where the weight is a transposed view (GPT-2)."""
    monkeypatch.setattr(gradient_product, "ONEDNN", torch.ops.mkldnn._linear_pointwise)
    torch.manual_seed(0)
    matrix = torch.randn(48, 40).t() if strided else torch.randn(40, 48)
    for positions in (1, 8, 33):
        gradient = torch.randn(positions, 40)
        with torch.no_grad():
            found = gradient_product.times_weight(gradient, matrix)
        torch.testing.assert_close(found.double(), gradient.double() @ matrix.double(), rtol=0, atol=2e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_shares_of_maps_by_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x, maps = torch.randn(9, 16, requires_grad=True), [torch.randn(12, 16), torch.randn(7, 16)]
    found = []
    for kernel in (torch.ops.mkldnn._linear_pointwise, None):
        monkeypatch.setattr(gradient_product, "ONEDNN", kernel)
        values = fused.linears(x, maps, [None, None], [0.25, 0.5])
        found.append(torch.autograd.grad(sum(value.square().sum() for value in values), x)[0])  # type: ignore[union-attr]
    assert_same(found[0], found[1], 1e-6)


@one_worker("vit")
def test_maps_after_the_last_attention_skip_positions() -> None:
    """A ViT is asked for a class, which it reads from its first position."""
    module = explained("vit", torch.float64)
    marked = [str(node.args[1]) for node in fuse(module).nodes if node.kwargs.get("sparse")]
    assert marked and all("layers_1" in name or "layer_1" in name for name in marked), marked


class Attends(nn.Module):
    """One attention, and maps before and after it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before, self.after, self.norm = nn.Linear(8, 256), nn.Linear(256, 256), nn.LayerNorm(256)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.before(x))[:, None]
        return self.norm(self.after(F.scaled_dot_product_attention(y, y, y)[:, 0]))  # type: ignore[no-any-return]


def test_only_maps_whose_positions_no_op_mixes_skip_some() -> None:
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    module = lxt_fx.transform(Attends().double().eval(), (x,))
    sparse = {node.target: bool(node.kwargs.get("sparse")) for node in fuse(module).nodes if node.op == "call_function"}
    assert sparse[linear_active] is False and sparse[fused.linears] is True
    leaf = x.requires_grad_()
    found = []
    for each in (module, torch.fx.GraphModule(module, module.graph)):
        found.append(torch.autograd.grad(each(x=leaf)[1, 3, 7], leaf)[0])
    assert_same(found[0], found[1], 1e-12)
    assert bool(found[0][1].abs().sum(-1).all())
