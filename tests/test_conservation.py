"""Every rule of every table conserves what it claims to, for every op that it lists, and every ledger closes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
from rule_cases import CASES, NOT_REACHED
from rule_cases_linear import CASES as LINEAR_CASES
from rule_nets import ANY, BELOW_ONE, EIGHTHS, NOT_NEGATIVE, POSITIVE, Case, Inputs, Net, in_domain
from torch import Tensor
from torch.utils._pytree import tree_leaves

import lxt_fx
from lxt_fx.ledger.causes import Cause
from lxt_fx.ops.packed import packed_linear
from lxt_fx.rule_table import linear_rules
from lxt_fx.rule_table.rule import Conserves, Rule, kind_text

aten = torch.ops.aten

ALL_CASES = {case.title: case for case in (*CASES, *LINEAR_CASES)}

LINEAR_RULES = [linear_rules.epsilon(), linear_rules.gamma(), linear_rules.z_plus(), linear_rules.alpha_beta()]

CONSTANTS = {Cause.BIAS, Cause.CONSTANT, Cause.INTERCEPT}
ALLOWED = {
    Conserves.ALL: set[Cause](),
    Conserves.ALL_BUT_CONSTANTS: CONSTANTS,
    Conserves.ALL_BUT_OFFSET: {Cause.OFFSET, Cause.CONSTANT},
    Conserves.ALL_BUT_POSITIONS: {Cause.POSITION},
    Conserves.SELECTED: {Cause.SELECTION},
    Conserves.NATIVE: {Cause.NATIVE, Cause.OFFSET, *CONSTANTS},
}
"""The causes of a leak that a rule may have."""

EXAMPLES = 6
"""How often each case is tried on drawn inputs: the first time all are 0."""

every_case = pytest.mark.parametrize("title", ALL_CASES)


def table_of(rule: Rule) -> lxt_fx.RuleTable:
    """The first table that holds the rule."""
    return next(table for table in lxt_fx.TABLES.values() if any(rule is other for other in table.rules))


@cache
def explained_net(title: str) -> tuple[Net, lxt_fx.Explained, tuple[str, ...]]:
    """The net of a case, as it is and transformed, and the names of the nodes where its rule took its op."""
    case = ALL_CASES[title]
    net = Net(case).eval()
    generator = torch.Generator().manual_seed(1)
    example = tuple(torch.rand(shape, generator=generator, dtype=torch.float64) + 0.25 for shape in case.shapes)
    explained = lxt_fx.transform(net, tuple(x.to(case.dtype) for x in example), rules=table_of(case.rule))
    rules, matches = explained.record.stages["lowered"].rules, explained.record.matches
    nodes = tuple(n for n, rule in rules.items() if rule is case.rule and matches[n].kind == kind_text(case.op))
    return net, explained, nodes


@cache
def fits(title: str, shapes: tuple[tuple[int, ...], ...]) -> bool:
    """Whether the net computes something from inputs of these shapes, and was captured for them."""
    net, explained, _ = explained_net(title)
    inputs = [torch.ones(shape, dtype=ALL_CASES[title].dtype) for shape in shapes]
    try:
        outputs = tree_leaves(net(*inputs))
    except (RuntimeError, IndexError, ValueError):  # a norm of one value raises ValueError
        return False
    try:
        explained(*inputs)
    except lxt_fx.CallError:
        return False
    return all(output.numel() > 0 for output in outputs)


class Draws:
    """What one example of a case is made of, the same in each run."""

    def __init__(self, title: str, example: int) -> None:
        self.example, self.random = example, Random(f"{title} {example}")
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(32))

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        """float64, from `low` to `high`."""
        return torch.randint(low, high + 1, shape, generator=self.generator).double()

    def eighths(self, shape: tuple[int, ...]) -> Tensor:
        """Up to 4; one tensor in three has few values, so that many are the same."""
        if self.example == 0:
            return torch.zeros(shape, dtype=torch.float64)
        most = 3 if self.random.random() < 1 / 3 else 32
        return self.integers(-most, most, shape) / 8

    def numbers(self, shape: tuple[int, ...]) -> Tensor:
        """Zeros, eighths, thousandths up to 4 and millionths."""
        if self.example == 0:
            return torch.zeros(shape, dtype=torch.float64)
        small, tiny = self.integers(-4000, 4000, shape) / 1000, self.integers(-9, 9, shape) * 1e-6
        each = torch.stack([torch.zeros_like(small), self.eighths(shape), small, tiny])
        return each.gather(0, self.integers(0, 3, (1, *shape)).long())[0]


def inputs_of(title: str, draws: Draws) -> Inputs:
    """Inputs of sizes that the net takes: equal sizes of the example stay equal."""
    case = ALL_CASES[title]
    resized = [size for size in (2, 3, 4) if case.resizes and draws.example and draws.random.random() < 0.5]
    sizes = {size: draws.random.randint(1, 5) for size in resized}
    shapes = tuple(tuple(sizes.get(size, size) for size in shape) for shape in case.shapes)
    shapes = shapes if fits(title, shapes) else case.shapes
    found = [draws.eighths(shape) if case.values == EIGHTHS else draws.numbers(shape) for shape in shapes]
    if case.values in (POSITIVE, NOT_NEGATIVE):
        found = [x.abs() + (0.25 if case.values == POSITIVE else 0) for x in found]
    if case.values == BELOW_ONE:
        found = [x / 5 for x in found]
    elif case.values != EIGHTHS:
        scale = draws.random.choice([1.0, 1e-3, 1e3] if case.values == ANY else [1.0, 1e-3])
        found = [x * scale for x in found]
    return tuple(in_domain(x, case.values).to(case.dtype) for x in found)


def floats(outputs: Any) -> list[Tensor]:
    """The floating-point tensors of a net's output."""
    return [output for output in tree_leaves(outputs) if output.is_floating_point()]


