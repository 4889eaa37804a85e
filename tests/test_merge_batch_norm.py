"""Batch norm as part of the linear layer or convolution before it: where a rule needs that, against zennit and against nets
merged by hand, and nowhere else."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zennit_rules
from golden_cases import relative
from torch import Tensor, nn

import lxt_fx
from lxt_fx.ledger.causes import Cause
from lxt_fx.passes.verify import MERGED_TOLERANCES, check_forward, forward_difference
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import linear_rules as rules
from lxt_fx.rule_table.rule import Rule

ATTNLRP = lxt_fx.TABLES["attnlrp"]
GAMMA = {nn.Conv2d: rules.gamma(0.25), nn.Linear: rules.gamma(0.25)}
aten = torch.ops.aten

RULES: dict[str, tuple[Callable[[float], Rule], Callable[[float], Any]]] = {
    "gamma": (lambda e: rules.gamma(0.25, epsilon=e), lambda e: zennit_rules.rules().Gamma(0.25, e)),
    "z_plus": (lambda e: rules.z_plus(epsilon=e), lambda e: zennit_rules.rules().ZPlus(e)),
    "alpha_beta": (lambda e: rules.alpha_beta(2, 1, epsilon=e), lambda e: zennit_rules.rules().AlphaBeta(2.0, 1.0, e)),
    "w_square": (lambda e: rules.w_square(epsilon=e), lambda e: zennit_rules.rules().WSquare(e)),
    "epsilon": (rules.epsilon, lambda e: zennit_rules.rules().Epsilon(e)),
}
"""Our rule and zennit's for an epsilon."""
every_rule = pytest.mark.parametrize("rule", RULES)
needs_zennit = pytest.mark.skipif(zennit_rules.SPEC is None, reason="zennit is not installed")

LAYERS: dict[str, tuple[Callable[[], nn.Module], type[nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 4), nn.BatchNorm1d, (3, 6)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm1d, (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 4, (3, 2), dilation=(1, 2), bias=False), nn.BatchNorm2d, (2, 3, 6, 5)),
    "conv2d_same": (lambda: nn.Conv2d(3, 4, (2, 3), padding="same"), nn.BatchNorm2d, (2, 3, 5, 4)),
    "conv2d_depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.BatchNorm2d, (2, 4, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 4, 2, stride=2), nn.BatchNorm3d, (2, 2, 4, 3, 5)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(4, 3, 3, stride=2, output_padding=1), nn.BatchNorm1d, (2, 4, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(3, 4, 3, bias=False), nn.BatchNorm2d, (2, 3, 4, 3)),
    "conv_transpose2d_groups": (lambda: nn.ConvTranspose2d(4, 6, 2, groups=2), nn.BatchNorm2d, (2, 4, 3, 4)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), nn.BatchNorm3d, (1, 2, 3, 2, 2)),
}
"""A layer, the batch norm of its outputs, the shape of its input."""
FEW = ("linear", "conv2d", "conv_transpose2d_groups")


def settled(norm: Any) -> Any:
    """The batch norm with statistics and parameters unlike its initial ones."""
    with torch.no_grad():
        norm.running_mean.copy_(torch.randn_like(norm.running_mean))
        norm.running_var.copy_(torch.rand_like(norm.running_var) + 0.5)
        if norm.affine:
            norm.weight.copy_(torch.randn_like(norm.weight))
            norm.bias.copy_(torch.randn_like(norm.bias))
    return norm


def layer_and_norm(name: str, *, affine: bool = True) -> tuple[nn.Sequential, Tensor]:
    """The layer and its batch norm in float64, and an input."""
    torch.manual_seed(0)
    make, norm, shape = LAYERS[name]
    layer = make()
    channels = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    net = nn.Sequential(layer, settled(norm(channels, affine=affine)))
    return net.double().eval(), torch.randn(shape, dtype=torch.float64)


