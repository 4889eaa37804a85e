"""Where the tokens lie in a value, and what a selection of some of them asks of the operands of an op."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch.fx import Node

from lxt_fx.base.nodes import shape, value


@dataclass(frozen=True, slots=True)
class Axis:
    """The dim that holds the tokens. A step from one token to the next is `inner` entries: 1, but k where each token has k
    experts in that dim. Before the tokens there may be other things (the rows of a batch): [outer * tokens * inner]."""

    dim: int
    inner: Any = sympy.Integer(1)


@dataclass(frozen=True, slots=True)
class Move:
    """How an op gives its output at some positions only: the operands (by name, `tensors[1]` in a list) that are asked for
    at these positions only and the axis of each, arguments that must be others (`size` of a view), and the op in its place
    where it must be another. Operands that are not named are read in full."""

    operands: Mapping[str, Axis]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    op: Any = None


@dataclass(frozen=True, slots=True)
class Selection:
    """How many tokens a row has (as an expression of sizes), and how many of them are selected."""

    tokens: Any
    count: int


def expression(size: Any) -> Any:
    """A size (a number, or a symbolic one) as a sympy expression, which can be compared without a guard on it."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.sympify(size)


def is_one(size: Any) -> bool:
    """Whether the size is 1 for every input."""
    return bool(expression(size) == 1)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same for every input."""
    return bool(expression(a) == expression(b))


def quotient(a: Any, b: Any) -> Any:
    """a / b, or None where that is no whole number for every input."""
    if b == 0:
        return None
    found = sympy.cancel(a / b)
    return found if sympy.denom(found) == 1 else None


def product(sizes: Any) -> Any:
    """The product of sizes, as an expression."""
    return sympy.Mul(*map(expression, sizes))


def item_shape(node: Node) -> tuple[Any, ...] | None:
    """The shape of a value; of a tuple, that of its first item."""
    found = value(node)
    if isinstance(found, (list, tuple)):
        return tuple(found[0].shape) if found and isinstance(found[0], torch.Tensor) else None
    return shape(node)
