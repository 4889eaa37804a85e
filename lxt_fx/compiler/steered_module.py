"""The blocks of `steer` that a module is in: what a call runs instead of the graph that fits it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Self

from torch import nn
from torch.fx import Graph

from lxt_fx.base.errors import CallError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.compiler.observed_module import ObservedModule

Steering = Callable[[Any], Any]
"""Makes the module with changes for the graph that a call runs, or gives the one that it made before."""

STEERING: ContextVar[tuple[tuple[object, Steering], ...]] = ContextVar("STEERING", default=())
"""The modules that this thread (or coroutine) steers, the outermost block first."""


@contextmanager
def unsteered() -> Iterator[None]:
    """Calls of this thread inside the block run no changes of `steer`: what they compute is to outlast those."""
    before = STEERING.set(())
    try:
        yield
    finally:
        STEERING.reset(before)


class SteeredModule(ObservedModule):
    """A module that runs changed inside of blocks."""

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str) -> None:
        super().__init__(root, graph, class_name)
        self._steers: dict[object, None] = {}  # open blocks of `steer`, in any thread
        self._first: weakref.ref[Self] | None = None  # the module of which this is a further graph for other calls

    @contextmanager
    def _steered_by(self, steering: Callable[[Self], Self]) -> Iterator[None]:
        """Calls of this thread inside the `with` block run what `steering` makes of the graph that fits them."""
        block, outer = object(), STEERING.get()
        self._steers[block] = None
        STEERING.set((*outer, (self, steering)))
        try:
            yield
        finally:
            STEERING.set(tuple(each for each in STEERING.get() if each[1] is not steering))
            del self._steers[block]

    def _as_steered(self, fitting: Self) -> Self:
        """The graph that fits a call, with the changes of the blocks of `steer` that this thread is in. Raises CallError
        where code is compiled, which would run changed after the block."""
        first = self if self._first is None else self._first() or self
        if not first._steers:
            return fitting
        if is_compiling():
            raise CallError(
                f"{self.record.model_class}: the module is steered, and a compiled call would stay so after the block; "
                "call the explained module itself, not what torch.compile made of it"
            )
        for module, steering in STEERING.get():
            if module is first:
                fitting = steering(fitting)
        return fitting

    def _refuse_steering(self, function: str) -> None:
        """Raises CallError, in the name of a function that makes of this module what outlasts a call, inside a block of
        `steer`."""
        if any(module is self for module, _ in STEERING.get()):
            raise CallError(
                f"{function}: the module is steered, and what {function} makes of it would stay so after the block; call "
                f"{function} before the block, or after it"
            )