def merged_by_hand(net: nn.Sequential) -> nn.Sequential:
    """One layer that computes what layer and batch norm do, its weights scaled output by output."""
    layer, norm = copy.deepcopy(net[0]), net[1]
    scale = (norm.weight if norm.affine else 1.0) / torch.sqrt(norm.running_var + norm.eps)
    bias = torch.zeros_like(scale) if layer.bias is None else layer.bias
    with torch.no_grad():
        for channel, factor in enumerate(scale.tolist()):
            if "Transpose" in type(layer).__name__:
                group, own = divmod(channel, layer.weight.shape[1])
                size = layer.weight.shape[0] // layer.groups
                layer.weight[group * size : (group + 1) * size, own] *= factor
            else:
                layer.weight[channel] *= factor
        layer.bias = nn.Parameter((bias - norm.running_mean) * scale + (norm.bias if norm.affine else 0.0))
    return nn.Sequential(layer)


def explained_by(net: nn.Module, x: Tensor, table: Any, form: str = "gradient", **options: Any) -> lxt_fx.Explained:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch: padding "same" may need a copy
        return lxt_fx.transform(net, (x,), rules=table, form=form, dynamic=False, **options)


def relevance_of(explained: lxt_fx.Explained, x: Tensor, r: Tensor) -> Tensor:
    """Relevance of x, given that of the output."""
    leaf = x.clone().requires_grad_()
    z = explained(leaf)
    if explained.record.form == "explicit":
        return torch.autograd.grad(z, leaf, r)[0]
    return x * torch.autograd.grad(z, leaf, r / z.detach())[0]


def forms(net: nn.Module, x: Tensor, table: Any) -> list[lxt_fx.Explained]:
    return [explained_by(net, x, table, form, epsilon=0.0) for form in ("gradient", "explicit")]


@needs_zennit
@pytest.mark.parametrize("name", [name for name in LAYERS if name != "conv_transpose2d_groups"])
@every_rule
def test_rules_equal_zennit_with_its_canonizer(rule: str, name: str) -> None:
    """Measured: up to 1.4e-15. Zennit's does not know the weights of a transposed convolution in groups."""
    (net, x), (ours, theirs) = layer_and_norm(name), RULES[rule]
    canonizers = zennit_rules.module("canonizers")
    composite = zennit_rules.module("composites").LayerMapComposite(
        [(type(net[0]), theirs(0.1)), (type(net[1]), zennit_rules.rules().Pass())],
        canonizers=[canonizers.SequentialMergeBatchNorm()],
    )
    state = copy.deepcopy(net.state_dict())
    for explained in forms(net, x, ATTNLRP.override("0", ours(0.1))):
        assert explained.record.merged == ("1",)
        r = torch.randn(explained(x).shape, dtype=torch.float64)
        expected = zennit_rules.relevance_of_net(composite, copy.deepcopy(net), x, r)
        assert relative(relevance_of(explained, x, r), expected) <= 1e-8
    assert all(torch.equal(before, net.state_dict()[name]) for name, before in state.items())


@pytest.mark.parametrize("affine", [True, pytest.param(False, marks=pytest.mark.slow("a weight of 1 and a bias of 0"))])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_with_its_batch_norm_equals_one_layer_merged_by_hand(name: str, affine: bool) -> None:
    """Measured: the forward up to 4.2e-16, relevance up to 9.5e-16."""
    net, x = layer_and_norm(name, affine=affine)
    by_hand = merged_by_hand(net)
    assert forward_difference(net(x), by_hand(x)) <= 1e-14
    for rule in RULES if name in FEW else ("gamma",):
        table = ATTNLRP.override("0", RULES[rule][0](0.05))
        for explained, expected in zip(forms(net, x, table), forms(by_hand, x, table), strict=True):
            assert explained.record.merged == ("1",) and expected.record.merged == ()
            assert not any(node.target is aten.batch_norm.default for node in explained.graph.nodes)
            assert forward_difference(net(x), explained(x)) <= 1e-12
            r = torch.randn(explained(x).shape, dtype=torch.float64)
            assert relative(relevance_of(explained, x, r), relevance_of(expected, x, r)) <= 1e-11


