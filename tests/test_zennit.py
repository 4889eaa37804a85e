"""Every rule and composite of zennit that is LRP, in both forms: on layers, and on nets with batch norms and residual sums.

The rules that weigh contributions are compared on every layer in test_linear_rules.py.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zennit_rules
from golden_cases import relative
from test_linear_rules import LAYERS
from torch import Tensor, nn

import lxt_fx
from lxt_fx.ledger.causes import Cause
from lxt_fx.rule_table import linear_rules, tables

ATTNLRP = lxt_fx.TABLES["attnlrp"]
FORMS = ("gradient", "explicit")
EXPLICIT = pytest.mark.slow("whole nets by the form whose every rule test_rules_equal_zennit_in_both_forms compares")
LOW, HIGH = -3.0, 4.0

pytestmark = [
    pytest.mark.skipif(zennit_rules.SPEC is None, reason="zennit is not installed"),
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

RULES = {
    "Epsilon": "linear_rules.epsilon",
    "Gamma": "linear_rules.gamma",
    "ZPlus": "linear_rules.z_plus; with zero_params='bias': linear_rules.excitation",
    "AlphaBeta": "linear_rules.alpha_beta",
    "ZBox": "linear_rules.z_box",
    "WSquare": "linear_rules.w_square",
    "Flat": "linear_rules.flat",
    "Norm": "rules sum and linear, with transform(epsilon=)",
    "Pass": "rule identity; a batch norm that was merged is not there",
    "ReLUDeconvNet": "no LRP: a gradient without its negative part",
    "ReLUGuidedBackprop": "no LRP: a gradient without its negative part",
    "ReLUBetaSmooth": "no LRP: the gradient of another function",
}
"""What each rule of zennit is here."""

COMPOSITES = {
    "epsilon_plus": "table epsilon_plus",
    "epsilon_plus_flat": "tables.epsilon_plus(linear_rules.flat())",
    "epsilon_alpha2_beta1": "table epsilon_alpha2_beta1",
    "epsilon_alpha2_beta1_flat": "tables.epsilon_alpha2_beta1(linear_rules.flat())",
    "epsilon_gamma_box": "tables.epsilon_gamma_box(low, high)",
    "excitation_backprop": "z_plus or excitation at *",
    "deconvnet": "no LRP",
    "guided_backprop": "no LRP",
    "beta_smooth": "no LRP",
}
"""What each composite of zennit is here."""


def test_every_rule_and_composite_of_zennit_is_listed() -> None:
    found = zennit_rules.rules()
    hooks = {name for name, item in inspect.getmembers(found, inspect.isclass) if issubclass(item, found.Hook)}
    assert hooks - {"Hook", "BasicHook"} == set(RULES)
    assert set(zennit_rules.module("composites").COMPOSITES) == set(COMPOSITES)


def relevance_of(net: nn.Module, x: Tensor, r: Tensor, table: Any, form: str, epsilon: float = 0.0) -> Tensor:
    """Relevance of x, given that of the output; where that is 0, none reaches the fast form."""
    explained = lxt_fx.transform(net, (x,), rules=table, form=form, epsilon=epsilon, dynamic=False)
    leaf = x.clone().requires_grad_()
    z = explained(leaf)
    if form == "explicit":
        return torch.autograd.grad(z, leaf, r)[0]
    return x * torch.autograd.grad(z, leaf, torch.where(z == 0, 0, r / z.detach()))[0]


def check_layer(layer: nn.Module, x: Tensor, rule: Any, table: Any, epsilon: float = 0.0) -> None:
    z = layer(x).detach()
    r = torch.where(z == 0, 0, torch.randn_like(z))
    expected = zennit_rules.relevance(rule, layer, x, r)
    for form in FORMS:
        assert relative(relevance_of(nn.Sequential(layer), x, r, table, form, epsilon), expected) <= 1e-8


@pytest.mark.parametrize("epsilon", [pytest.param(1e-6, marks=pytest.mark.slow("an epsilon that hardly matters")), 0.1])
@pytest.mark.parametrize("name", LAYERS)
def test_epsilon_and_norm_on_linear_layers(name: str, epsilon: float) -> None:
    """Norm is epsilon by another name. Measured: up to 3.4e-16."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape, dtype=torch.float64)
    check_layer(layer, x, zennit_rules.rules().Epsilon(epsilon), ATTNLRP.override("0", linear_rules.epsilon(epsilon)))
    check_layer(layer, x, zennit_rules.rules().Norm(epsilon), "attnlrp", epsilon)


