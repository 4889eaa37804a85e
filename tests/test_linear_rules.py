"""Rules for linear maps with constant weights: against loops copied from the papers, against zennit, in both forms; what
they conserve, what is printed, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import rule_loops as loops
import torch
import zennit_rules
from golden_cases import relative
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import BY_RULE, LINEAR_RULES, Case, leaves
from torch import Tensor, nn

import lxt_fx
from lxt_fx.ledger.causes import Cause
from lxt_fx.ops import contributions
from lxt_fx.ops.explicit_contributions import PARTS
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import linear_rules as rules
from lxt_fx.rule_table.rule import Rule

ATTNLRP = lxt_fx.TABLES["attnlrp"]
LOW, HIGH = -3.0, 4.0

LOOPS: dict[str, tuple[Callable[..., loops.Vector], dict[str, float], dict[str, float]]] = {
    "gamma": (loops.gamma, {"gamma": 0.25}, {"gamma": 0.25}),
    "gamma_0": (loops.gamma, {"gamma": 0.0}, {"gamma": 0.0}),
    "z_plus": (loops.z_plus, {}, {}),
    "excitation": (loops.excitation, {}, {}),
    "alpha_beta": (loops.alpha_beta, {"alpha": 2.0, "beta": 1.0}, {"alpha": 2.0, "beta": 1.0}),
    "alpha_beta_1.5": (loops.alpha_beta, {"alpha": 1.5, "beta": 0.5}, {"alpha": 1.5, "beta": 0.5}),
    "z_box": (loops.z_box, {"low": LOW, "high": HIGH}, {"low": LOW, "high": HIGH}),
    "w_square": (loops.w_square, {}, {}),
    "flat": (loops.flat, {}, {}),
}
"""The loop, its settings, those of the op."""

RULES: dict[str, Callable[[], Rule]] = {
    "gamma": lambda: rules.gamma(0.25),
    "z_plus": rules.z_plus,
    "excitation": rules.excitation,
    "alpha_beta": lambda: rules.alpha_beta(2, 1),
    "z_box": lambda: rules.z_box(LOW, HIGH),
    "w_square": rules.w_square,
    "flat": rules.flat,
}
every_rule = pytest.mark.parametrize("rule", RULES)
every_loop = pytest.mark.parametrize("rule", LOOPS)
HALF = {torch.float16: 4e-3, torch.bfloat16: 2e-2}
NUMBERS = st.integers(-12, 12).map(lambda i: i / 4)


def op_of(rule: str, kind: str) -> tuple[Any, dict[str, Any]]:
    """The op of a rule for `linear`, `convolution` or `matmul`, and its settings."""
    name = rule if rule in BY_RULE else rule.rsplit("_", 1)[0]
    own = {k: torch.tensor(v, dtype=torch.float64) if k in ("low", "high") else v for k, v in LOOPS[rule][2].items()}
    return getattr(BY_RULE[name][0], kind), own


def by_both_forms(op: Any, x: Tensor, others: tuple[Tensor, ...], settings: dict[str, Any], r: Tensor) -> list[Tensor]:
    """Relevance of x by the fast form (x times its gradient) and by the explicit one, given that of the output."""
    leaf = x.clone().requires_grad_()
    z = op(leaf, *others, **settings)
    (gradient,) = torch.autograd.grad(z, leaf, torch.where(z == 0, 0, r / z.detach()))
    (explicit,) = torch.autograd.grad(PARTS[op](leaf, *others, **settings, value=z.detach()), leaf, r)
    return [x * gradient, explicit]


@every_loop
@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.lists(NUMBERS, min_size=17, max_size=17))
def test_a_linear_layer_follows_the_loop_in_both_forms(rule: str, numbers: list[float]) -> None:
    """Also where inputs, weights and sums are 0, and where all contributions have one sign."""
    flat = torch.tensor(numbers, dtype=torch.float64)
    x, weight, bias, r = flat[:3], flat[3:12].reshape(3, 3), flat[12:15], torch.tensor([1.0, -2.0, 0.5]).double()
    op, own = op_of(rule, "linear")
    reads = loops.linear_reads(weight.tolist(), bias.tolist())
    z = torch.tensor(loops.value(x.tolist(), reads), dtype=torch.float64)
    r = torch.where(z == 0, 0, r)  # no relevance reaches a value of 0
    expected = torch.tensor(LOOPS[rule][0](x.tolist(), reads, r.tolist(), **LOOPS[rule][1]), dtype=torch.float64)
    fast, explicit = by_both_forms(op, x, (weight, bias), own, r)
    torch.testing.assert_close(explicit, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(fast, torch.where(x == 0, 0, expected), rtol=1e-11, atol=1e-11)


@every_loop
@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1), (3, 1, 2, 2)]
)
def test_a_convolution_follows_the_loop_in_both_forms(
    rule: str, stride: int, padding: int, dilation: int, groups: int
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 4, 6, 5, dtype=torch.float64).clamp(-2, 2)
    weight, bias = torch.randn(4, 4 // groups, 2, 3, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    x[0, 0, 0], weight[0, 0, 1, 1], bias[2] = 0, 0, 0
    reads = loops.convolution_reads(weight.tolist(), bias.tolist(), (6, 5), stride, padding, dilation, groups)
    given = {"stride": [stride], "padding": [padding], "dilation": [dilation], "groups": groups}
    op, own = op_of(rule, "convolution")
    z = op(x, weight, bias, **given, **own)
    r = torch.randn(z.shape, dtype=torch.float64)
    torch.testing.assert_close(z.flatten().tolist(), loops.value(x.flatten().tolist(), reads))
    listed = LOOPS[rule][0](x.flatten().tolist(), reads, r.flatten().tolist(), **LOOPS[rule][1])
    expected = torch.tensor(listed, dtype=torch.float64).reshape(x.shape)
    fast, explicit = by_both_forms(op, x, (weight, bias), {**given, **own}, r)
    assert relative(explicit, expected) <= 1e-12
    assert relative(fast, torch.where(x == 0, 0, expected)) <= 1e-12


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in LINEAR_RULES])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
def test_the_two_forms_agree(case: Case, epsilon: float) -> None:
    arguments = case.make(torch.float64)
    keywords = {**case.keywords, "epsilon": epsilon}
    (leaf,) = leaves(arguments)
    z = case.op(*arguments, **keywords)
    r = torch.linspace(-1, 2, z.numel(), dtype=torch.float64).reshape(z.shape)
    (gradient,) = torch.autograd.grad(z, leaf, r / z.detach())
    (relevance,) = torch.autograd.grad(PARTS[case.op](*arguments, **keywords, value=z.detach()), leaf, r)
    assert relative(leaf.detach() * gradient, relevance) <= 1e-12


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in LINEAR_RULES])
def test_every_op_of_the_explicit_form_is_registered_well(case: Case) -> None:
    arguments = case.make(torch.float32)
    value = case.op(*arguments, **case.keywords).detach()
    torch.library.opcheck(PARTS[case.op], arguments, {**case.keywords, "value": value})


def test_z_plus_is_alpha_1_beta_0() -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape, dtype=torch.float64) for shape in ((5, 6), (4, 6), (4,)))
    r = torch.randn(5, 4, dtype=torch.float64)
    found = [
        by_both_forms(op_of(rule, "linear")[0], x, (weight, bias), own, r)[0]
        for rule, own in (("z_plus", {}), ("alpha_beta", {"alpha": 1.0, "beta": 0.0}))
    ]
    assert relative(found[0], found[1]) <= 1e-12


@pytest.mark.parametrize("rule", ["z_plus", "excitation", "alpha_beta"])
def test_contributions_of_one_sign_stay_exactly_one_sided(rule: str) -> None:
    """p is (z + |c| sum) / 2 in alpha-beta: rounding must not pass for a positive contribution."""
    torch.manual_seed(0)
    x, weight = torch.rand(7, 300), -torch.rand(40, 300)
    op, own = op_of(rule, "linear")
    fast, explicit = by_both_forms(op, x, (weight,), own, torch.ones(7, 40))
    torch.testing.assert_close(fast, explicit, rtol=1e-4, atol=1e-6)
    total = -40.0 if rule == "alpha_beta" else 0.0
    torch.testing.assert_close(fast.sum(1), torch.full((7,), total), rtol=1e-4, atol=0)


def test_alpha_beta_takes_rounding_for_no_contribution() -> None:
    """A kernel that sums z in another order than |c| leaves a p of one rounding where there is none."""
    torch.manual_seed(0)
    x, weight, gradient = torch.rand(7, 300), -torch.rand(40, 300), torch.rand(7, 40)
    z = x @ weight.mT
    rule, of = contributions.AlphaBeta(2.0, 1.0, 0.0), contributions.Linear()
    values = (z, z * (1 - torch.finfo(torch.float32).eps))
    found = [rule(contributions.Call(of, x, weight, None, value, ()), gradient) for value in values]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["linear", "convolution"])
@every_rule
def test_half_precision_is_finite_and_near(rule: str, kind: str, dtype: torch.dtype) -> None:
    """Against float64 on the same rounded numbers. Measured: up to 1.8e-3 in float16 and 7.1e-3 in bfloat16."""
    torch.manual_seed(0)
    x_shape, shape = ((8, 96), (64, 96)) if kind == "linear" else ((2, 16, 9, 9), (24, 16, 3, 3))
    numbers = torch.randn(x_shape).clamp(-2, 2), torch.randn(shape) / 8, torch.randn(shape[0]) / 8
    op, own = op_of(rule, kind)
    found = []
    for wanted in (dtype, torch.float64):
        x, weight, bias = (tensor.to(dtype).to(wanted) for tensor in numbers)
        leaf = x.requires_grad_()
        z = op(leaf, weight, bias, **own)
        (gradient,) = torch.autograd.grad(z, leaf, torch.ones_like(z))
        assert gradient.dtype is wanted and bool(gradient.isfinite().all())
        found.append(leaf.detach().double() * gradient.double())
    assert relative(found[0], found[1]) <= HALF[dtype]


Layers = dict[str, tuple[nn.Module, tuple[int, ...]]]


def layers() -> Layers:
    """Every layer that zennit's rules serve, with the shape of its input."""
    torch.manual_seed(0)
    made: Layers = {
        "linear": (nn.Linear(6, 5), (3, 6)),
        "linear_tokens": (nn.Linear(6, 5, bias=False), (2, 4, 6)),
        "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
        "conv2d": (nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 3, 7, 6)),
        "conv2d_depthwise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (2, 4, 5, 5)),
        "conv2d_same": (nn.Conv2d(3, 4, (2, 3), padding="same", dilation=(1, 2)), (2, 3, 6, 5)),
        "conv2d_valid": (nn.Conv2d(3, 4, 2, padding="valid", stride=2), (2, 3, 6, 5)),
        "conv2d_unbatched": (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
        "conv3d": (nn.Conv3d(2, 4, 2, stride=2, padding=1, groups=2), (2, 2, 4, 3, 5)),
        "conv_transpose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (2, 4, 5)),
        "conv_transpose2d": (nn.ConvTranspose2d(3, 4, 3, stride=(2, 1), dilation=(1, 2)), (2, 3, 4, 3)),
        "conv_transpose3d": (nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 2, 2)),
    }
    for layer, _ in made.values():
        layer.double().eval()
    return made