def test_apart_a_layer_and_its_batch_norm_pass_other_relevance() -> None:
    """Why all this is done: gamma weighs contributions by the sign of the layer's own output."""
    net, x = layer_and_norm("conv2d")
    tables = ({"0": rules.gamma(0.25), "1": norm} for norm in (basic.BATCH_NORM, basic.NATIVE))
    merged, apart = (explained_by(net, x, table) for table in tables)
    assert merged.record.merged == ("1",) and apart.record.merged == ()
    r = net(x).detach()
    assert relative(relevance_of(merged, x, r), relevance_of(apart, x, r)) > 0.05


def test_without_an_epsilon_linear_rules_pass_the_same_through_the_two_apart() -> None:
    """Which is why batch norms stay where only eq. 8 of AttnLRP is at work."""
    net, x = layer_and_norm("conv2d")
    r = net(x).detach()
    apart, merged = explained_by(net, x, "attnlrp"), explained_by(merged_by_hand(net), x, "attnlrp")
    assert apart.record.merged == ()
    assert relative(relevance_of(apart, x, r), relevance_of(merged, x, r)) <= 1e-12


class Net(nn.Module):
    """Batch norms behind convolutions in a block with a residual sum, and behind a linear layer; one in front of all."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(2)
        self.first, self.norm_first = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second, self.norm_second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.hidden, self.norm_hidden = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 30)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm_first(self.first(self.before(x))))
        x = torch.relu(x + self.norm_second(self.second(x)))
        return self.last(torch.relu(self.norm_hidden(self.hidden(x.mean((-2, -1))))))


MERGED = ("norm_first", "norm_second", "norm_hidden")


def net_and_image(dtype: torch.dtype = torch.float64) -> tuple[Net, Tensor]:
    torch.manual_seed(1)
    net = Net()
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            settled(module)
    return net.to(dtype).eval(), torch.randn(3, 2, 6, 5).to(dtype)


def test_a_net_gives_the_same_in_both_forms_and_the_same_forward() -> None:
    """Measured: 3.6e-16 and 5.4e-16."""
    net, x = net_and_image()
    fast, explicit = forms(net, x, GAMMA)
    r = net(x).detach()
    for explained in (fast, explicit):
        assert explained.record.merged == MERGED
        assert forward_difference(r, explained(x)) <= 1e-12
    assert relative(relevance_of(fast, x, r), relevance_of(explicit, x, r)) <= 1e-10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_forward_stays_the_same_in_lower_precision(dtype: torch.dtype) -> None:
    """Measured: 9.5e-8, 6.3e-3, 7.8e-4. The model itself is 7.8e-8, 4.8e-3, 4.8e-4 from float64, the merged one 1.1e-7,
    3.8e-3, 6.7e-4."""
    net, x = net_and_image(dtype)
    explained = explained_by(net, x, GAMMA)
    assert explained.record.merged == MERGED and explained(x).dtype is dtype
    assert explained.record.forward_difference <= {torch.float32: 4e-7, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]
    exact = copy.deepcopy(net).double()(x.double())
    assert forward_difference(exact, explained(x).double()) <= 2 * forward_difference(exact, net(x).double())


class Parameters(torch.fx.Interpreter):
    """Runs a graph and collects its merged parameters."""

    def run_node(self, n: torch.fx.Node) -> Any:
        result = super().run_node(n)
        if n.name in ("merged_weight", "merged_bias"):
            self.merged = [*getattr(self, "merged", []), result]
        return result


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merged_parameters_are_rounded_once(dtype: torch.dtype) -> None:
    net, x = layer_and_norm("conv2d")
    net, x = net.to(dtype), x.to(dtype)
    runner = Parameters(explained_by(net, x, GAMMA))
    runner.run(x, enable_io_processing=False)
    exact = merged_by_hand(copy.deepcopy(net).double())[0]
    for found, expected in zip(runner.merged, (exact.weight, exact.bias), strict=True):
        assert found.dtype is dtype
        torch.testing.assert_close(found.double(), expected, rtol=0.51 * torch.finfo(dtype).eps, atol=1e-7)


def test_a_layer_whose_output_the_batch_norm_takes_away_for_the_most_part_is_merged() -> None:
    """The model rounds W x + 300 and subtracts 300; the merged layer does not. Measured: 1.3e-5 between
    the two, 9.2e-8 between the merged one and float64."""
    net, x = layer_and_norm("linear")
    net, x = net.float(), x.float()
    with torch.no_grad():
        net[0].bias += 300.0
        net[1].running_mean += 300.0
    explained = explained_by(net, x, GAMMA)
    exact = copy.deepcopy(net).double()(x.double())
    assert forward_difference(exact, explained(x).double()) <= 3e-7
    assert 1e-5 <= explained.record.forward_difference <= MERGED_TOLERANCES[torch.float32]
    assert lxt_fx.certificate(explained).proven


def test_parameters_of_a_batch_norm_that_stayed_in_float32_are_merged_in_float32() -> None:
    net, x = net_and_image(torch.bfloat16)
    for module in net.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.float()
    explained = explained_by(net, x, GAMMA)
    assert explained.record.merged == MERGED and explained(x).dtype is torch.bfloat16
    assert explained.record.forward_difference <= 3e-2


class Readers(nn.Module):
    """A convolution and batch norms of its output, put together in some way."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], norms: int, channels: int = 4) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3, padding=1)
        self.linear = nn.Linear(5, 4)
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        made = (nn.BatchNorm2d if norms else nn.BatchNorm1d)(channels)
        self.norm, self.other = settled(made), settled(nn.BatchNorm2d(4))
        self.written = forward

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


