"""Rule tables compose, and rules match where they say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from golden_cases import relative
from rounding import assert_same
from shared_captures import explained as compiled
from shared_captures import one_worker, shared_golden
from tiny import Mlp
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

import lxt_fx
from lxt_fx.ops.aten_kinds import GATES
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.rule import GroupKind
from lxt_fx.rules import Stop

aten = torch.ops.aten


def rules_in(explained: lxt_fx.Explained, op: str) -> list[str]:
    """Names of the rules on nodes whose op prints as `op`."""
    stage = explained.record.stages["rules"]
    return [stage.rules[n.name].name for n in stage.graph.nodes if str(n.target) == op and n.name in stage.rules]


@pytest.mark.parametrize(
    ("where", "count"),
    [("model.layers.*.mlp.act_fn", 2), ("model.layers.1", 1), (LlamaMLP, 2), (aten.silu.default, 2), ("%silu_1", 1)],
    ids=str,
)
def test_an_override_applies_where_it_says(where: object, count: int) -> None:
    table = lxt_fx.TABLES["attnlrp"].override(where, basic.NATIVE)  # type: ignore[arg-type]
    explained = compiled("llama", rules=table)
    assert len(rules_in(explained, "aten.silu.default")) == count
    assert len(rules_in(explained, "lxt_fx.silu.default")) == 2 - count


def test_an_override_leaves_the_table_it_came_from_alone() -> None:
    table = lxt_fx.TABLES["attnlrp"]
    other = table.override("model.layers.0", basic.NATIVE)
    assert len(other.rules) == len(table.rules) + 1 and other.rules[1:] == table.rules
    assert "native at model.layers.0" in str(other) and "native at" not in str(table)


def test_an_override_of_another_type_is_refused() -> None:
    with pytest.raises(lxt_fx.InputError, match="where must be a module path"):
        lxt_fx.TABLES["attnlrp"].override(3, basic.NATIVE)  # type: ignore[arg-type]
    with pytest.raises(lxt_fx.InputError, match=r"rule must be a lxt_fx.Rule or RuleTable, got str"):
        lxt_fx.TABLES["attnlrp"].override("model", "native")  # type: ignore[arg-type]


@one_worker("gemma3")
def test_a_soft_cap_is_identity_in_ours_and_native_in_lxt() -> None:
    assert rules_in(compiled("gemma3"), "lxt_fx.tanh.default") == ["identity"]
    assert rules_in(compiled("gemma3", rules="lxt"), "aten.tanh.default") == ["native soft cap"]


class Squeezed(nn.Module):
    """A function of tanh(x / 3)."""

    def __init__(self, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.tanh(x / 3))


CAPS: dict[str, tuple[Callable[[Tensor], Tensor], str | None]] = {
    "times a number": (lambda y: y * 3, None),
    "by a number": (lambda y: y / 0.3, None),
    "twice": (lambda y: torch.cat([y * 3, y * 2]), None),
    "an exponential of it": (lambda y: y.exp(), "%exp: expected {}, found %exp = aten.exp.default"),
    "read elsewhere too": (lambda y: y * 3 + y, "%add: expected {}, found %add = aten.add.Tensor"),
}


@pytest.mark.parametrize("case", CAPS)
def test_a_tanh_that_is_no_soft_cap_is_told_why(case: str) -> None:
    after, why = CAPS[case]
    explained = lxt_fx.transform(Squeezed(after), (torch.randn(2, 3),), rules="lxt", strict=False)
    (match,) = (found for found in explained.record.matches.values() if found.kind == "aten.tanh.default")
    expected = why and "not a soft cap: " + why.format("aten.mul.Tensor or aten.div.Tensor")
    assert dict(match.refusals).get("native soft cap") == expected


@pytest.mark.parametrize(("before", "behind"), [(1, 3.0), (3.0, 1)])
def test_a_tanh_that_is_scaled_on_one_side_is_no_soft_cap(before: float, behind: float) -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(x if before == 1 else x / before)
            return y if behind == 1 else y * behind

    explained = lxt_fx.transform(Scaled().eval(), (torch.randn(2, 6),), rules="lxt")
    assert rules_in(explained, "lxt_fx.tanh.default") == ["identity"]


@one_worker("gemma3cap-attn")
def test_the_soft_cap_only_rescales_relevance() -> None:
    """Identity through c tanh(x / c) multiplies all relevance by one number: the cap is the last op."""
    golden = shared_golden("gemma3cap-attn", torch.float64)
    relevances = []
    for rules in ("attnlrp", "lxt"):
        explained = compiled("gemma3cap-attn", torch.float64, rules=rules)
        embeds = golden.case["inputs_embeds"].double().requires_grad_()
        golden.explained_value(explained(inputs_embeds=embeds).logits, golden.case["target"]).backward()
        assert embeds.grad is not None
        relevances.append((embeds * embeds.grad).detach())
    ours, theirs = relevances
    factor = (ours * theirs).sum() / (theirs * theirs).sum()
    assert factor > 1.05  # the plain gradient of tanh has lost that share
    assert relative(ours, factor * theirs) <= 1e-6


@one_worker("qwen3_moe-attn")
def test_the_normalised_router_is_held_in_ours_and_native_in_lxt() -> None:
    ours, theirs = (compiled("qwen3_moe-attn", rules=rules) for rules in ("attnlrp", "lxt"))
    assert rules_in(ours, "lxt_fx.normalize_div.default") == ["normalize", "normalize"]
    assert rules_in(theirs, "aten.div.Tensor") == ["native router", "native router"]


class Written(nn.Module):
    """Norms, activations and gates in spellings that no library op has."""

    def __init__(self, formula: str) -> None:
        super().__init__()
        self.formula = formula
        self.linear = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        match self.formula:
            case "rms":
                return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
            case "rms by square and power":
                return x * (torch.square(x).mean(-1, keepdim=True) + 1e-6).pow(-0.5)
            case "rms by division":
                return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)
            case "l2":
                return nn.functional.normalize(x, dim=-1)
            case "l2 by sum":
                return x / x.pow(2).sum(-1, keepdim=True).pow(0.5)
            case "layer norm":
                centred = x - x.mean(-1, keepdim=True)
                return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + 1e-6)
            case "layer norm by variance":
                return (x - x.mean(-1, keepdim=True)) / torch.sqrt(x.var(-1, keepdim=True) + 1e-6)
            case "gelu":
                return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3)))
            case "quick gelu":
                return x * torch.sigmoid(1.702 * x)
            case "squared relu":
                return torch.relu(x) ** 2
            case "soft cap":
                return torch.tanh(x / 3) * 3
            case "two gates":
                return torch.tanh(x) * torch.sigmoid(x.flip(-1))
        raise AssertionError(self.formula)


CONSERVING = [
    "rms", "rms by square and power", "rms by division", "l2", "l2 by sum", "layer norm", "layer norm by variance", "gelu",
    "quick gelu", "squared relu", "soft cap",
]  # fmt: skip


@pytest.mark.parametrize("formula", CONSERVING)
def test_norms_and_activations_conserve_relevance_in_every_spelling(formula: str) -> None:
    """R_in = R_out, element by element for an activation, in sum for a norm; the plain gradient does not."""
    net = Written(formula).double().eval()
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    explained = lxt_fx.transform(net, (x.detach(),))
    weights = torch.randn(8, dtype=torch.float64)
    target = (explained(x) * weights).sum()
    (gradient,) = torch.autograd.grad(target, x)
    (plain,) = torch.autograd.grad((net(x) * weights).sum(), x)
    assert abs((x * gradient).sum() - target) <= 1e-9 * abs(target)
    assert abs((x * plain).sum() - target) > 1e-3 * abs(target)


@pytest.mark.parametrize("formula", CONSERVING)
def test_a_norm_or_activation_is_one_named_op(formula: str) -> None:
    explained = lxt_fx.transform(Written(formula).eval(), (torch.randn(3, 8),))
    stage = explained.record.stages["rules"]
    carrying = [n for n in stage.graph.nodes if n.name in stage.carrying and n.op == "call_function"]
    names = {str(node.target) for node in carrying}
    assert any(name.startswith("lxt_fx.") and name != "lxt_fx.linear.default" for name in names), names
    native = {"aten.rsqrt.default", "aten.pow.Tensor_Scalar", "aten.sigmoid.default", "aten.tanh.default"}
    assert not names & native


def test_a_gate_gives_half_to_each_side_and_cp_lrp_holds_the_activation() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return nn.functional.silu(self.gate(a)) * self.up(b)

    net = Gated().double().eval()
    a, b = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    for rules, shares in (("attnlrp", (0.5, 0.5)), ("cp_lrp", (0.0, 1.0))):
        explained = lxt_fx.transform(net, (a.detach(), b.detach()), rules=rules)
        out = explained(a, b).sum()
        found = torch.autograd.grad(out, (a, b), allow_unused=True)
        for leaf, gradient, share in zip((a, b), found, shares, strict=True):
            relevance = 0.0 if gradient is None else float((leaf * gradient).sum())
            assert abs(relevance - share * float(out)) <= 1e-9


class Product(nn.Module):
    """factor(W a) * V b."""

    def __init__(self, factor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.factor = factor
        self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.factor(self.first(a)) * self.second(b)


def cp_share_of(factor: Callable[[Tensor], Tensor]) -> float:
    """The part of a product's relevance that `cp_lrp` gives to its second factor."""
    torch.manual_seed(0)
    net = Product(factor).double().eval()
    a, b = (torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    out = lxt_fx.transform(net, (a.detach(), b.detach()), rules="cp_lrp")(a, b).sum()
    (found,) = torch.autograd.grad(out, (b,))
    return float((b * found).sum() / out)


IN_WEIGHTS = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
SPELLINGS_OF_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu of GPT-2 and T5": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * x**3))),
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "gelu by erf": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "silu of a move that is written twice": lambda x: x.flip(-1) * torch.sigmoid(x.flip(-1)),
    "gated, clamped twice": lambda x: x.clamp(max=7.0) * torch.sigmoid(1.702 * x.clamp(max=7.0)),
    "silu by division": lambda x: x / (1 + torch.exp(-x)),
    "squared relu": lambda x: torch.relu(x) ** 2,
    "relu by clamp": lambda x: x.clamp(min=0),
    "relu6": nn.functional.relu6,
    "relu6 by clamp": lambda x: x.clamp(0, 6),
    "leaky relu": nn.functional.leaky_relu,
    "leaky relu by where": lambda x: torch.where(x > 0, x, 0.01 * x),
    "softsign": nn.functional.softsign,
    "hardsigmoid": nn.functional.hardsigmoid,
    "hardswish by hand": lambda x: x * nn.functional.relu6(x + 3) / 6,
    "softplus": nn.functional.softplus,
    "softplus by hand": lambda x: torch.log1p(torch.exp(x)),
    "exp": torch.exp,
    "a multiple": lambda x: 2 * nn.functional.silu(x),
    "a multiple by a weight on the left": lambda x: IN_WEIGHTS * nn.functional.silu(x),
    "one less a gate": lambda x: 1 - torch.sigmoid(x),
    "a product of gates": lambda x: torch.sigmoid(x) * torch.tanh(x.flip(-1)),
    "a gate over its sum": lambda x: nn.functional.normalize(x.softmax(-1), p=1, dim=-1),
    "the largest of a softmax": lambda x: x.softmax(-1).topk(4).values,
    "a joined pair": lambda x: torch.cat([torch.sigmoid(x[:, :2]), torch.tanh(x[:, 2:])], -1),
}
NO_GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "a square": lambda x: x * x,
    "a cube": lambda x: x**3,
    "a polynomial": lambda x: x * x + 0.5 * x,
    "a root": lambda x: (x * x).sqrt(),
    "a gate and another value": lambda x: torch.sigmoid(x) + x.flip(-1),
    "a value gated before": lambda x: torch.sigmoid(x) * x.flip(-1),
    "a bounded value": lambda x: x.clamp(-7, 7),
    "a linear value": lambda x: 2 * x,
}


