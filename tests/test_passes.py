"""The passes one by one: in-place ops, no_grad regions, spellings, relevance flow, attention roles."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import MODELS
from torch import Tensor, nn
from torch.fx import Interpreter, Node

import lxt_fx
from lxt_fx.base.nodes import is_float
from lxt_fx.passes.analysis.find_groups import find_groups
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.token_lookups import token_lookups
from lxt_fx.passes.canonical.canonicalise import canonicalise
from lxt_fx.passes.canonical.cut_at_lookups import cut_at_lookups
from lxt_fx.passes.canonical.functionalise import functionalise, mutates
from lxt_fx.passes.canonical.inline_no_grad import inline_no_grad
from lxt_fx.passes.capture.capture import capture
from lxt_fx.passes.capture.example import made_example
from lxt_fx.rule_table.rule import Role

aten = torch.ops.aten


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def in_place_chain(x: Tensor) -> Tensor:
    y = x * 1
    y.add_(2).mul_(x)
    return y.relu_()


def write_slice(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 1:3] = x[:, :2] * 3
    y[:, 0].add_(x[:, 3])
    return y


def write_through_views(x: Tensor) -> Tensor:
    y = x.clone()
    view = y.transpose(0, 1).unsqueeze(0)
    before = y.sum()
    view[0, 1].mul_(4)
    return y + before + view.sum()


def write_through_rarer_views(x: Tensor) -> Tensor:
    y = x.clone()
    y.narrow(1, 1, 2).mul_(x[:, :2])
    y.narrow(0, -2, 2).add_(1)
    y.narrow(0, 1, x.shape[0] - 1).mul_(2)
    y.mT.select(0, 1).mul_(3)
    y.T[2].add_(y.swapaxes(0, 1)[0])
    y.t().narrow(0, 0, 1).mul_(5)
    y[None].movedim(0, 2)[0].mul_(2)
    y[:, :3].diagonal().mul_(x[0, :3])
    return y.swapdims(0, 1).add_(y.adjoint())


def write_chunk(x: Tensor) -> Tensor:
    y = x.clone()
    first, second = y.chunk(2, dim=1)
    second.copy_(first * 2)
    first.mul_(3)
    return y * second.sum()


def write_unbound(x: Tensor) -> Tensor:
    y = x.clone()
    rows = y.unbind(1)
    rows[2].add_(rows[0])
    return y


def write_by_index(x: Tensor) -> Tensor:
    y = x * 1
    y[:, torch.tensor([0, 2])] = 5.0
    y.masked_fill_(y > 4, 1.5)
    return y * x


def write_lower_precision(x: Tensor) -> Tensor:
    y = x.half()
    y.add_(x)
    return y.float()


IN_PLACE = [
    in_place_chain, write_slice, write_through_views, write_through_rarer_views, write_by_index, write_lower_precision,
]  # fmt: skip


@pytest.mark.parametrize("function", IN_PLACE, ids=lambda f: f.__name__)
def test_in_place_ops_become_functional_with_equal_values_and_gradients(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    explained = lxt_fx.transform(Function(function), (x.detach(),), rules="gradient", dynamic=False)
    assert not any(mutates(node) for node in explained.graph.nodes)
    expected, actual = function(x), explained(x)
    assert torch.equal(expected, actual)
    weights = torch.randn_like(expected)
    for a, b in zip(torch.autograd.grad(expected, x, weights), torch.autograd.grad(actual, x, weights), strict=True):
        torch.testing.assert_close(a, b)


def test_a_narrow_of_free_size_is_written_in_place() -> None:
    def function(x: Tensor) -> Tensor:
        y = x * 1
        y.narrow(0, 1, x.shape[0] - 1).mul_(2)
        return y

    explained = lxt_fx.transform(Function(function), (torch.randn(3, 4),), rules="gradient")
    assert explained.record.sizes["x"][0] is None
    assert torch.equal(explained(x := torch.randn(5, 4)), function(x))


def write_out(x: Tensor) -> Tensor:
    """As torch_geometric counts the nodes of its graphs: `out` is another tensor than the first operand."""
    y = x.new_zeros(x.shape[0] + 1, x.shape[1])
    torch.cumsum(x * 2, 0, out=y[1:])
    torch.add(y, 1, out=y)
    return y * x.sum()


@pytest.mark.parametrize("function", [write_chunk, write_unbound, write_out], ids=lambda f: f.__name__)
def test_writes_into_parts_of_a_tensor_are_carried_back(function: Callable[[Tensor], Tensor]) -> None:
    """Eager autograd refuses these, so only values are compared; models do them where no gradient is asked."""
    x = torch.randn(3, 4)
    explained = lxt_fx.transform(Function(function), (x,), rules="gradient", dynamic=False)
    assert torch.equal(explained(x), function(x))


def test_no_gradient_flows_through_a_no_grad_region() -> None:
    def function(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = (x * x).sum()
        return x * scale

    x = torch.randn(2, 3, requires_grad=True)
    explained = lxt_fx.transform(Function(function), (x.detach(),), rules="gradient")
    (gradient,) = torch.autograd.grad(explained(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, float((x * x).sum().detach())))


def test_a_region_that_switches_autocast_off_inside_no_grad_is_inlined() -> None:
    """The rotary embedding of transformers 4.57 is written so."""

    def function(x: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            scale = x.sum(-1, keepdim=True)
        return x * scale

    x = torch.randn(2, 3, requires_grad=True)
    explained = lxt_fx.transform(Function(function), (x.detach(),))
    torch.testing.assert_close(explained(x), function(x))
    (gradient,) = torch.autograd.grad(explained(x).sum(), x)
    torch.testing.assert_close(gradient, x.detach().sum(-1, keepdim=True).expand(2, 3))


SPELLINGS = [
    lambda x: torch.multiply(x, 2.0).square(),
    lambda x: torch.mm(x, torch.ones(4, 4)),
    lambda x: torch.addmm(torch.ones(4), x, torch.eye(4)),
    lambda x: torch.rsub(x, 1.0) + torch.true_divide(x, 3),
    lambda x: torch.concat([x, x.t().t()], 0),
    lambda x: nn.functional.glu(x, -1),
    lambda x: nn.functional.relu6(x) + x.type_as(x),
    lambda x: nn.functional.selu(x) + nn.functional.celu(x, 0.3),
    lambda x: torch.baddbmm(x[None], x[None], torch.ones(1, 4, 4), beta=0.5, alpha=2.0),
    lambda x: torch.cosine_similarity(x, x.roll(1, 0), dim=0) + torch.cosine_similarity(x[:, None], x, dim=-1).sum(),
]


@pytest.mark.parametrize("index", range(len(SPELLINGS)))
def test_every_spelling_keeps_its_value_and_gets_a_rule(index: int) -> None:
    x = torch.randn(3, 4)
    net = Function(SPELLINGS[index])
    torch.testing.assert_close(lxt_fx.transform(net, (x,), dynamic=False)(x), net(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2", "bert", "vit", "whisper"])
def test_relevance_flow_is_what_autograd_says(name: str) -> None:
    """A node is marked as carrying if and only if autograd would pass it a gradient: no path is missed, none invented."""
    model = MODELS[name]("eager")
    gm = capture(model, made_example(model), dynamic=False).gm
    for step in (inline_no_grad, functionalise, canonicalise):
        step(gm)
    example, _ = cut_at_lookups(gm, made_example(model), token_lookups(gm))
    leaves = [node for node in gm.graph.nodes if node.op == "placeholder" and is_float(node)]
    flow = mark_flow(gm, leaves)
    reached = nodes_with_gradient(gm, example.kwargs)
    wanted = {node.name for node in flow.carrying if node.op == "call_function" and isinstance(node.meta["val"], Tensor)}
    assert wanted == reached


def nodes_with_gradient(gm: torch.fx.GraphModule, inputs: dict[str, Tensor]) -> set[str]:
    """Names of the op nodes whose value got a gradient in one real backward from all float outputs, parameters frozen."""
    kept: dict[str, Tensor] = {}

    class Keeper(Interpreter):
        def run_node(self, n: Node) -> object:
            value = super().run_node(n)
            if n.op == "get_attr" and isinstance(value, Tensor):
                return value.detach()
            if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                value.retain_grad()
                kept[n.name] = value
            return value

    leaves = [v.clone().requires_grad_() if v.is_floating_point() else v for v in inputs.values()]
    outputs = Keeper(gm).run(*leaves, enable_io_processing=False)
    torch.stack([o.sum() for o in outputs if isinstance(o, Tensor) and o.requires_grad]).sum().backward()
    return {name for name, value in kept.items() if value.grad is not None}


class Attention(nn.Module):
    """Scale, soft cap, mask and a sink column between the scores and the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))
        self.sink = nn.Parameter(torch.randn(1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scores = torch.matmul(self.q(x), self.k(x).transpose(1, 2)) * 0.3
        scores = torch.tanh(scores / 5) * 5
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
        columns = torch.cat([scores, self.sink.expand(*scores.shape[:2], 1)], -1)
        weights = torch.softmax(columns, -1)[..., :-1]
        return torch.matmul(weights, self.v(x))


def test_attention_is_found_through_scale_soft_cap_mask_and_sink() -> None:
    net = Attention().eval()
    explained = lxt_fx.transform(net, (torch.randn(2, 5, 8),))
    assert {Role.SCORES.value, Role.WEIGHTS.value, Role.OUTPUT.value} <= set(
        explained.record.stages["groups"].labels.values()
    )
    names = [str(node.target) for node in explained.graph.nodes]
    assert (
        names.count("lxt_fx.matmul.default") == 2 and "lxt_fx.softmax.default" in names and "lxt_fx.tanh.default" in names
    )
    held = lxt_fx.transform(net, (torch.randn(2, 5, 8),), rules="cp_lrp")
    x = torch.randn(2, 5, 8, requires_grad=True)
    held(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close((x * x.grad).sum(), net(x).sum())


def test_a_softmax_that_is_no_attention_has_its_own_rule_in_cp_lrp() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 2)).eval()
    explained = lxt_fx.transform(net, (torch.randn(3, 4),), rules="cp_lrp")
    stage = explained.record.stages["rules"]
    assert [rule.name for node, rule in stage.rules.items() if node.startswith("softmax")] == ["softmax"]


def test_groups_are_found_by_structure() -> None:
    model = MODELS["gpt2"]("eager")
    gm = capture(model, made_example(model), dynamic=False).gm
    for step in (inline_no_grad, functionalise, canonicalise):
        step(gm)
    flow = mark_flow(gm, [lookup.node for lookup in token_lookups(gm)])
    groups = find_groups(gm, flow)
    gelus = [group for group in groups.by_root.values() if group.kind.value == "elementwise"]
    assert len(gelus) >= 2 and all(group.arguments["intercept"] == 0 for group in gelus)
    assert all(abs(group.arguments["slope"] - 0.5) < 1e-12 for group in gelus if group.root.target is aten.mul.Tensor)


class CustomNorm(nn.Module):
    """Two norms that share one statistic, one of them read again elsewhere."""

    def forward(self, x: Tensor) -> Tensor:
        statistic = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x * statistic + statistic


def test_a_statistic_that_is_read_elsewhere_too_has_a_rule_of_its_own() -> None:
    explained = lxt_fx.transform(CustomNorm(), (torch.randn(2, 4),))
    assert [rule.name for rule in explained.record.stages["rules"].rules.values()].count("norm") == 1
    assert "lxt_fx.rsqrt(" in lxt_fx.show(explained) and not lxt_fx.audit(explained, torch.randn(1, 4), 0).faults()


class WrittenOut(nn.Module):
    """Attention weights from exponentials and their sum, in one of its spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, x: Tensor) -> Tensor:
        match self.spelling:
            case "plain":
                powers = torch.exp(x)
                return powers / powers.sum(-1, keepdim=True)
            case "shifted":
                powers = torch.exp(x - x.amax(1, keepdim=True))
                return powers / powers.sum(1, keepdim=True)
            case "shifted by a constant largest":
                powers = torch.exp(x - x.max(dim=-1, keepdim=True).values.detach())
                return powers / torch.sum(powers, dim=-1, keepdim=True).expand_as(powers)
            case "shifted before the op":
                return torch.softmax(x - x.max(dim=-1, keepdim=True).values, -1)
            case "shifted before a mask":
                shifted = x - x.amax(-1, keepdim=True)
                return torch.softmax(shifted.masked_fill(torch.eye(5, 4, dtype=torch.bool), -torch.inf), -1)
            case "with an epsilon":
                powers = torch.exp(x)
                return powers / (powers.sum(-1, keepdim=True) + 1e-6)
            case "shifted along another dim":
                powers = torch.exp(x - x.amax(1, keepdim=True))
                return powers / powers.sum(-1, keepdim=True)
        powers = torch.exp(x)
        return powers / torch.exp(2 * x).sum(-1, keepdim=True)


def _over_a_constant_sum(x: Tensor) -> Tensor:
    powers = torch.exp(x)
    return powers / powers.sum(-1, keepdim=True).detach()


def _over_a_sum_of_copies(x: Tensor) -> Tensor:
    powers = torch.exp(x[:, :1])
    return powers / powers.expand(2, 5, 4).sum(1, keepdim=True)


def _shifted_by_the_largest_copy(x: Tensor) -> Tensor:
    scores = x[0, 0]
    return torch.softmax(scores - scores.expand(5, 4).amax(0, keepdim=True), 0)


def _norm_with_twice_the_epsilon(x: Tensor) -> Tensor:
    return x * torch.rsqrt(torch.add(x.pow(2).mean(-1, keepdim=True), 0.1, alpha=2))


@pytest.mark.parametrize(
    "function",
    [
        _over_a_constant_sum,
        _over_a_sum_of_copies,
        _shifted_by_the_largest_copy,
        _norm_with_twice_the_epsilon,
    ],
)
def test_what_only_looks_like_a_softmax_or_a_norm_is_computed_as_the_model_does(
    function: Callable[[Tensor], Tensor],
) -> None:
    """A constant sum takes no part in the gradient; a sum over copies or a scaled epsilon makes another value of it."""
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    lxt_fx.transform(Function(function).eval(), (x,), strict=False, dynamic=False)  # compares the forward
    plain = lxt_fx.transform(Function(function).eval(), (x,), rules="gradient", dynamic=False)
    mine, own = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    value, expected = plain(mine), function(own)
    r = torch.randn_like(expected)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    gradients = torch.autograd.grad(value, mine, r)[0], torch.autograd.grad(expected, own, r)[0]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("spelling", "is_softmax"),
    [
        ("plain", True), ("shifted", True), ("shifted by a constant largest", True), ("shifted along another dim", True),
        ("shifted before the op", True), ("shifted before a mask", True),
        ("with an epsilon", False), ("of two values", False),
    ],
)  # fmt: skip
def test_a_softmax_that_is_written_out_gets_the_rule_of_softmax(spelling: str, is_softmax: bool) -> None:
    """Prop. 3.1, which has the native gradient, as for the op. An epsilon in the sum makes another function of it."""
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    net = WrittenOut(spelling).eval()
    explained = lxt_fx.transform(net, (x,))
    rules = [rule.name for rule in explained.record.stages["rules"].rules.values()]
    assert ("softmax" in rules) == is_softmax and ("identity from f(0)" in rules) != is_softmax
    if not is_softmax:
        return
    r = torch.randn(2, 5, 4, dtype=torch.float64)
    mine, own = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(explained(mine), mine, r)
    (expected,) = torch.autograd.grad(net(own), own, r)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    if spelling != "shifted along another dim":
        assert set(rules) <= {"softmax", "select"}


def test_an_op_that_writes_into_several_tensors_is_refused_by_name() -> None:
    def function(x: Tensor) -> Tensor:
        values, indices = x.new_zeros(3), torch.zeros(3, dtype=torch.long)
        torch.max(x, 1, out=(values, indices))
        return values * x.sum()

    with pytest.raises(lxt_fx.CaptureError, match="aten.max.dim_max writes into max, max_values"):
        lxt_fx.transform(Function(function), (torch.randn(3, 4),), dynamic=False)
