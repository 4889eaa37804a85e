"""A call of a model in which the tables that tokens are looked up in are others, of the same shape."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

LOOKUPS = {
    torch.nn.functional.embedding, torch.embedding, Tensor.__getitem__, torch.index_select, Tensor.index_select,
    torch.gather, Tensor.gather, torch.nn.functional.embedding_bag,
}  # fmt: skip


class Tables(TorchFunctionMode):
    """Inside, what is looked up in one of these tables is looked up in a copy of it, whose gradient is that of the lookups
    alone: a head may have the same weight, and `others` (token types) may be looked up in it too."""

    def __init__(self, tables: Iterable[Tensor], others: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.given = list(tables)
        self.tables = {id(table): table for table in self.given}
        self.others = list(others)
        self.leaves: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in LOOKUPS and not any(_equal(arg, other) for arg in args for other in self.others):
            args = [self._leaf(arg) if id(arg) in self.tables else arg for arg in args]
        return func(*args, **(kwargs or {}))

    def _leaf(self, table: Tensor) -> Tensor:
        if id(table) not in self.leaves:
            self.leaves[id(table)] = table.detach().clone().requires_grad_(True)
        return self.leaves[id(table)]


def _equal(given: Any, other: Tensor) -> bool:
    return isinstance(given, Tensor) and given.shape == other.shape and torch.equal(given, other)