@pytest.mark.parametrize("spelling", SPELLINGS_OF_GATES)
def test_cp_lrp_holds_a_gate_in_every_spelling(spelling: str) -> None:
    assert abs(cp_share_of(SPELLINGS_OF_GATES[spelling]) - 1) <= 1e-9


@pytest.mark.parametrize("what", NO_GATES)
def test_cp_lrp_gives_half_to_a_factor_that_is_no_gate(what: str) -> None:
    assert abs(cp_share_of(NO_GATES[what]) - 0.5) <= 1e-9


def test_cp_lrp_gives_half_to_each_of_two_gates() -> None:
    """Which one gates the other is not clear."""
    net = Written("two gates").double().eval()
    explained = lxt_fx.transform(net, (torch.randn(2, 8, dtype=torch.float64),), rules="cp_lrp")
    assert rules_in(explained, "lxt_fx.mul.default") == ["uniform"]


def test_every_op_of_an_identity_rule_is_a_gate_but_powers() -> None:
    """The gates are derived, so that an activation that gets a rule cannot be forgotten among them."""
    listed = {op for rule in lxt_fx.TABLES["attnlrp"].rules if rule.name.startswith("identity") for op in rule.ops}
    powers = {aten.pow.Tensor_Scalar, aten.sqrt.default, aten.rsqrt.default, aten.reciprocal.default}
    assert {op for op in listed if not isinstance(op, GroupKind)} - GATES == powers


