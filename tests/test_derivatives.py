"""An op on the relevance path that has no derivative is refused by name, whatever the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import Library, custom_op, register_fake

import lxt_fx
from lxt_fx.rule_table import basic_rules as basic

LIBRARY = Library("no_derivative", "DEF")
LIBRARY.define("rounded(Tensor x) -> Tensor")
LIBRARY.impl("rounded", lambda x: (x * 4).round() / 4 + 0 * x, "CompositeExplicitAutograd")
register_fake("no_derivative::rounded", torch.empty_like, lib=LIBRARY)


@custom_op("no_derivative::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """Without a formula."""
    return x * 2


@custom_op("no_derivative::tripled", mutates_args=())
def tripled(x: Tensor) -> Tensor:
    """With a formula."""
    return x * 3


doubled.register_fake(torch.empty_like)
tripled.register_fake(torch.empty_like)
tripled.register_autograd(lambda ctx, g: 3 * g)


class Calling(nn.Module):
    """The op between two linear maps."""

    def __init__(self, op: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.op, self.first, self.second = op, nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.op(self.first(x)))
        return found


X = torch.linspace(-1, 1, 8).reshape(2, 4)


@pytest.mark.parametrize(("table", "strict"), [("gradient", True), ("gradient", False), ("attnlrp", False)])
@pytest.mark.parametrize("name", ["rounded", "doubled"])
@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
def test_an_op_without_a_formula_is_refused(name: str, table: str, strict: bool) -> None:
    net = Calling(getattr(torch.ops.no_derivative, name)).eval()
    with pytest.raises(lxt_fx.NoRuleError, match=rf"no derivative for %{name} = no_derivative\.{name}\.default"):
        lxt_fx.transform(net, (X,), rules=table, strict=strict)


@pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered")
def test_a_rule_of_the_user_does_not_hide_it() -> None:
    op = torch.ops.no_derivative.rounded.default
    stays = replace(basic.SCALE, ops={op: None}, when=lambda site: None)
    with pytest.raises(lxt_fx.NoRuleError, match="no derivative"):
        lxt_fx.transform(Calling(op).eval(), (X,), rules={op: stays})
    becomes = replace(stays, ops={torch.ops.aten.relu.default: op})
    with pytest.raises(lxt_fx.NoRuleError, match=r"no derivative for %relu = no_derivative\.rounded\.default"):
        lxt_fx.transform(Calling(torch.relu).eval(), (X,), rules={torch.ops.aten.relu.default: becomes})


def test_an_op_with_a_formula_keeps_its_gradient() -> None:
    net = Calling(torch.ops.no_derivative.tripled).eval()
    leaf = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(lxt_fx.transform(net, (X,), rules="gradient")(leaf).sum(), leaf)
    (expected,) = torch.autograd.grad(net(leaf).sum(), leaf)
    torch.testing.assert_close(found, expected)
