"""Rules with an op of the user's: both forms, an epsilon, saved and loaded, in a notebook cell that runs twice."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.library import Library

import lxt_fx
from lxt_fx.ops import products
from lxt_fx.ops.head import head

aten = torch.ops.aten
OPS = torch.ops.lxt_fx_own
PAGE = Path(__file__).parents[1] / "docs" / "adding_a_rule.md"

LIBRARY = Library("lxt_fx_own", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define("unequal(Tensor self, Tensor other) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.define("equation(Tensor self, Tensor other) -> Tensor")  # type: ignore[no-untyped-call]


class Equation(torch.autograd.Function):
    """y = a b; two thirds of R to a, one third to b."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return a * b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *relevance: Tensor) -> tuple[Tensor, Tensor]:
        return relevance[0] * 2 / 3, relevance[0] / 3


def scaled(x: Tensor, factor: float) -> Tensor:
    """x, its gradient times a factor."""
    return x.detach() + factor * (x - x.detach())


LIBRARY.impl("unequal", lambda a, b: scaled(a, 2 / 3) * scaled(b, 1 / 3), "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
LIBRARY.impl("equation", lambda a, b: Equation.apply(a, b), "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]

PLAIN = lxt_fx.Rule("unequal", {aten.mul.Tensor: OPS.unequal.default}, "R_a = 2 R / 3", "nowhere", lxt_fx.Conserves.ALL)
WITH_EQUATION = replace(PLAIN, explicit={OPS.unequal.default: OPS.equation.default})


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


GENERATOR = torch.Generator().manual_seed(0)
A, B, R = torch.randn(3, 7, dtype=torch.float64, generator=GENERATOR)


def transformed(rule: lxt_fx.Rule, form: str, epsilon: float = 0.0) -> lxt_fx.Explained:
    return lxt_fx.transform(Product(), (A, B), rules={aten.mul.Tensor: rule}, form=form, epsilon=epsilon)  # type: ignore[arg-type]


def relevance(explained: lxt_fx.Explained) -> tuple[Tensor, Tensor]:
    """Of a and b, given R."""
    leaves = A.clone().requires_grad_(), B.clone().requires_grad_()
    if explained.record.form == "explicit":
        return torch.autograd.grad(explained(*leaves), leaves, R)
    found = torch.autograd.grad(explained(*leaves), leaves, R / (A * B))
    return A * found[0], B * found[1]


def assert_third(found: tuple[Tensor, ...], r: Tensor) -> None:
    torch.testing.assert_close(found, (r * 2 / 3, r / 3), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("rule", [PLAIN, WITH_EQUATION], ids=["without equation", "with equation"])
def test_an_op_of_the_users_passes_relevance_in_both_forms(rule: lxt_fx.Rule, form: str) -> None:
    assert_third(relevance(transformed(rule, form)), R)


def test_the_equation_of_a_rule_is_what_runs_in_the_explicit_form_only() -> None:
    """One that disagrees with the op is seen, which is what it is for: here a gradient where relevance is asked for."""
    assert "lxt_fx_own.equation(%a, %b)" in lxt_fx.show(transformed(WITH_EQUATION, "explicit"), "lowered")
    assert "lxt_fx_own.unequal(%a, %b)" in lxt_fx.show(transformed(WITH_EQUATION, "gradient"), "lowered")
    wrong = replace(PLAIN, explicit={OPS.unequal.default: OPS.unequal.default})
    assert bool(((relevance(transformed(wrong, "explicit"))[0] - R * 2 / 3).abs() > 1e-3).any())


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_an_op_with_an_equation_has_no_epsilon_in_either_form(form: str) -> None:
    assert_third(relevance(transformed(WITH_EQUATION, form, epsilon=0.5)), R)
    assert_third(relevance(transformed(PLAIN, form, epsilon=0.5)), R * (A * B).abs() / ((A * B).abs() + 0.5))


def test_a_module_with_an_op_of_the_users_is_loaded_with_that_op_only(tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    lxt_fx.save(transformed(WITH_EQUATION, "explicit"), path)
    loaded = lxt_fx.load(path, ops=(OPS.equation.default,))
    assert_third(relevance(loaded), R)
    for ops in ((), (OPS.unequal.default,)):
        with pytest.raises(lxt_fx.InputError, match=r"lxt_fx_own.equation.default, which is no op of torch; if it is"):
            lxt_fx.load(path, ops=ops)


def test_the_ops_of_the_page_are_registered_well_and_their_cells_run_twice() -> None:
    """Under another name, since the page itself may have been run in this process."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)[:2]
    namespace: dict[str, Any] = {}
    for block in (*blocks, *blocks):
        exec(compile(block.replace("notebook", "notebook_twice"), "page", "exec"), namespace)
    a, b = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    for name in ("mul_abs", "mul_abs_equation"):
        op = namespace[name]
        torch.library.opcheck(op, (a, b))
        y = op(a, b)
        each = torch.autograd.grad(y, (a, b), torch.eye(6).reshape(6, 2, 3), is_grads_batched=True, retain_graph=True)
        one = torch.autograd.grad(y, (a, b), torch.eye(6)[4].reshape(2, 3))
        torch.testing.assert_close(tuple(found[4] for found in each), one)
        compiled = torch.compile(lambda a, b, op=op: op(a, b).sum(), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(torch.autograd.grad(compiled(a, b), (a, b)), torch.autograd.grad(op(a, b).sum(), (a, b)))


def test_an_op_without_an_equation_is_not_proven_in_the_explicit_form(tmp_path: Path) -> None:
    """There it is x times its own backward: the fast form once more, which agrees with itself whatever it does."""
    path = tmp_path / "own.safetensors"
    lxt_fx.save(transformed(PLAIN, "explicit"), path)
    for explained in (transformed(PLAIN, "explicit"), lxt_fx.load(path, ops=(OPS.unequal.default,))):
        (found,) = lxt_fx.certificate(explained).not_proven
        assert found.op == "lxt_fx_own.unequal" and "no equation (explicit=)" in found.why
    for rule, form in ((WITH_EQUATION, "explicit"), (PLAIN, "gradient")):
        assert lxt_fx.certificate(transformed(rule, form)).proven


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_an_op_of_lxt_fx_that_has_no_equation_is_never_taken_for_a_linear_map(form: str) -> None:
    """`head` is what the graph that runs calls; how relevance passes it stands nowhere."""
    rule = replace(PLAIN, ops={aten.linear.default: head})
    given = {"rules": {aten.linear.default: rule}, "form": form}
    with pytest.raises(lxt_fx.NoRuleError, match=r"no equation for %head = lxt_fx.head.default"):
        lxt_fx.transform(nn.Linear(7, 2).double(), (A[None],), **given)  # type: ignore[arg-type]
    given["rules"] = {aten.linear.default: replace(rule, explicit={head: products.linear})}
    lxt_fx.transform(nn.Linear(7, 2).double(), (A[None],), **given)  # type: ignore[arg-type]