def test_a_rule_prints_every_op_that_it_takes() -> None:
    lines = str(basic.IDENTITY).splitlines()
    assert lines[:3] == ["identity", f"  formula    {basic.IDENTITY.formula}", f"  source     {basic.IDENTITY.source}"]
    assert lines[3:5] == ["  conserves  all", "  when       Always."]
    assert len(lines[5:]) == len(basic.IDENTITY.ops) > 16
    assert {"  silu -> lxt_fx.silu", "  atan -> lxt_fx.atan"} <= set(lines)
    assert str(basic.UNIFORM).endswith(
        "  when       Both operands of a product carry.\n  mul.Tensor -> lxt_fx.mul\n  div.Tensor -> lxt_fx.div"
    )
    assert "  logsumexp stays" in str(basic.LOG_SOFTMAX) and str(Stop()).endswith("\n  any op stays")
    rules = [rule for table in lxt_fx.TABLES.values() for rule in table.rules]
    assert max(len(line) for rule in rules for line in str(rule).splitlines()) <= 80
    placed = lxt_fx.TABLES["attnlrp"].override("model.*.mlp", replace(basic.UNIFORM, epsilon=0.5)).rules[0]
    assert str(placed).startswith("uniform at model.*.mlp\n") and "\n  epsilon    0.5\n" in str(placed)


