"""What is stated of an op once, and what follows from it: rules, gates, equations, other names, functions as places."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from activation_cases import BY_NAME as CURVE
from torch import Tensor, nn
from torch._ops import OpOverload

import lxt_fx
from lxt_fx.base.torch_internals import aten_op, aten_ops
from lxt_fx.ledger.claimed import NATURALLY
from lxt_fx.ops import activations, norms, products
from lxt_fx.ops.activations import ACTIVATIONS
from lxt_fx.ops.aten_kinds import (
    CONTRACTIONS,
    GATES,
    MOVES,
    NORMS,
    POINTWISE_NONLINEAR,
    PRODUCTS,
    SELECTIONS,
    STEPS,
    SUMS,
    WEIGHTED,
)
from lxt_fx.passes.rewrite.explicit_form import is_known
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table.functions_as_places import FUNCTIONS

aten = torch.ops.aten
ROOT = Path(lxt_fx.__file__).parent
FOLDERS = (ROOT, ROOT.parent / "passes", ROOT.parent / "rule_table")


def test_every_name_of_an_op_is_one_of_this_torch() -> None:
    """A name that a torch does not have is skipped, so that one that is misspelt would be too."""
    sources = [path.read_text(encoding="utf-8") for folder in FOLDERS for path in folder.rglob("*.py")]
    calls = [re.findall(r'aten_ops\(\s*"+([^"]*)"+\s*\)', source) for source in sources]
    names = [name for found in calls for text in found for name in text.split()]
    assert len(names) > 150 and [name for name in names if aten_op(name) is None] == []
    written = {".".join(use) for source in sources for use in re.findall(r"\baten\.([a-z]\w*)\.(\w+)", source)}
    assert len(written) > 100 and [name for name in written if aten_op(name) is None] == []
    assert all(a.aten is not None and len(a.other_names) == len(a.aliases.split()) for a in activations.STATED)
    assert aten_ops("add.Tensor no_such_op add.NoSuchOverload") == {aten.add.Tensor} and aten_op("") is None


def test_every_op_that_a_table_puts_into_a_graph_has_an_equation() -> None:
    put = {op for table in lxt_fx.TABLES.values() for rule in table.rules for op in rule.ops.values() if op is not None}
    assert len(put) > 40 and all(is_known(op) for op in put)
    assert not is_known(torch.ops.lxt_fx.head.default)


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: activation.name)
def test_from_one_line_follow_the_rule_and_the_value_at_zero(activation: activations.Activation) -> None:
    taking = [rule for rule in lxt_fx.TABLES["attnlrp"].rules if rule.ops.get(activation.aten) is activation.op]
    assert len(taking) == 1 and activation.aten in POINTWISE_NONLINEAR
    assert (taking[0].conserves is lxt_fx.Conserves.ALL) == (activation.at_zero == 0)
    assert (activation.op in activations.FROM_ZERO) == (activation.at_zero != 0)
    if activation.name in CURVE:  # stated there anew
        assert activation.at_zero == CURVE[activation.name].at_zero


@pytest.mark.parametrize("name", sorted(a.name for a in ACTIVATIONS if a.at_zero))
def test_a_function_that_closes_lets_nothing_out_where_it_is_0(name: str) -> None:
    activation = activations.BY_NAME[name]
    x = torch.linspace(-1, 1, 9, dtype=torch.float64) * (1 if name == "acos" else 7.3)
    given = CURVE[name].settings
    closed = activation.value(x, *given) == 0
    assert activation.closes == bool(closed.any() and not activation.factor(x, *given)[closed].any())
    assert (activation.op in activations.CLOSING) == activation.closes


def test_powers_are_no_gates_and_exponentials_are_rates() -> None:
    powers = {"pow", "reciprocal", "rsqrt", "sqrt"}
    assert {activation.name for activation in ACTIVATIONS if activation.aten not in GATES} == powers
    assert {activation.name for activation in ACTIVATIONS if activation.decay} == {"exp", "exp2", "exp_base", "expm1"}
    rates = {"exp", "exp2", "exp_base", "expm1", "softplus", "sigmoid", "hardsigmoid", "log_sigmoid"}
    assert {activation.name for activation in ACTIVATIONS if activation.rate} == rates


class Calls(nn.Module):
    """Each function on numbers of its own: what is computed twice would be one node."""

    def __init__(self, functions: list[Any]) -> None:
        super().__init__()
        self.functions = functions

    def forward(self, x: Tensor) -> list[Tensor]:
        return [function(x[index]) for index, function in enumerate(self.functions)]


def called(functions: list[Any], stage: str) -> list[Any]:
    """The ops of the functions, in order."""
    explained = lxt_fx.transform(Calls(functions).eval(), (torch.rand(len(functions), 2, 3) / 2 + 0.25,))
    nodes = [node for node in explained.record.stages[stage].graph.nodes if node.op == "call_function"]
    return [node.target for node in nodes if node.target is not aten.select.int]


def test_a_function_is_the_op_that_it_is_said_to_be() -> None:
    given = {f: a for a in ACTIVATIONS for f in a.callers if a.name != "pow"}
    assert {F.selu, F.celu, torch.special.erf, torch.special.erfinv, torch.special.expit} <= set(given)
    assert called(list(given), "canonical") == [activation.aten for activation in given.values()]
    assert all(FUNCTIONS[function] == (activation.aten,) for function, activation in given.items())


def test_another_name_of_an_activation_gets_its_rule() -> None:
    named = {other: a for a in ACTIVATIONS for other in a.other_names}
    assert set(named) >= {aten.special_erf.default, aten.special_expit.default, aten.special_erfinv.default}
    assert called(list(named), "rules") == [activation.op for activation in named.values()]


def test_from_one_line_follow_the_places_of_a_norm() -> None:
    for op, norm in norms.OF.items():
        assert basic.NORM.ops[op] is norm.op and all(FUNCTIONS[function] == (op,) for function in norm.functions)
        arguments = {argument.name for argument in norm.op._schema.arguments}
        assert norm.holds <= arguments and norm.holds == {"weight", "bias"} & arguments
    assert {norm.op for norm in norms.NORMS} == {op for op in vars(norms).values() if isinstance(op, OpOverload)}


def test_no_op_is_of_two_natures() -> None:
    """Where a rule claims nothing, the nature of its op says what it conserves: two of them would hide one another."""
    kinds = (MOVES, SUMS, WEIGHTED, SELECTIONS, PRODUCTS, CONTRACTIONS, NORMS, STEPS)
    assert len(frozenset().union(*kinds)) == sum(map(len, kinds))
    assert NATURALLY[aten.add.Tensor] is NATURALLY[products.linear] is lxt_fx.Conserves.ALL_BUT_CONSTANTS
    assert NATURALLY[aten.topk.default] is lxt_fx.Conserves.SELECTED
