"""The matcher by itself: what a pattern binds, in which orders, through which ops, and what a mismatch says."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from lxt_fx.base.pattern import Found, Mismatch, Op, Part, any_of, exactly, match, match_alone, number, through

aten = torch.ops.aten

rsqrt, mean, cast, detach = Op(aten.rsqrt.default), Op(aten.mean.dim), Op(aten._to_copy.default), Op(aten.detach.default)
silu, gelu, tanh, cat, amax = (
    Op(op) for op in (aten.silu.default, aten.gelu.default, aten.tanh.default, aten.cat.default, aten.amax.default)
)


def traced(function: Callable[..., Tensor], *shapes: tuple[int, ...]) -> tuple[Node, list[Node]]:
    """The node of a function's value, and those of its inputs (two by default)."""
    examples = [torch.ones(shape) for shape in shapes or ((2, 3, 4), (2, 3, 4))]
    graph = make_fx(function, tracing_mode="fake")(*examples).graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    root = output.args[0]
    assert isinstance(root, Node)
    return root, [node for node in graph.nodes if node.op == "placeholder"]


def found(pattern: Callable[..., Part], root: Node, **checks: Any) -> Found:
    reading = match(pattern, root, **checks)
    assert isinstance(reading, Found), str(reading)
    return reading


def refusal(pattern: Callable[..., Part], root: Node, **checks: Any) -> str:
    reading = match(pattern, root, **checks)
    assert isinstance(reading, Mismatch), reading
    return str(reading)


def rms_norm(x: Part, dims: Part, eps: Part) -> Part:
    return x * rsqrt(mean(x**2, dims, keepdim=True) + eps)


def _statistic(x: Tensor, eps: Any = 1e-6) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def test_variables_are_nodes_literals_and_lists_and_the_root_stands_first() -> None:
    root, (x, _) = traced(lambda x, y: x * _statistic(x))
    reading = found(rms_norm, root, eps=number)
    assert (reading["x"], reading["dims"], reading["eps"]) == (x, [-1], 1e-6)
    assert reading.nodes[0] is root
    assert sorted(node.name for node in reading.nodes) == ["add", "mean", "mul", "pow_1", "rsqrt"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x, e: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + e),
        lambda x, e: torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + e) * x,
        lambda x, e: torch.rsqrt(e + x.pow(2).mean(-1, keepdim=True)) * x,
    ],
)
def test_sums_and_products_match_in_either_order(function: Callable[..., Tensor]) -> None:
    root, (x, e) = traced(function)
    reading = found(rms_norm, root)
    assert reading["x"] is x and reading["eps"] is e


@pytest.mark.parametrize("op", [operator.sub, operator.truediv])
def test_differences_and_quotients_have_one_order(op: Callable[..., Any]) -> None:
    def pattern(x: Part, y: Part) -> Part:
        half: Part = op(x, tanh(y))
        return half

    assert isinstance(match(pattern, traced(lambda x, y: op(x, y.tanh()))[0]), Found)
    root, _ = traced(lambda x, y: op(y.tanh(), x))
    assert refusal(pattern, root) == f"%{root.name} other: expected aten.tanh.default, found %x_1"


def test_a_check_decides_which_of_two_operands_a_variable_is() -> None:
    def scaled(x: Part, factor: Part) -> Part:
        return x * factor

    root, (x, y) = traced(lambda x, y: x * y)
    assert found(scaled, root)["x"] is x
    assert found(scaled, root, x=exactly(y))["factor"] is x
    assert refusal(scaled, root, x=number) == "%mul self: expected a number for x, found %x_1"