STAYS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "two_readers": (Readers(lambda net, x: net.norm(z := net.layer(x)) + z, 1), (2, 4, 5, 5)),
    "two_batch_norms": (Readers(lambda net, x: net.norm(z := net.layer(x)) + net.other(z), 1), (2, 4, 5, 5)),
    "also_an_output": (Readers(lambda net, x: (net.norm(z := net.layer(x)), z), 1), (2, 4, 5, 5)),
    "an_activation_between": (Readers(lambda net, x: net.norm(torch.relu(net.layer(x))), 1), (2, 4, 5, 5)),
    "in_front": (Readers(lambda net, x: net.layer(net.norm(x)), 1), (2, 4, 5, 5)),
    "tokens_before_features": (Readers(lambda net, x: net.norm(net.linear(x)), 0, channels=7), (2, 7, 5)),
    "no_batch": (Readers(lambda net, x: net.norm(net.line(x)), 0, channels=9), (4, 9)),
}
"""Nets whose batch norms are no part of a layer, and the shapes of their inputs."""


@pytest.mark.parametrize("name", STAYS)
def test_a_batch_norm_stays_where_it_does_not_belong_to_one_layer(name: str) -> None:
    net, shape = STAYS[name]
    net, x = net.double().eval(), torch.randn(shape, dtype=torch.float64)
    norms = sum(node.target is aten.batch_norm.default for node in explained_by(net, x, "attnlrp").graph.nodes)
    for form in ("gradient", "explicit"):
        explained = explained_by(net, x, GAMMA | {nn.Conv1d: rules.gamma(0.25)}, form)
        assert explained.record.merged == () and explained.record.forward_difference <= 1e-12
        assert sum(node.target is aten.batch_norm.default for node in explained.graph.nodes) == norms > 0


@pytest.mark.parametrize(
    "table",
    [
        "attnlrp", "gradient", {"*": rules.epsilon(0.0)}, {"0": rules.gamma(0.25), "1": basic.NATIVE},
        {"0": basic.CONVOLUTION},
    ],
    ids=["attnlrp", "gradient", "epsilon_0", "a_rule_of_its_own", "linear_rule"],
)
def test_a_batch_norm_stays_where_no_rule_needs_it_elsewhere(table: Any) -> None:
    net, x = layer_and_norm("conv2d")
    explained = explained_by(net, x, table)
    assert explained.record.merged == () and explained.record.forward_difference <= 1e-15  # the same ops, in float64
    assert any(node.target is aten.batch_norm.default for node in explained.graph.nodes)