def by_example(terms: list[Tensor]) -> Tensor:
    """Sums for each index of the first dim, where all have the same one; else their sum."""
    alike = all(term.dim() > 0 for term in terms) and len({term.shape[:1] for term in terms}) == 1
    return sum(term.flatten(1).sum(1) if term.dim() > 1 else term for term in terms) if alike else sum_of(terms)  # type: ignore[return-value]


def sum_of(terms: list[Tensor]) -> Tensor:
    """[1]: the sum of everything."""
    return torch.stack([term.sum() for term in terms]).sum().reshape(1)


def functional(gradients: list[Tensor]) -> Callable[[Any], Tensor]:
    """<output, c> for each example."""
    return lambda outputs: by_example([o.double() * c for o, c in zip(floats(outputs), gradients, strict=True)])


def said_leak(case: Case, net: Net, inputs: Inputs, gradients: list[Tensor]) -> Tensor | None:
    """[batch]: what the op absorbs if its rule conserves what it claims. None where it claims nothing."""
    if case.leak is not None:
        return by_example([case.leak(net, tuple(x.double() for x in inputs), gradients[0])])
    if case.rule.conserves is Conserves.NATIVE:
        return None
    if case.rule.conserves is Conserves.ALL_BUT_CONSTANTS:
        constants = floats(net(*(torch.zeros_like(x) for x in inputs)))
        return by_example([value * c for value, c in zip(constants, gradients, strict=True)])
    outputs = floats(net(*inputs))
    if case.rule.conserves is Conserves.SELECTED:
        constants = constant(net, inputs, outputs)
        return by_example([o * same * c for o, same, c in zip(outputs, constants, gradients, strict=True)])
    return by_example([0 * o * c for o, c in zip(outputs, gradients, strict=True)])


def constant(net: Net, inputs: Inputs, outputs: list[Tensor]) -> list[Tensor]:
    """Which elements stay when every input is moved a little up, and down: a constant stands there."""
    stays = [torch.ones_like(output, dtype=torch.bool) for output in outputs]
    for sign in (1, -1):
        steps = [sign * 1e-7 * (x.abs() + 1e-7) * torch.linspace(1, 2, x.numel()).reshape(x.shape) for x in inputs]
        moved = net(*(x + step for x, step in zip(inputs, steps, strict=True)))
        stays = [s & (output == m) for s, output, m in zip(stays, outputs, floats(moved), strict=True)]
    return stays


def absorbed_at(ledger: lxt_fx.Ledger, nodes: tuple[str, ...]) -> Tensor:
    """[batch]: what reached the nodes less what they passed on."""
    nothing = torch.zeros_like(ledger.value)
    reached = sum((ledger.reaching.get(name, nothing) for name in nodes), nothing)
    return reached - sum((amount for edge, amount in ledger.passing.items() if edge.consumer in nodes), nothing)


def of_linear_rules(rule: Rule) -> bool:
    """Whether test_linear_rules.py tests this rule, or one that lists more: every constructor, both forms, every op."""
    return any(rule.ops.items() <= whole.ops.items() and rule.source == whole.source for whole in LINEAR_RULES)


def equation(rule: Rule) -> tuple[Any, ...]:
    """What a rule does; rules that differ only in where they stand are one."""
    return rule.name, rule.formula, rule.source, rule.conserves, tuple(rule.ops.items())