LAYERS = layers()


def zennit_rule(rule: str, epsilon: float) -> Any:
    """Zennit's rule of that name."""
    zennit = zennit_rules.rules()
    made: dict[str, Callable[[], Any]] = {
        "gamma": lambda: zennit.Gamma(gamma=0.25, stabilizer=epsilon),
        "z_plus": lambda: zennit.ZPlus(stabilizer=epsilon),
        "excitation": lambda: zennit.ZPlus(stabilizer=epsilon, zero_params="bias"),
        "alpha_beta": lambda: zennit.AlphaBeta(2.0, 1.0, stabilizer=epsilon),
        "z_box": lambda: zennit.ZBox(LOW, HIGH, stabilizer=epsilon),
        "w_square": lambda: zennit.WSquare(stabilizer=epsilon),
        "flat": lambda: zennit.Flat(stabilizer=epsilon),
    }
    return made[rule]()


def transformed(rule: Rule, layer: nn.Module, x: Tensor, form: str, epsilon: float) -> lxt_fx.Explained:
    """A model of that layer with the rule on it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: padding "same" may need a copy
        table = ATTNLRP.override("0", rule)
        return lxt_fx.transform(nn.Sequential(layer), (x,), rules=table, form=form, epsilon=epsilon, dynamic=False)


def relevance_of(explained: lxt_fx.Explained, x: Tensor, r: Tensor) -> Tensor:
    """Relevance of x, given that of the output."""
    leaf = x.clone().requires_grad_()
    z = explained(leaf)
    if explained.record.form == "explicit":
        return torch.autograd.grad(z, leaf, r)[0]
    return x * torch.autograd.grad(z, leaf, r / z.detach())[0]


@pytest.mark.skipif(zennit_rules.SPEC is None, reason="zennit is not installed")
@pytest.mark.parametrize("name", LAYERS)
@every_rule
def test_rules_equal_zennit_in_both_forms(rule: str, name: str) -> None:
    """Zennit's default epsilon and a large one. Measured: up to 5e-14, by alpha-beta."""
    layer, shape = LAYERS[name]
    x = torch.randn(shape, dtype=torch.float64).clamp(LOW, HIGH)
    for form, epsilon in (("gradient", 1e-6), ("explicit", 0.1)):
        explained = transformed(RULES[rule](), layer, x, form, epsilon)
        r = torch.randn(explained(x).shape, dtype=torch.float64)
        theirs = zennit_rules.relevance(zennit_rule(rule, epsilon), layer, x, r)
        assert relative(relevance_of(explained, x, r), theirs) <= 1e-8


