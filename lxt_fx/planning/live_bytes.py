"""How many bytes are alive while ops run, on tensors with or without values."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from lxt_fx.base.torch_internals import TorchDispatchMode, pytree


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside the block, counts the bytes of storages that ops make and that are alive: `now`, and `peak`. What exists
    before is `given`, and does not count. Workspaces inside a kernel are not seen."""

    def __init__(self, given: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}
        for tensor in given:
            self._note(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for each in pytree.tree_leaves(made):
            if isinstance(each, Tensor) and not each.is_meta:
                self._note(each, each.untyped_storage().nbytes())
        return made

    def _note(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self.now -= size

        self._known[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)

    def from_here(self) -> None:
        """Starts the peak again."""
        self.peak = self.now