def test_every_rule_and_every_op_that_it_lists_has_a_case() -> None:
    every = {id(rule): rule for table in lxt_fx.TABLES.values() for rule in table.rules if not of_linear_rules(rule)}
    tried = {(equation(case.rule), case.op) for case in ALL_CASES.values()}
    listed = [(rule, op) for rule in every.values() for op in rule.ops if op is not packed_linear]  # tests/test_packed.py
    missing = [f"{rule.name}: {op}" for rule, op in listed if (equation(rule), op) not in tried]
    assert sorted(missing) == sorted(NOT_REACHED)
    no_case = [rule for rule in every.values() if rule.ops and all(f"{rule.name}: {op}" in NOT_REACHED for op in rule.ops)]
    reached = [rule for rule in every.values() if rule not in no_case]
    assert {rule.name for rule in reached} == {case.rule.name for case in ALL_CASES.values()}
    assert {equation(case.rule) for case in ALL_CASES.values()} == {equation(rule) for rule in reached}
    assert len(ALL_CASES) == len(CASES) + len(LINEAR_CASES)  # no title twice


@every_case
def test_the_rule_takes_the_op(title: str) -> None:
    assert explained_net(title)[2]


@every_case
def test_the_rule_conserves_what_it_says(title: str) -> None:
    """What reaches the op less what leaves it, element for element drawn, against the share that the paper's formula or the
    plain net gives to constants; and the ledger puts it down to that cause and closes."""
    tried = sum(conserves_on(title, Draws(title, example)) for example in range(EXAMPLES))
    assert tried > EXAMPLES / 2


def conserves_on(title: str, draws: Draws) -> bool:
    """Whether the example says something; where everything cancels only rounding is left."""
    case = ALL_CASES[title]
    net, explained, nodes = explained_net(title)
    net.redraw(draws.random.randint(0, 99) if draws.example else 0)
    inputs = inputs_of(title, draws)
    with torch.no_grad():
        outputs = floats(net(*inputs))
        gradients = [draws.eighths(tuple(output.shape)) for output in outputs]
        said = said_leak(case, net, inputs, gradients)
        value = functional(gradients)(outputs)
    ledger = lxt_fx.audit(explained, inputs, functional(gradients))

    scale = ledger.scale()
    terms = by_example([(o * c).abs() for o, c in zip(outputs, gradients, strict=True)])
    terms = torch.stack([terms, *(source.relevance.abs().flatten(1).sum(1) for source in ledger.sources)]).amax(0)
    if not bool((scale >= 1e-4 * terms).all()):
        return False
    # numbers that cancel to 0 leave a rounding of what they are made of
    limit = case.tolerance * scale + 1e-15 * by_example([c.abs() for c in gradients])

    torch.testing.assert_close(ledger.value, value, rtol=case.tolerance, atol=1e-12 * float(terms.max()))
    found = sum(source.amount for source in ledger.sources) + sum(entry.amount for entry in ledger.entries)
    assert ((ledger.value - found).abs() <= limit).all()
    assert (ledger.residual.abs() <= limit).all()
    assert ledger.faults(case.tolerance) == ()
    ledger.check(case.tolerance)

    entries = [entry for entry in ledger.entries if entry.place.node in nodes]
    causes = {entry.cause for entry in entries if bool((entry.amount.abs() > limit).any())}
    assert causes <= ALLOWED[case.rule.conserves]
    if said is not None:
        assert ((absorbed_at(ledger, nodes) - said).abs() <= limit).all(), (absorbed_at(ledger, nodes), said)
    if said is not None and case.cause is not None:
        cause, name = case.cause
        named = sum((e.amount for e in entries if e.cause is cause and e.name.endswith(name)), torch.zeros_like(said))
        assert ((named - said).abs() <= limit).all(), (named, said)
    return True


@pytest.mark.parametrize(
    "title", ["linear-linear", "attention-scaled_dot_product_attention-added_constant_mask", "select-clamp"]
)
def test_the_lines_of_the_dataframe_add_up_to_the_explained_values(title: str) -> None:
    pytest.importorskip("pandas")
    net, explained, nodes = explained_net(title)
    net.redraw(1)
    inputs = tuple(torch.linspace(-2, 3, torch.Size(s).numel()).reshape(s).double() for s in ALL_CASES[title].shapes)
    with torch.no_grad():
        gradients = [torch.linspace(1, 2, o.numel()).reshape(o.shape).double() for o in floats(net(*inputs))]
    ledger = lxt_fx.audit(explained, inputs, functional(gradients))
    frame = ledger.to_dataframe()
    assert set(frame["kind"]) == {"source", "leak"} and set(nodes) <= set(frame["node"])
    by_value = frame.groupby("example")["amount"].sum()
    assert by_value.tolist() == pytest.approx(ledger.value.tolist(), rel=1e-9)


@pytest.mark.parametrize("size", [1, 3])
def test_a_leaf_of_one_dimension_has_a_source(size: int) -> None:
    """[1], or as many numbers as there are examples."""
    a, b = torch.ones(3, size, dtype=torch.float64), torch.ones(size, dtype=torch.float64)
    explained = lxt_fx.transform(Net(ALL_CASES["matmul-matmul-vector"]).eval(), (a, b))
    ledger = lxt_fx.audit(explained, (a, b), lambda output: output)
    assert [source.amount.tolist() for source in ledger.sources] == [[size / 2] * 3] * 2
