"""Which dimension of a value holds the tokens, and which operands of an op a selection of tokens applies to."""

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
    """The dim that holds the tokens. From one token to the next there are `inner` entries: 1, or k where each token has k
    experts in that dim. The tokens may be flattened together with the batch: [outer * tokens * inner]."""

    dim: int
    inner: Any = sympy.Integer(1)


@dataclass(frozen=True, slots=True)
class Move:
    """How an op computes its output at some positions only. `operands` are needed at these positions only, by name
    (`tensors[1]` in a list) with the axis of each; other operands are read in full. `arguments` are arguments that change
    (`size` of a view), `op` is the op that replaces it, if any."""

    operands: Mapping[str, Axis]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    op: Any = None


@dataclass(frozen=True, slots=True)
class Selection:
    """How many tokens a text has (an expression of sizes), and how many of them are selected."""

    tokens: Any
    count: int


def expression(size: Any) -> Any:
    """A number or symbolic size as a sympy expression, which can be compared without adding a guard."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.sympify(size)


def is_one(size: Any) -> bool:
    """Whether the size is 1 for every input."""
    return bool(expression(size) == 1)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are the same for every input."""
    return bool(expression(a) == expression(b))


def quotient(a: Any, b: Any) -> Any:
    """a / b, or None where that is not a whole number for every input."""
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