def test_a_plain_pytorch_net_needs_no_rule_of_its_own() -> None:
    explained = lxt_fx.transform(Mlp().eval(), (torch.randn(2, 6),))
    assert rules_in(explained, "lxt_fx.gelu.default") == ["identity"] and explained.record.unknown == {}


def test_a_composite_is_a_dict_of_places_and_rules() -> None:
    net, x = Mlp().double().eval(), torch.randn(2, 6, dtype=torch.float64)
    composite = {"second": linear_rules.gamma(0.25), nn.Linear: linear_rules.epsilon(1e-3)}
    explained = lxt_fx.transform(net, (x,), rules=composite)
    stage = explained.record.stages["rules"]
    found = [(n.args[1].target, stage.rules[n.name].name) for n in stage.graph.nodes if "linear" in str(n.target)]
    assert found == [("first.weight", "epsilon"), ("second.weight", "gamma")]  # the earlier item counts
    assert explained.record.overrides == ("second", "Linear")
    table = lxt_fx.TABLES["attnlrp"].override(nn.Linear, composite[nn.Linear]).override("second", composite["second"])
    relevances = []
    for module in (explained, lxt_fx.transform(net, (x,), rules=table)):
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(leaf)[:, 0].sum(), leaf)
        relevances.append(x * gradient)
    assert_same(*relevances)
    lxt_fx.audit(explained, x, 0).check()
    with pytest.raises(lxt_fx.InputError, match=r"rule must be a lxt_fx.Rule or RuleTable, got float"):
        lxt_fx.transform(net, (x,), rules={nn.Linear: 0.5})  # type: ignore[dict-item]


def test_the_epsilon_rule_is_the_epsilon_of_transform_for_linear_maps_and_convolutions() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double().eval()
    x = torch.randn(2, 2, 6, dtype=torch.float64)
    kinds = {nn.Conv1d: linear_rules.epsilon(0.1), nn.Linear: linear_rules.epsilon(0.1)}
    relevances = []
    for given in ({"rules": kinds}, {"epsilon": 0.1}, {}):
        leaf = x.clone().requires_grad_()
        explained = lxt_fx.transform(net, (x,), **given)  # type: ignore[arg-type]
        (gradient,) = torch.autograd.grad(explained(leaf)[:, 0].sum(), leaf)
        relevances.append(x * gradient)
    assert relative(relevances[0], relevances[1]) <= 1e-12 and relative(relevances[0], relevances[2]) > 1e-3
    with pytest.raises(lxt_fx.InputError, match="epsilon"):
        linear_rules.epsilon(-1.0)
