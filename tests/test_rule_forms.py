"""The table of docs/rule_forms.md: every rule is there, and every side of it is as near to the slow loop as it says."""

from __future__ import annotations

import inspect
from dataclasses import replace

import lxt_functions as lxt
import pytest
import rule_forms as forms
import torch
import zennit_rules
from rule_cases import NOT_REACHED
from slow_references import REFERENCES, Reference, identity, uniform
from torch.library import Library
from wrapper_cases import WRAPPERS

import lxt_fx
from lxt_fx.ops.packed import packed_linear
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.rule import Rule, kind_text

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("remembered_captures")  # both forms of a case are made of one capture

CASES = {f"{rule.name}: {case.title}": (case, rule, reference) for case, rule, reference in forms.cases()}


def covered() -> set[tuple[forms.Line, str]]:
    """What the table measures: rules, and the ops that each takes."""
    return {(forms.line_of(rule), kind_text(case.op)) for case, rule, _ in CASES.values()}


def missing(rules: tuple[Rule, ...]) -> list[str]:
    """Ops that a rule lists and no case has, as `rule: op`. tests/test_packed.py compares every rule of packed layers with
    the same rule for plain weights."""
    listed = [(rule, kind_text(op)) for rule in rules for op in rule.ops or (aten.silu.default,) if op is not packed_linear]
    return sorted({f"{rule.name}: {op}" for rule, op in listed if not is_covered(rule, op)})


def is_covered(rule: Rule, op: str) -> bool:
    """Whether a case has a rule of that name and source on the op; settings of a rule are part of its formula."""
    line = forms.line_of(rule)
    return any(found == op and (known.name, known.source) == (line.name, line.source) for known, found in covered())


def test_every_rule_of_every_table_has_a_slow_loop_for_every_op_that_it_lists() -> None:
    every = tuple(rule for table in lxt_fx.TABLES.values() for rule in table.rules)
    assert missing(every) == sorted(NOT_REACHED)


def test_a_rule_or_an_op_without_a_slow_loop_is_missed() -> None:
    odd = replace(basic.IDENTITY, name="odd")
    assert missing((odd,)) == sorted(f"odd: {op}" for op in odd.ops)
    wider = replace(basic.IDENTITY, ops={**basic.IDENTITY.ops, aten.i0.default: None})
    assert missing((wider,)) == ["identity: aten.i0.default"]


def test_every_function_of_linear_rules_has_a_slow_loop_for_every_op_that_it_lists() -> None:
    public = {name for name, f in inspect.getmembers(linear_rules, inspect.isfunction) if not name.startswith("_")}
    assert {name for name in public if inspect.signature(getattr(linear_rules, name)).return_annotation == "Rule"} == set(
        forms.LINEAR_RULES
    )
    assert missing(tuple(rule for rule, _, _ in forms.LINEAR_RULES.values())) == []


@pytest.mark.parametrize("title", CASES)
def test_both_forms_and_zennit_follow_the_slow_loop(title: str) -> None:
    """Measured: up to 1e-14, and 1e-10 where the loop takes difference quotients; 3e-7 in float32."""
    found = forms.measure(*CASES[title])
    bound = forms.SINGLE_BOUND if found.single else forms.BOUND
    assert found.gradient is not None and found.gradient <= bound
    assert found.explicit is not None and found.explicit <= bound
    assert found.zennit is None or found.zennit <= bound


@pytest.mark.skipif(zennit_rules.SPEC is None, reason="zennit is not installed")
def test_zennit_is_measured_where_it_has_the_rule() -> None:
    titles = {title for title, (case, _, _) in CASES.items() if case.title in forms.ZENNIT}
    assert len(titles) == 4 + 2 * len(forms.LINEAR_RULES)
    assert forms.measure(*CASES["gamma: linear-conv2d"]).zennit is not None


@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_follow_the_slow_loop(name: str) -> None:
    for wrapper in WRAPPERS[name]:
        found = forms.measure_wrapper(name, wrapper)
        assert found.explicit is not None and found.explicit <= forms.BOUND
        assert found.gradient is None or found.gradient <= forms.BOUND


EVERY_CALL = {call.name: call for calls in lxt.CALLS.values() for call in calls}


@pytest.mark.parametrize("name", EVERY_CALL)
def test_lxt_differs_from_the_papers_by_the_sign_of_its_epsilon_only(name: str) -> None:
    """But for layer norm, which has it in several steps."""
    call = EVERY_CALL[name]
    as_paper, unsigned = call.differences()
    if name.startswith("layer_norm"):
        assert as_paper <= 1e3 * call.epsilon
        return
    assert unsigned <= (forms.SINGLE_BOUND if call.single else forms.BOUND)
    assert not call.epsilon or as_paper > 10 * unsigned


def test_every_recorded_call_of_lxt_is_in_the_table_or_named_as_wrong() -> None:
    recorded = {name for name in lxt.CASES if not name.startswith("implicit")}
    assert recorded == {*EVERY_CALL, lxt.WRONG.name, *lxt.RAISING}
    assert lxt.WRONG.differences()[0] > 0.1
    assert {line.name for line in forms.lxt_calls()} <= {line.name for line, _ in covered()} | set(WRAPPERS)


LIBRARY = Library("lxt_fx_test_rule_forms", "DEF")  # type: ignore[no-untyped-call]
LIBRARY.define("third(Tensor self, Tensor other) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("third", lambda a, b: (a * b).detach() + a * b / 3 - (a * b / 3).detach(), "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
third = torch.ops.lxt_fx_test_rule_forms.third.default


@pytest.mark.parametrize(
    ("title", "rule", "reference"),
    [
        ("uniform-mul.Tensor", replace(basic.UNIFORM, ops={aten.mul.Tensor: third}), uniform),
        ("identity-silu", replace(basic.IDENTITY, ops={aten.silu.default: None}), identity),
        ("uniform-mul.Tensor", replace(basic.UNIFORM, ops={aten.mul.Tensor: None}), uniform),
    ],
)  # fmt: skip
def test_an_op_that_does_not_follow_its_formula_is_seen(title: str, rule: Rule, reference: Reference) -> None:
    """A third to each factor, a plain gradient through SiLU, the whole to each factor."""
    found = forms.measure(REFERENCES[title][0], rule, reference)
    assert found.gradient is not None and found.gradient > 0.01
    assert found.explicit is not None and found.explicit > 0.01


def test_the_page_is_what_the_command_writes() -> None:
    """But for the figures, which are those of a machine; they are below the bounds."""
    text = forms.PAGE.read_text(encoding="utf-8")
    cells = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]
    found = [forms.Line(name, formula, source) for name, formula, source, *_ in cells]
    wanted = [forms.line_of(rule) for _, rule, _ in CASES.values()]
    wanted += [forms.Line(name, these[0].formula, these[0].source) for name, these in WRAPPERS.items()]
    assert found == list(dict.fromkeys(wanted)), "the page is not of these rules: python tests/rule_forms.py"
    figures = [figure for line in cells for figure in line[5:8] if figure != "-"]
    assert len(figures) > 60 and all(float(figure) <= forms.BOUND for figure in figures)
    assert f"The {len(CASES) + sum(map(len, WRAPPERS.values()))} cases" in text
    assert not any("nan" in cell for line in cells for cell in line[5:])