def test_every_call_of_a_layer_takes_the_batch_norm_behind_it() -> None:
    """A layer called twice, a batch norm called twice, and two one after the other; by the graph, not by the modules."""
    net = Readers(lambda net, x: net.norm(net.other(net.layer(torch.relu(net.norm(net.layer(x)))))), 1).double().eval()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    explained = explained_by(net, x, GAMMA)
    assert explained.record.merged == ("norm", "other", "norm") and explained.record.forward_difference <= 1e-12
    assert not any(node.target is aten.batch_norm.default for node in explained.graph.nodes)


def test_an_override_of_one_layer_merges_its_batch_norm_only() -> None:
    net, x = net_and_image()
    explained = explained_by(net, x, ATTNLRP.override("second", rules.z_plus()))
    assert explained.record.merged == ("norm_second",)
    text = lxt_fx.show(explained, "rules")
    assert text.count("= batch_norm(") == 3 and text.count("| z-plus") == 1


def test_an_override_of_a_node_holds_after_its_batch_norm_was_merged() -> None:
    net, x = net_and_image()
    explained = explained_by(net, x, ATTNLRP.override("%conv2d_1", rules.z_plus()))
    assert explained.record.merged == ("norm_second",) and lxt_fx.show(explained).count("| z-plus") == 1


def test_a_rule_that_cannot_serve_a_batch_norm_is_refused_as_before() -> None:
    net, x = layer_and_norm("conv2d")
    with pytest.raises(lxt_fx.InputError, match="rule z-plus fits no node at 1"):
        explained_by(net, x, {"0": rules.gamma(0.25), "1": rules.z_plus()})


def test_a_graph_traced_on_real_tensors_is_merged_too() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.norm(net.layer(x * 2 if float(x.sum()) > 0 else x))

    net, x = Readers(forward, 1).double().eval(), torch.rand(2, 4, 5, 5, dtype=torch.float64)
    explained = explained_by(net, x, {aten.conv2d.default: rules.gamma(0.25)})
    assert explained.record.method == "make_fx" and explained.record.merged == ("norm",)
    assert explained.record.forward_difference <= 1e-12


def test_the_model_is_unchanged_and_its_parameters_are_shared() -> None:
    net, x = net_and_image()
    state, own = copy.deepcopy(net.state_dict()), {id(t) for t in (*net.parameters(), *net.buffers())}
    explained = explained_by(net, x, GAMMA | {nn.Linear: rules.epsilon(0.1)})
    assert {id(t) for t in (*explained.parameters(), *explained.buffers())} <= own
    leaf = x.clone().requires_grad_()
    explained(leaf)[:, 0].sum().backward()
    assert leaf.grad is not None and all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(torch.equal(before, net.state_dict()[name]) for name, before in state.items())
    before = explained(x)
    with torch.no_grad():
        net.norm_first.running_mean += 1.0
    assert forward_difference(before, explained(x)) > 1e-3  # not a copy: it follows the model
    assert forward_difference(net(x), explained(x)) <= 1e-12


@every_rule
def test_the_ledger_closes_and_names_the_biases(rule: str) -> None:
    net, x = net_and_image()
    ours = RULES[rule][0](0.05)
    explained = explained_by(net, x, {nn.Conv2d: ours, nn.Linear: ours})
    ledger = lxt_fx.audit(explained, x, lambda output: output.sum(1))
    ledger.check(1e-11)
    biases = {entry.place.node: entry.name for entry in ledger.entries if entry.cause is Cause.BIAS}
    assert sorted(name.split(" and ")[0] for name in biases.values()) == [
        "before.bias", "last.bias", "norm_first.bias, first.bias", "norm_hidden.bias, hidden.bias",
        "norm_second.bias, norm_second.running_var",
    ]  # fmt: skip