class Net(nn.Module):
    """Convolutions, a residual sum, a product with a constant matrix from either side, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding="same")
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.grow = nn.ConvTranspose2d(4, 3, 2, stride=2)
        self.mix, self.rotate = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(6, 6))
        self.last = nn.Linear(3 * 6 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = self.grow(torch.tanh(self.second(x)) + x)
        return self.last((self.rotate @ (x @ self.mix)).flatten(1))


def net_and_image() -> tuple[Net, Tensor]:
    """The net in float64 and an input with zeros of [3, 2, 3, 4]."""
    torch.manual_seed(0)
    net, x = Net().double().eval(), torch.randn(3, 2, 3, 4, dtype=torch.float64)
    x[:, 0, 1] = 0
    return net, x


def overridden(rule: Rule) -> lxt_fx.RuleTable:
    """The rule wherever it can be; z-box at the input, where bounds are known, and gamma elsewhere."""
    everywhere = rules.gamma(0.1) if rule.name == "z-box" else rule
    return ATTNLRP.override("*", everywhere).override("first", rule)


@every_rule
@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_ledgers_close_and_have_no_faults(rule: str, epsilon: float) -> None:
    net, x = net_and_image()
    explained = lxt_fx.transform(net, (x,), rules=overridden(RULES[rule]()), epsilon=epsilon)
    ledger = lxt_fx.audit(explained, x, lambda output: output[:, 1])
    ledger.check(1e-11)
    causes = {cause for cause, amount in ledger.by_cause().items() if bool((amount.abs() > 1e-9).any())}
    allowed = {Cause.BIAS, *([Cause.EPSILON] if epsilon else [])}
    allowed |= {Cause.ONE_SIDED} if rule in ("z_plus", "excitation", "alpha_beta") else set()
    allowed |= {Cause.ZERO} if rule in ("z_box", "w_square", "flat") else set()
    assert causes <= allowed and (rule in ("flat", "excitation") or Cause.BIAS in causes)


@pytest.mark.parametrize(("rule", "cause"), [("w_square", Cause.ZERO), ("flat", Cause.ZERO), ("z_box", Cause.ZERO)])
def test_the_fast_form_loses_what_falls_on_inputs_of_zero_and_the_ledger_says_so(rule: str, cause: Cause) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 3, bias=False).double(), torch.randn(2, 6, dtype=torch.float64).clamp(LOW, HIGH)
    x[:, 2:4] = 0
    fast = transformed(RULES[rule](), layer, x, "gradient", 0.0)
    explicit = transformed(RULES[rule](), layer, x, "explicit", 0.0)
    r = layer(x).detach()
    found, exact = relevance_of(fast, x, r), relevance_of(explicit, x, r)
    torch.testing.assert_close(exact.sum(), r.sum())
    torch.testing.assert_close(found, torch.where(x == 0, 0, exact))
    lost = lxt_fx.audit(fast, x, lambda output: output.sum(1)).by_cause()[cause]
    torch.testing.assert_close(lost, exact[:, 2:4].sum(1))
    assert bool((lost.abs() > 1e-3).all())


def test_an_output_without_positive_contributions_absorbs_its_relevance_under_z_plus() -> None:
    layer = nn.Linear(3, 2, bias=False).double()
    nn.init.constant_(layer.weight, -1.0)
    x = torch.ones(1, 3, dtype=torch.float64)
    for rule, share in ((rules.z_plus(), 1.0), (rules.alpha_beta(2, 1), 2.0)):
        ledger = lxt_fx.audit(transformed(rule, layer, x, "gradient", 0.0), x, 0)
        ledger.check(1e-12)
        assert ledger.by_cause()[Cause.ONE_SIDED].tolist() == [-3.0 * share]


@every_rule
def test_a_net_gives_the_same_in_both_forms(rule: str) -> None:
    """Without zeros in x; those that relu makes have none under these rules but w-square and flat, which hold x there."""
    net, x = net_and_image()
    x = torch.where(x == 0, 0.1, x)
    first_only = rule in ("w_square", "flat")
    table = ATTNLRP.override("first", RULES[rule]()) if first_only else overridden(RULES[rule]())
    found = []
    for form in ("gradient", "explicit"):
        explained = lxt_fx.transform(net, (x,), rules=table, form=form, epsilon=0.0)
        assert explained.record.forward_difference <= 1e-15  # of the capture
        found.append(relevance_of(explained, x, explained(x).detach()))
    assert relative(found[0], found[1]) <= 1e-9


def test_bounds_by_channel_are_part_of_the_module(tmp_path: Any) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 3, 3, padding=1).double(), torch.rand(1, 2, 4, 4, dtype=torch.float64)
    low, high = torch.tensor([-0.5, 0.0]).reshape(2, 1, 1), torch.tensor([1.0, 2.0]).reshape(2, 1, 1)
    explained = transformed(rules.z_box(low, high), layer, x, "gradient", 0.0)
    r = layer(x).detach()
    found = relevance_of(explained, x, r)
    split = [transformed(rules.z_box(least, most), layer, x, "gradient", 0.0) for least, most in ((-0.5, 1.0), (0.0, 2.0))]
    assert all(relative(found, relevance_of(other, x, r)) > 1e-3 for other in split)
    torch.testing.assert_close(found.sum(), r.sum())
    lxt_fx.save(explained, tmp_path / "box.safetensors")
    loaded = lxt_fx.load(tmp_path / "box.safetensors")
    torch.testing.assert_close(relevance_of(loaded, x, r), found)


def test_the_printed_graph_names_rule_settings_and_paper() -> None:
    net, x = net_and_image()
    text = lxt_fx.show(lxt_fx.transform(net, (x,), rules=overridden(rules.gamma(0.25)), epsilon=1e-4), "lowered")
    assert "lxt_fx.linear_gamma(%flatten, @last.weight, @last.bias, gamma=0.25, epsilon=0.0001)" in text
    assert "lxt_fx.convolution_gamma(%relu, @second.weight, @second.bias, stride=[1, 1], padding=[1, 1]" in text
    assert "transposed=True, gamma=0.25" in text and "held=self, gamma=0.25" in text
    assert "R_i = sum_j (c + 0.25 c+)_ij R_j / sum_i (c + 0.25 c+)_ij" in text and "Montavon et al. 2019" in text
    table = overridden(rules.gamma(0.25, epsilon=1e-3))
    own = lxt_fx.show(lxt_fx.transform(net, (x,), rules=table, epsilon=1e-4), "lowered")
    assert "gamma=0.25, epsilon=0.001)" in own and "gamma=0.25, epsilon=0.0001)" not in own
    box = lxt_fx.show(lxt_fx.transform(net, (x,), rules=overridden(rules.z_box(LOW, HIGH))), "lowered")
    assert "low=@convolution_z_box_low_0, high=@convolution_z_box_high_1" in box


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rules.gamma(-0.1), "gamma must be a number of at least 0, got -0.1"),
        (lambda: rules.gamma(float("nan")), "gamma must be a number of at least 0, got nan"),
        (lambda: rules.gamma(0.1, epsilon=-1.0), "epsilon must be a number of at least 0, got -1.0"),
        (lambda: rules.alpha_beta(2, 0.5), r"alpha - beta must be 1.*which give 1.5; take alpha_beta\(1.5, 0.5\)"),
        (lambda: rules.alpha_beta(0.5, -0.5), "beta must be a number of at least 0, got -0.5"),
        (lambda: rules.z_box(), "low must be a number or a tensor that broadcasts to the input, got None"),
        (lambda: rules.z_box(0.0), "high must be a number or a tensor"),
        (lambda: rules.z_box(1.0, 0.0), "low must not be above high"),
        (lambda: rules.z_box(torch.zeros(2), torch.tensor([1.0, -1.0])), "low must not be above high"),
        (lambda: rules.z_box(float("nan"), 1.0), "low must be a real number"),
        (lambda: rules.z_box(torch.zeros(2), torch.ones(3)), "do not broadcast"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Callable[[], Rule], message: str) -> None:
    with pytest.raises(lxt_fx.InputError, match=message):
        make()


class Pair(nn.Module):
    """A product of two carrying values, and of one with a constant vector."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(4))
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x @ x.mT) @ self.vector