REFUSALS = {
    "another op": (lambda x, y: x * (x.pow(2).mean(-1, keepdim=True) + 1).sqrt(),
                   "%mul other: expected aten.rsqrt.default, found %sqrt = aten.sqrt.default"),
    "another op at the root": (lambda x, y: x + _statistic(x),
                               "%add_1: expected aten.mul.Tensor, found %add_1 = aten.add.Tensor"),
    "another literal": (lambda x, y: x * torch.rsqrt(x.pow(3).mean(-1, keepdim=True) + 1e-6),
                        "%pow_1 exponent: expected 2, found 3"),
    "another value under one name": (lambda x, y: x * _statistic(y), "%pow_1 self: expected %x_1 for x, found %y_1"),
    "not its default": (lambda x, y: x * torch.rsqrt(torch.add(x.pow(2).mean(-1, keepdim=True), 1e-6, alpha=2)),
                        "%add alpha: expected 1, found 2"),
    "a default where the pattern has another": (lambda x, y: x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6)[..., None],
                                                "%mul other: expected aten.rsqrt.default, "
                                                "found %unsqueeze = aten.unsqueeze.default"),
    "no number": (lambda x, y: x * _statistic(x, y), "%add other: expected a number for eps, found %y_1"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mismatch_names_the_part_that_is_missing_and_what_is_there(case: str) -> None:
    function, text = REFUSALS[case]
    assert refusal(rms_norm, traced(function)[0], eps=number) == text


def _gated_by(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x, y: y * activation(x)


def test_a_mismatch_names_each_alternative() -> None:
    def gated(a: Part, b: Part, approximate: Part) -> Part:
        return any_of(silu(a), gelu(a, approximate=approximate)) * b

    for activation, kind in ((torch.nn.functional.silu, None), (torch.nn.functional.gelu, "none")):
        root, (x, y) = traced(_gated_by(activation))
        reading = found(gated, root)
        assert (reading["a"], reading["b"], reading.values.get("approximate")) == (x, y, kind)
    root, _ = traced(lambda x, y: x.tanh() * y)
    assert refusal(gated, root) == (
        "%mul self: expected aten.silu.default or aten.gelu.default, found %tanh = aten.tanh.default"
    )


def test_copies_are_looked_through_where_the_pattern_says_so() -> None:
    def plainly(x: Part) -> Part:
        return tanh(x)

    def behind_copies(x: Part) -> Part:
        return through({aten.detach.default, aten._to_copy.default}, tanh(x))

    def of_a_copy(x: Part) -> Part:
        return tanh(through({aten.detach.default}, silu(x)))

    twice, (x, _) = traced(lambda x, y: x.tanh().detach().double())
    assert twice.target is aten._to_copy.default
    assert found(behind_copies, twice)["x"] is x and len(found(behind_copies, twice).nodes) == 3
    assert found(behind_copies, traced(lambda x, y: x.tanh())[0]).nodes[0].target is aten.tanh.default
    assert refusal(plainly, twice) == "%_to_copy: expected aten.tanh.default, found %_to_copy = aten._to_copy.default"
    assert refusal(behind_copies, traced(lambda x, y: x.tanh().neg().double())[0]).endswith("found %neg = aten.neg.default")
    assert isinstance(match(of_a_copy, traced(lambda x, y: torch.nn.functional.silu(x).detach().tanh())[0]), Found)
    assert isinstance(match(of_a_copy, traced(lambda x, y: torch.nn.functional.silu(x).neg().tanh())[0]), Mismatch)


def test_a_reader_outside_of_the_pattern_is_refused_by_match_alone_only() -> None:
    def product(x: Part, y: Part) -> Part:
        return tanh(x) * y

    def both(x: Tensor, y: Tensor) -> Tensor:
        inner = x.tanh()
        return (inner * y).neg() + inner.exp()

    total, (x, _) = traced(both)
    root = next(node for node in total.graph.nodes if node.target is aten.mul.Tensor)
    assert found(product, root)["x"] is x
    assert str(match_alone(product, root)) == (
        "%tanh reader: expected none outside of the pattern, found %exp = aten.exp.default"
    )
    alone, _ = traced(lambda x, y: (x.tanh() * y).neg() + y.exp())
    assert isinstance(match_alone(product, next(n for n in alone.graph.nodes if n.target is aten.mul.Tensor)), Found)


def test_match_alone_takes_the_reading_that_nothing_else_reads() -> None:
    """A copy that has other readers is no part of it: it is the variable."""

    def cast_or_not(x: Part) -> Part:
        return tanh(any_of(cast(x, dtype=torch.float64), x))

    def shared(x: Tensor, y: Tensor) -> Tensor:
        wide = x.double()
        return wide.tanh() + wide

    total, (x, _) = traced(shared)
    root = total.args[0]
    assert isinstance(root, Node)
    assert found(cast_or_not, root)["x"] is x
    alone = match_alone(cast_or_not, root)
    assert isinstance(alone, Found) and alone["x"] is root.args[0]


def _largest(dim: int) -> Callable[..., Tensor]:
    return lambda x, y: x.amax(dim, keepdim=True)


def _joined(dim: int) -> Callable[..., Tensor]:
    return lambda x, y: torch.cat([x, y], dim)


def test_dims_count_from_the_end_where_their_number_stays() -> None:
    def largest(x: Part, dim: Part) -> Part:
        return amax(x, [dim], keepdim=True)

    def joined(x: Part, y: Part) -> Part:
        return cat([x, y], -1)

    for dim in (-1, 2):
        assert found(largest, traced(_largest(dim))[0])["dim"] == -1
        assert isinstance(match(joined, traced(_joined(dim))[0]), Found)
    assert refusal(joined, traced(lambda x, y: torch.cat([x, y], 0))[0]) == "%cat dim: expected -1, found -3"
    longer = traced(lambda x, y: torch.cat([x, y, x], -1))[0]
    assert refusal(joined, longer) == "%cat tensors: expected [x, y], found [%x_1, %y_1, %x_1]"

    def column(x: Part) -> Part:
        return Op(aten.unsqueeze.default)(x, -1)

    assert isinstance(match(column, traced(lambda x, y: x.unsqueeze(-1))[0]), Found)
    assert refusal(column, traced(lambda x, y: x.unsqueeze(2))[0]) == "%unsqueeze dim: expected -1, found 2"


def test_items_of_lists_and_of_tuples_are_parts_too() -> None:
    def swapped(x: Part) -> Part:
        return cat([-x, tanh(x)])

    def first(x: Part) -> Part:
        return Op(operator.getitem)(Op(aten.max.dim)(x, -1, keepdim=True), 0)

    assert isinstance(match(swapped, traced(lambda x, y: torch.cat([-x, x.tanh()]))[0]), Found)
    root, _ = traced(lambda x, y: torch.cat([-x, y.tanh()]))
    assert refusal(swapped, root) == "%tanh self: expected %x_1 for x, found %y_1"
    root, _ = traced(lambda x, y: torch.cat([x, x.tanh()]))
    assert refusal(swapped, root) == "%cat tensors[0]: expected aten.neg.default, found %x_1"
    assert isinstance(match(first, traced(lambda x, y: x.max(2, keepdim=True).values)[0]), Found)
    root, _ = traced(lambda x, y: x.max(2, keepdim=True).indices)
    assert refusal(first, root) == f"%{root.name} arg1: expected 0, found 1"


def test_what_a_pattern_cannot_mean_is_an_error_of_its_author() -> None:
    root, _ = traced(lambda x, y: x * y)
    with pytest.raises(AssertionError, match="has the variables"):
        match(rms_norm, root, epsilon=number)
    with pytest.raises(AssertionError, match="has the arguments"):
        tanh(1, 2)
    with pytest.raises(AssertionError, match="has the arguments"):
        mean(1, dims=[2])
