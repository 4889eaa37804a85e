"""One call of a node with its values, as the ledger reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.base.torch_internals import pytree, schema_of
from lxt_fx.ledger.causes import Cause
from lxt_fx.rule_table.rule import Rule

CHUNK = 1 << 20
"""How many numbers are converted to float64 at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """One call of a node: its arguments as values, where they come from, and its output.

    `values` has the value of each node that is read; `carrying` the nodes through which relevance leaves; `origin` says
    where the value of another node comes from.
    """

    node: Node
    rule: Rule | None
    values: Mapping[Node, Any]
    carrying: frozenset[Node]
    output: Any
    origin: Callable[[Node], tuple[Cause, str]]

    def argument(self, name: str, default: Any = None) -> Any:
        """The value of an argument by its schema name."""
        found = self._by_name().get(name, default)
        return self.values.get(found, found) if isinstance(found, Node) else found

    def arguments(self) -> dict[str, Any]:
        """The values of all arguments by their schema names."""
        return {name: torch.fx.map_arg(found, lambda node: self.values[node]) for name, found in self._by_name().items()}

    def carries(self, name: str) -> bool:
        """Whether the node in that argument carries relevance."""
        return self._by_name().get(name) in self.carrying

    def _by_name(self) -> dict[str, Any]:
        names = [argument.name for argument in schema_of(self.node.target).arguments]
        return dict(zip(names, self.node.args, strict=False)) | dict(self.node.kwargs)

    def run(self, present: Callable[[Node], bool]) -> Any:
        """The op's value with the float tensors of all other nodes than `present` set to zero."""

        def zero(tensor: Tensor) -> Tensor:
            return torch.zeros_like(tensor) if tensor.is_floating_point() or tensor.is_complex() else tensor

        def value(node: Node) -> Any:
            found = self.values.get(node)
            return found if present(node) else pytree.tree_map_only(Tensor, zero, found)

        op: Any = self.node.target
        with torch.no_grad():
            return op(*torch.fx.map_arg(self.node.args, value), **torch.fx.map_arg(self.node.kwargs, value))


def inner(value: Tensor, gradient: Tensor) -> Tensor:
    """<value, gradient> in float64; a mask's number counts as 0. Complex: as pairs of reals."""
    if value.is_complex():
        value, gradient = torch.view_as_real(value.resolve_conj()), torch.view_as_real(gradient.resolve_conj())
    limit = no_number(value.dtype)
    parts = zip(torch.split(value.reshape(-1), CHUNK), torch.split(gradient.reshape(-1), CHUNK), strict=True)
    return torch.stack([_dot(a.double(), g.double(), limit) for a, g in parts]).sum()


def _dot(value: Tensor, gradient: Tensor, limit: float) -> Tensor:
    if value.numel() and value.min() <= limit:
        value = value.masked_fill(value <= limit, 0)
    total = torch.dot(value, gradient)
    return total if total.isfinite() else torch.where(gradient == 0, 0, value * gradient).sum()


def no_number(dtype: torch.dtype) -> float:
    """A value up to this stands for -inf in any tensor; for scores the limit is higher (`mask_limit`)."""
    return -6e4 if dtype is torch.float16 else -1e30