def test_the_share_of_the_bias_is_that_of_the_layer_merged_by_hand() -> None:
    net, x = layer_and_norm("conv2d")
    shares = []
    for made in (net, merged_by_hand(net)):
        explained = explained_by(made, x, {nn.Conv2d: rules.gamma(0.25)})
        shares.append(lxt_fx.audit(explained, x, lambda output: output.sum((1, 2, 3))).by_cause()[Cause.BIAS])
    torch.testing.assert_close(*shares, rtol=1e-11, atol=0)
    assert bool((shares[0].abs() > 1e-2).all())


def test_the_printed_graph_shows_how_the_parameters_are_computed() -> None:
    net, x = layer_and_norm("conv_transpose2d_groups")
    explained = explained_by(net, x, ATTNLRP.override("0", rules.gamma(0.25)))
    lines = [line.strip() for line in lxt_fx.show(explained, "rules", full=True).splitlines() if "=" in line]
    assert [line.split(" | ")[0].rstrip() for line in lines[:9]] == [
        "%add: f64[6] = add(@1.running_var, 1e-05)",
        "%rsqrt: f64[6] = rsqrt(%add)",
        "%mul: f64[6] = mul(@1.weight, %rsqrt)",
        "%view: f64[2,3] = view(%mul, [2, -1])",
        "%repeat_interleave: f64[4,3] = repeat_interleave(%view, 2, 0)",
        "%view_1: f64[4,3,1,1] = view(%repeat_interleave, [4, 3, 1, 1])",
        "%merged_weight: f64[4,3,2,2] = mul(@0.weight, %view_1)",
        "%sub: f64[6] = sub(@0.bias, @1.running_mean)",
        "%mul_2: f64[6] = mul(%sub, %mul)",
    ]
    assert lines[9] == "%merged_bias: f64[6] = add(%mul_2, @1.bias)"
    assert "lxt_fx.convolution_gamma(%input_1, %merged_weight, %merged_bias" in lines[10]
    short = lxt_fx.show(explained)
    assert "... 10 nodes that carry no relevance" in short and "%merged_weight, %merged_bias" in short
    assert "batch_norm" in lxt_fx.show(explained, "capture") and "batch_norm" not in lxt_fx.show(explained, "canonical")


def test_certificate_and_saved_file_know_what_was_merged(tmp_path: Any) -> None:
    net, x = net_and_image()
    explained = explained_by(net, x, GAMMA)
    lxt_fx.save(explained, tmp_path / "net.safetensors")
    loaded = lxt_fx.load(tmp_path / "net.safetensors")
    r = net(x).detach()
    torch.testing.assert_close(relevance_of(loaded, x, r), relevance_of(explained, x, r), rtol=1e-12, atol=1e-12)
    for found in (explained, loaded):
        certificate = lxt_fx.certificate(found)
        assert certificate.proven and certificate.merged == MERGED
        assert "3 x batch norm into the layer before it in norm_first, norm_second" in certificate.summary()
    plain = lxt_fx.certificate(explained_by(net, x, "attnlrp")).summary()
    assert "merged" not in plain


def test_the_looser_tolerance_holds_only_where_something_was_merged() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        output = torch.ones(2, dtype=dtype)
        check_forward(0.99 * MERGED_TOLERANCES[dtype], output, "Net", ("norm",))
        with pytest.raises(lxt_fx.ForwardMismatchError, match="fault of lxt_fx or of torch.export"):
            check_forward(0.99 * MERGED_TOLERANCES[dtype], output, "Net")
        with pytest.raises(lxt_fx.ForwardMismatchError, match="1 batch norms were merged into the layers before them"):
            check_forward(1.01 * MERGED_TOLERANCES[dtype], output, "Net", ("norm",))
    with pytest.raises(lxt_fx.ForwardMismatchError):
        check_forward(1.01e-10, torch.ones(2, dtype=torch.float64), "Net", ("norm",))