POOLS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "avg_pool1d": (nn.AvgPool1d(3, stride=2, padding=1), (2, 3, 9)),
    "avg_pool2d": (nn.AvgPool2d((3, 2), stride=(2, 1), ceil_mode=True), (2, 3, 8, 5)),
    "avg_pool3d": (nn.AvgPool3d(2, padding=1, count_include_pad=False), (1, 2, 4, 3, 4)),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d(4), (2, 3, 9)),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d((3, 1)), (2, 3, 8, 5)),
    "adaptive_avg_pool3d": (nn.AdaptiveAvgPool3d(2), (1, 2, 5, 4, 3)),
}


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
@pytest.mark.parametrize("name", POOLS)
def test_norm_on_average_pools(name: str, epsilon: float) -> None:
    """Measured: up to 3.1e-16."""
    layer, shape = POOLS[name]
    x = torch.randn(shape, dtype=torch.float64)
    check_layer(layer, x, zennit_rules.rules().Norm(epsilon), "attnlrp", epsilon)


class Residual(nn.Module):
    """The sum of two values as models write it."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., 0] + x[..., 1]


@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
def test_norm_on_sums(epsilon: float) -> None:
    """A residual sum is `Sum` in zennit, which asks for a module; here it is any sum. Measured: up to 1.6e-16."""
    total, norm = zennit_rules.module("layer").Sum(-1), zennit_rules.rules().Norm(epsilon)
    check_layer(total, torch.randn(2, 3, 4, dtype=torch.float64), norm, "attnlrp", epsilon)
    x = torch.randn(2, 3, 2, dtype=torch.float64)
    r = torch.randn(2, 3, dtype=torch.float64)
    expected = zennit_rules.relevance(norm, total, x, r)
    for form in FORMS:
        assert relative(relevance_of(Residual(), x, r, "attnlrp", form, epsilon), expected) <= 1e-8


PASSED = (
    nn.ReLU, nn.LeakyReLU, nn.ReLU6, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Hardtanh,
    nn.Hardswish, nn.Softsign, nn.Tanhshrink,
)  # fmt: skip


@pytest.mark.parametrize("activation", PASSED, ids=lambda activation: activation.__name__)
def test_pass_on_activations(activation: type[nn.Module]) -> None:
    """Measured: up to 6.8e-16."""
    x = torch.randn(3, 7, dtype=torch.float64)
    check_layer(activation().eval(), x, zennit_rules.rules().Pass(), "attnlrp")


def test_pass_on_a_batch_norm_gives_its_input_what_its_constant_takes_here() -> None:
    """One that is not merged is a linear map with a bias here, as in AttnLRP; zennit hands on all."""
    torch.manual_seed(0)
    norm, x = nn.BatchNorm1d(5).double().eval(), torch.randn(1, 5, dtype=torch.float64)
    nn.init.normal_(norm.weight)
    check_layer(norm, x, zennit_rules.rules().Pass(), "attnlrp")  # y = a x
    nn.init.normal_(norm.bias)
    norm.running_mean.normal_()
    z = norm(x).detach()
    more = zennit_rules.relevance(zennit_rules.rules().Pass(), norm, x, z) - relevance_of(norm, x, z, "attnlrp", "gradient")
    ledger = lxt_fx.audit(lxt_fx.transform(norm, (x,), dynamic=False), x, lambda output: output.sum(1))
    torch.testing.assert_close(ledger.by_cause()[Cause.BIAS].sum(), more.sum())
    assert bool(more.sum().abs() > 0.1)


def settled(net: nn.Module) -> nn.Module:
    """The net in float64 and eval, its batch norms with statistics of their own."""
    for norm in net.modules():
        if isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 1.5)
    return net.double().eval()


TINY = 1e-14
"""Of batch norms: one that zennit has merged still divides by sqrt(1 + eps), which changes its forward."""


def straight() -> nn.Module:
    """Convolutions with batch norms, both kinds of pools, linear layers, one with a batch norm."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, TINY), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False), nn.BatchNorm2d(8, TINY), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(8 * 3 * 2, 10), nn.BatchNorm1d(10, TINY), nn.ReLU(), nn.Dropout(), nn.Linear(10, 4),
    )  # fmt: skip