def test_a_rule_that_can_serve_no_node_of_its_place_is_refused() -> None:
    net, x = Pair().eval(), torch.randn(2, 4, 4)
    for where, message in (
        ("act", r"rule gamma fits no node at act\n  %gelu = aten.gelu.default .*: op is not listed\n  the rule lists"),
        (nn.GELU, "rule gamma fits no node at GELU"),
        (torch.ops.aten.matmul.default, "%matmul = aten.matmul.default .*: other, self carries too"),
        ("%matmul_1", "%matmul_1 = .*its constant operand is no matrix"),
    ):
        with pytest.raises(lxt_fx.InputError, match=message):
            lxt_fx.transform(net, (x,), rules=ATTNLRP.override(where, rules.gamma()), strict=False)
    layer = nn.Sequential(nn.Linear(4, 3))
    wide = rules.z_box(torch.zeros(5), torch.ones(5))
    with pytest.raises(lxt_fx.InputError, match=r"low \[5\] does not broadcast to its input \[.*4\]"):
        lxt_fx.transform(layer.eval(), (torch.rand(2, 4),), rules=ATTNLRP.override("0", wide))


def test_an_override_of_a_place_that_the_model_does_not_have_is_a_warning() -> None:
    """One table serves models with and without convolutions. Nor is one that a later override hides."""
    x = torch.randn(2, 4)
    net = nn.Sequential(nn.Linear(4, 3)).eval()
    table = ATTNLRP.override(nn.Conv2d, rules.gamma(0.25)).override(nn.Linear, rules.gamma(0.05))
    with pytest.warns(UserWarning, match="no node of the model is at 'Conv2d'"):
        explained = lxt_fx.transform(net, (x,), rules=table)
    assert "gamma=0.05" in lxt_fx.show(explained, "lowered")
    hidden = ATTNLRP.override("0", rules.gamma()).override("0", basic.NATIVE)
    assert "native" in lxt_fx.show(lxt_fx.transform(net, (x,), rules=hidden), "lowered")


def test_a_part_of_a_place_is_enough() -> None:
    """The rule takes what it can serve; other nodes of the module have their own."""
    net, x = net_and_image()
    text = lxt_fx.show(lxt_fx.transform(net, (x,), rules=ATTNLRP.override("*", rules.z_plus())), "lowered")
    assert text.count("| z-plus") == 6 and "| identity" in text
