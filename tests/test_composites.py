"""Composites: rules by name at places of a model, modules as a whole among them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lxt_fx
from lxt_fx.rules import Epsilon, Gamma, Identity, Stop, Uniform


class Cube(nn.Module):
    """One value in, one of the same shape out, with products and sums between."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.tanh(self.inner(x)) + x**3


class Net(nn.Module):
    """A layer, a block, a gate that stops, a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.cube, self.gate, self.last = nn.Linear(6, 6), Cube(), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.cube(self.first(x))
        return self.last(y * torch.sigmoid(self.gate(x)))


X = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_a_module_as_a_whole_passes_relevance_element_by_element_or_not_at_all(form: str) -> None:
    net = Net().double().eval()
    rules = {Cube: Identity(), "gate": Stop(), nn.Linear: Epsilon(0.0)}
    explained = lxt_fx.transform(net, (X,), rules=rules, form=form, epsilon=0.0)  # type: ignore[arg-type]
    leaf = X.clone().requires_grad_()
    output = explained(leaf)
    torch.testing.assert_close(output, net(X))
    seed = torch.zeros_like(output)
    seed[:, 0] = output[:, 0].detach() if form == "explicit" else 1.0
    (found,) = torch.autograd.grad(output, leaf, seed)
    found = found if form == "explicit" else X * found
    # by hand: eq. 8 through the last layer, all of it to the cube, as it is through the cube, eq. 8 through the first
    with torch.no_grad():
        before = net.first(X)
        cube = net.cube(before)
        product = cube * torch.sigmoid(net.gate(X))
        relevance = product * net.last.weight[0]
        expected = X * ((relevance / before) @ net.first.weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_whole_module_has_one_rule_and_a_closed_ledger() -> None:
    net = Net().double().eval()
    explained = lxt_fx.transform(net, (X,), rules={Cube: Identity(), nn.Linear: Gamma(0.1)})
    text = lxt_fx.show(explained)
    assert "lxt_fx.identity(%linear" in text and "group module" in lxt_fx.show(explained, "groups")
    x = X.clone()
    ledger = lxt_fx.audit(explained, x, 0)
    ledger.check(1e-9)
    assert lxt_fx.Cause.ZERO not in ledger.by_cause()
    certificate = str(lxt_fx.certificate(explained))
    assert "R_in = R_out over the module" in certificate


def test_rules_that_can_serve_no_node_are_refused() -> None:
    net = Net().double().eval()
    with pytest.raises(lxt_fx.InputError, match="rule identity fits no node at last"):
        lxt_fx.transform(net, (X,), rules={"last": Identity()})
    with pytest.raises(lxt_fx.InputError, match="rule uniform fits no node at first"):
        lxt_fx.transform(net, (X,), rules={"first": Uniform()})


def test_a_place_that_the_model_lacks_is_named_with_the_nearest_one() -> None:
    net = Net().double().eval()
    with pytest.warns(UserWarning, match=r"no node of the model is at 'gates'.*nearest: gate"):
        lxt_fx.transform(net, (X,), rules={"gates": Stop()})


def test_functions_are_places_too() -> None:
    net = Net().double().eval()
    explained = lxt_fx.transform(net, (X,), rules={torch.sigmoid: Stop(), nn.functional.linear: Gamma(0.1)})
    stage = explained.record.stages["rules"]
    assert "gamma" in {rule.name for rule in stage.rules.values()}
    assert "identity from f(0)" not in {rule.name for rule in stage.rules.values()}
    assert explained.record.overrides == ("sigmoid", "linear")
    with pytest.raises(lxt_fx.InputError, match="function 'tril' is no place that lxt_fx knows"):
        lxt_fx.transform(net, (X,), rules={torch.tril: Stop()})


def test_the_table_of_modules_and_rules() -> None:
    net = Net().double().eval()
    explained = lxt_fx.transform(net, (X,), rules={nn.Linear: Gamma(0.1), "cube": Identity()})
    text = lxt_fx.show(explained, "modules")
    lines = [line.split() for line in text.splitlines()]
    assert any(line[:3] == ["first", "Linear", "linear_gamma"] and "gamma" in line for line in lines), text
    assert any(line[:1] == ["cube"] and "identity" in line for line in lines), text


def test_what_is_no_rule_says_what_to_give() -> None:
    net = Net().double().eval()
    for given, said in (
        (Epsilon, r"the function that makes it: call it, Epsilon\(\)"),
        (Identity, r"call it, Identity\(\)"),
        (lxt_fx.nn.Taylor, "lxt_fx.nn.Taylor, which wraps a module of a model written by hand"),
        (lxt_fx.nn.Epsilon(nn.Linear(2, 2)), "rules for a table are those of lxt_fx.rules"),
        (3, "got int"),
    ):
        with pytest.raises(lxt_fx.InputError, match=said):
            lxt_fx.transform(net, (X,), rules={nn.Linear: given})  # type: ignore[dict-item]


def test_a_net_with_rule_modules_leaves_them_their_rule_where_that_is_asked_for() -> None:
    torch.manual_seed(0)
    parts = lxt_fx.nn.Identity(nn.Tanh()), nn.Linear(6, 6), lxt_fx.nn.LayerNorm(6), nn.Linear(6, 2)
    net = nn.Sequential(*parts).double().eval()
    with pytest.raises(lxt_fx.NoRuleError, match="it has a rule of its own already.*strict=False. leaves it that"):
        lxt_fx.transform(net, (X,))
    explained = lxt_fx.transform(net, (X,), strict=False)
    found = []
    for module in (net, explained):
        leaf = X.clone().requires_grad_()
        module(leaf)[:, 0].sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)