class Block(nn.Module):
    """A residual block with a convolution on the way past it; its sum is a module, as zennit asks for."""

    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        self.first, self.norm_first = nn.Conv2d(channels, wider, 3, padding=1, bias=False), nn.BatchNorm2d(wider, TINY)
        self.act = nn.ReLU()
        self.second, self.norm_second = nn.Conv2d(wider, wider, 3, padding=1), nn.BatchNorm2d(wider, TINY)
        self.past, self.norm_past = nn.Conv2d(channels, wider, 1, bias=False), nn.BatchNorm2d(wider, TINY)
        self.sum, self.last = zennit_rules.module("layer").Sum(-1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        found = self.norm_second(self.second(self.act(self.norm_first(self.first(x)))))
        return self.last(self.sum(torch.stack((found, self.norm_past(self.past(x))), -1)))


def residual() -> nn.Module:
    """Two residual blocks, as in a ResNet."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4, TINY), nn.ReLU(), Block(4, 6), Block(6, 5), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(5, 4),
    )  # fmt: skip


NETS: dict[str, Callable[[], nn.Module]] = {"straight": straight, "residual": residual}

TABLES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "epsilon_plus": ("EpsilonPlus", "epsilon_plus", {}),
    "epsilon_plus_flat": ("EpsilonPlusFlat", tables.epsilon_plus(linear_rules.flat()), {}),
    "epsilon_alpha2_beta1": ("EpsilonAlpha2Beta1", "epsilon_alpha2_beta1", {}),
    "epsilon_alpha2_beta1_flat": ("EpsilonAlpha2Beta1Flat", tables.epsilon_alpha2_beta1(linear_rules.flat()), {}),
    "epsilon_gamma_box": ("EpsilonGammaBox", tables.epsilon_gamma_box(LOW, HIGH), {"low": LOW, "high": HIGH}),
    "excitation_backprop": ("ExcitationBackprop", {"*": linear_rules.z_plus()}, {}),
    "excitation_backprop_no_bias": ("ExcitationBackprop", {"*": linear_rules.excitation()}, {"zero_params": "bias"}),
}
"""Zennit's composite, the rules for it here, its arguments."""


@pytest.mark.parametrize("form", ["gradient", pytest.param("explicit", marks=EXPLICIT)])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", TABLES)
def test_composites_on_whole_nets(name: str, net: str, form: str) -> None:
    """Both with an epsilon of 1e-6 in every rule. Measured: up to 1.9e-13."""
    torch.manual_seed(0)
    made, x = settled(NETS[net]()), torch.randn(2, 3, 12, 8, dtype=torch.float64).clamp(LOW, HIGH)
    composite, rules, arguments = TABLES[name]
    canonizer = zennit_rules.module("canonizers").SequentialMergeBatchNorm()
    theirs = getattr(zennit_rules.module("composites"), composite)(**arguments, canonizers=[canonizer])
    r = torch.zeros(2, 4, dtype=torch.float64)
    r[:, 1] = made(x)[:, 1].detach()
    expected = zennit_rules.relevance_of_net(theirs, copy.deepcopy(made), x, r)
    assert relative(relevance_of(made, x, r, rules, form, 1e-6), expected) <= 1e-8
