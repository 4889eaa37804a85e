"""The ops of an `autograd.Function` with a backward of its own: the Function is one node of the graph.

Capture traces what a forward computes. Of a Function whose backward is another thing than the gradient of its forward
(straight-through rounding, a gradient that is scaled or reversed, a kernel for quantised weights) it would lose that
backward. So the node calls the Function: forward and backward are those of the user's class.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import CallError
from lxt_fx.ops.library import define


class _Hole:
    """Where a tensor goes among the arguments of a call."""

    def __repr__(self) -> str:
        return "_"


HOLE = _Hole()


@dataclass(frozen=True, slots=True, eq=False)
class OwnFunction:
    """A Function of the user, and the arguments of a call: those that are tensors are holes."""

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]

    def is_call_of(self, function: type[torch.autograd.Function], arguments: tuple[Any, ...]) -> bool:
        """Whether a call with these arguments is the same but for its tensors. Objects other than plain values are the same
        only if they are identical."""
        if self.function is not function or len(self.arguments) != len(arguments):
            return False
        pairs = zip(self.arguments, arguments, strict=True)
        return all(a is b or (_is_plain(a) and type(a) is type(b) and a == b) for a, b in pairs)

    def __call__(self, tensors: list[Tensor]) -> Any:
        given = iter(tensors)
        apply: Callable[..., Any] = self.function.apply
        return apply(*(next(given) if a is HOLE else a for a in self.arguments))


def _is_plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(map(_is_plain, (*value, *value.values())))
    return value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device))


_LONGEST = 40
"""Characters of an argument in the name of a call."""

_CALLS: dict[str, OwnFunction] = {}
"""By name, which a graph holds as an argument. Only the process that captured a model knows them: a file holds no code."""

_LOCK = threading.Lock()
_THREAD = threading.local()


def named_call(function: type[torch.autograd.Function], arguments: tuple[Any, ...]) -> str:
    """The name under which the ops below find this call: `RoundSTE(_, 0.05)`. Another class or other arguments that read
    the same get a number behind it."""
    written = ", ".join(map(_written, arguments))
    name = first = f"{function.__qualname__.rsplit('.', 1)[-1]}({written})"
    with _LOCK:
        number = 1
        while name in _CALLS and not _CALLS[name].is_call_of(function, arguments):
            number += 1
            name = f"{first} #{number}"
        _CALLS.setdefault(name, OwnFunction(function, arguments))
    return name


def _written(argument: Any) -> str:
    text = repr(argument) if argument is HOLE or _is_plain(argument) else type(argument).__name__
    return text if len(text) <= _LONGEST else type(argument).__name__


def is_running() -> bool:
    """Whether an op that is one node of a graph is calling its Function in this thread."""
    return bool(getattr(_THREAD, "running", False))


@contextmanager
def running() -> Iterator[None]:
    """Inside, in this thread, calls of Functions belong to an op that is one node of a graph."""
    outer, _THREAD.running = is_running(), True
    try:
        yield
    finally:
        _THREAD.running = outer


def _run(tensors: list[Tensor], function: str) -> Any:
    called = _CALLS.get(function)
    if called is None:
        raise CallError(
            f"this graph calls {function}, an autograd.Function of the process that captured the model; transform the "
            "model again in this one"
        )
    with running():
        return called(tensors)


@define("own_backward(Tensor[] tensors, str function) -> Tensor")
def own_backward(tensors: list[Tensor], function: str) -> Tensor:
    """The value of the Function with its own backward. Relevance is x times the gradient that its backward gives."""
    found: Tensor = _run(tensors, function)
    return found


@define("own_backward_of_several(Tensor[] tensors, str function) -> Tensor[]")
def own_backward_of_several(tensors: list[Tensor], function: str) -> list[Tensor]:
    """The same for a Function that returns several tensors."""
    found: list[Tensor] = list(_run(tensors, function))
    return found


OWN_BACKWARD = frozenset({own_backward, own_backward_of_several})
