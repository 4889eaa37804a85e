"""Who sees the calls of a module: the blocks of `watch`, and the hooks on its submodules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, Self

from torch import nn
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.errors import CallError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.compiler.fused_module import FusedModule
from lxt_fx.compiler.hooks import HookFlag, HookRunner, hooked_now, make_hookable
from lxt_fx.compiler.own_hooks import own_hooks
from lxt_fx.passes.fuse.dtypes import DtypesMatched


class Observer(Protocol):
    """Sees every node while a graph runs node by node."""

    def before(self, node: Node) -> None:
        """Called before the node runs."""

    def after(self, node: Node, result: Any) -> None:
        """Called with the value of the node."""


class Observed(DtypesMatched):
    """Runs a graph node by node and shows every node to the observers."""

    def __init__(self, module: GraphModule, observers: list[Observer]) -> None:
        super().__init__(module)
        self.observers = observers

    def run_node(self, n: Node) -> Any:
        for observer in self.observers:
            observer.before(n)
        result = super().run_node(n)
        for observer in self.observers:
            observer.after(n, result)
        return result


Observing = Callable[[Any], Observer]
"""Makes the observer for the graph that a call runs."""

_OBSERVING: ContextVar[tuple[tuple[object, Observing], ...]] = ContextVar("_OBSERVING", default=())
"""The modules that this thread (or coroutine) watches, each with the one that sees its calls."""


class ObservedModule(FusedModule):
    """A module whose calls run node by node where somebody looks."""

    def __init__(self, root: nn.Module | dict[str, Any], graph: Graph, class_name: str) -> None:
        super().__init__(root, graph, class_name)
        self._watches: dict[object, None] = {}  # open blocks of `watch`, in any thread
        self._hook_flag, self.own_hook_flag = HookFlag(), HookFlag()
        make_hookable(self, self._hook_flag)

    def _observers_of(self, fitting: Self) -> list[Observer]:
        """The observers of this call: those of `watch`, and the hooks on submodules. Raises CallError if a hook cannot
        run."""
        watches = () if is_compiling() else _OBSERVING.get()
        observers = [observing(fitting) for module, observing in watches if module is self]
        if places := hooked_now(self, self._hook_flag):
            if is_compiling():
                raise CallError(
                    f"{next(iter(places))} has a hook, which needs a call node by node, and a compiled module has none; "
                    "remove the hook, or do not compile"
                )
            observers.append(HookRunner(fitting._values(), places))
        return observers

    def _refuse_hooks(self, function: str) -> None:
        """Raises CallError, in the name of a function that runs the graph in its own way, if the module or submodules have
        hooks."""
        hooked = [*hooked_now(self, self._hook_flag), *(["the module itself"] if own_hooks(self) else [])]
        if hooked:
            raise CallError(
                f"{function}: {hooked[0]} has a hook, and {function} does not call the module, so no hook would "
                "run; remove the hook, or call the explained module itself"
            )

    @contextmanager
    def _observed_by(self, observing: Callable[[Self], Observer]) -> Iterator[None]:
        """Calls of this thread inside the `with` block run node by node, with this observer."""
        block, outer = object(), _OBSERVING.get()
        self._watches[block] = None
        _OBSERVING.set((*outer, (self, observing)))
        try:
            yield
        finally:
            _OBSERVING.set(tuple(each for each in _OBSERVING.get() if each[1] is not observing))
            del self._watches[block]
