"""Capture of `autograd.Function`s: those with a backward of their own become one node, others are traced into.

Whether a Function has a backward of its own is measured while the model runs on the example: is the gradient of its
forward, differentiated op by op, the one that its backward gives? Memory-saving activations pass this test and are traced,
so that their ops get rules. Straight-through rounding does not.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.torch_internals import function_base, pytree, version_of
from lxt_fx.ops.own_backward import HOLE, is_running, named_call, own_backward, own_backward_of_several
from lxt_fx.passes.capture.as_in_a_call import mark_result
from lxt_fx.passes.capture.example import SEED
from lxt_fx.passes.verify import gradient_difference

Function = type[torch.autograd.Function]
Apply = Callable[..., Any]

_SAME, _SAME_IN_HALF = 1e-2, 0.1
"""The largest difference of two gradients that are the same but for rounding."""

_OURS = ("torch", "lxt_fx")
"""Packages whose Functions are left alone: those of torch are its own plumbing (checkpoints, hooks)."""

_THREAD = threading.local()
_LOCK = threading.Lock()
_INSIDE: list[object] = []


@dataclass(slots=True)
class Functions:
    """The Functions with a backward of their own that models called, and whether they return several tensors. `asked` are
    all whose backward was measured, `unknown` those that were met in a capture before that."""

    own: dict[Function, bool] = field(default_factory=dict)
    asked: set[Function] = field(default_factory=set)
    unknown: set[Function] = field(default_factory=set)


@contextmanager
def own_backwards_found(functions: Functions | None = None) -> Iterator[Functions]:
    """Yields what fills while models run inside."""
    found = Functions() if functions is None else functions

    def look(function: Function, args: tuple[Any, ...], apply: Apply) -> Any:
        if function in found.own or is_running():
            return apply(*args)
        found.asked.add(function)
        own = has_own_backward(function, args, apply)
        result = apply(*args)
        if own and (several := _returns_several(result)) is not None:
            found.own[function] = several
        return result

    with _each_apply(look):
        yield found


@contextmanager
def own_backwards_as_ops(functions: Functions) -> Iterator[None]:
    """Inside, a call of one of these Functions is one op, `lxt_fx::own_backward`, which capture does not look into."""

    def as_op(function: Function, args: tuple[Any, ...], apply: Apply) -> Any:
        if function not in functions.asked and not is_running():
            functions.unknown.add(function)
        others = [a for a in args if not isinstance(a, Tensor)]
        known = function in functions.own and not is_running()
        if not known or any(isinstance(x, Tensor) for x in pytree.tree_leaves(others)):
            return apply(*args)
        tensors = [a for a in args if _is_traced(a)]
        name = named_call(function, tuple(HOLE if _is_traced(a) else _number(a) for a in args))
        if functions.own[function]:
            return tuple(own_backward_of_several(tensors, name))
        return own_backward(tensors, name)

    with _each_apply(as_op):
        yield


def _is_traced(argument: Any) -> bool:
    """Whether the argument is a tensor that graphs know. A tensor of a class of others (packed weights of a quantised
    layer, with more data as attributes) goes to the Function as it is, like any object."""
    return isinstance(argument, Tensor) and type(argument).__module__.split(".")[0] == "torch"


def _number(argument: Any) -> Any:
    """A size of an input, which the call of the Function fixes, as a number."""
    if isinstance(argument, torch.SymInt):
        return int(argument)
    if isinstance(argument, torch.SymFloat):
        return float(argument)
    return bool(argument) if isinstance(argument, torch.SymBool) else argument


def has_own_backward(function: Function, args: tuple[Any, ...], apply: Apply) -> bool:
    """Whether the Function's backward is another than the gradient of its forward, on these arguments.

    False where it has no backward that works, or writes into its arguments: those are traced, and the comparison of the
    gradients at the end of `transform` has the last word.
    """
    if not any(_is_float(a) for a in args):
        return False
    with torch.random.fork_rng(), gradients_on(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of kernels without a backward, which is what is asked
        try:
            own, asking = _vjp(apply, args)
        except Exception:  # the user's code may raise anything: the model's own call then does too, or needs no gradient
            return False
        try:
            traced, asking_too = _traced_vjp(function, args)
        except Exception:  # a forward that autograd cannot follow
            return True
    return not asking_too <= asking or any(not _same(a, b) for a, b in zip(own, traced, strict=True))


def _traced_vjp(function: Function, args: tuple[Any, ...]) -> tuple[list[Tensor], frozenset[int]]:
    """The same by the ops of the forward. One that writes into a value that its backward needs (a softmax whose masked
    weights are then set to 0) runs without in-place ops, as it will in the graph."""

    def forward(*given: Any) -> Any:
        return _forward(function, given)

    try:
        return _vjp(forward, args)
    except RuntimeError:
        return _vjp(torch.func.functionalize(forward), args)


def _same(own: Tensor, traced: Tensor) -> bool:
    limit = _SAME if own.dtype in (torch.float32, torch.float64) else _SAME_IN_HALF
    return gradient_difference(own, traced) <= limit


def _vjp(call: Apply, args: Sequence[Any]) -> tuple[list[Tensor], frozenset[int]]:
    """The gradients at the float arguments for a fixed random cotangent, and which outputs have a gradient."""
    leaves = [a.detach().clone().requires_grad_() if _is_float(a) else a for a in args]
    given = [a.clone() if _is_float(a) else a for a in leaves]
    before = [version_of(a) for a in given if isinstance(a, Tensor)]
    torch.manual_seed(SEED)
    outputs = [x for x in pytree.tree_leaves(call(*given)) if isinstance(x, Tensor)]
    if before != [version_of(a) for a in given if isinstance(a, Tensor)]:
        raise RuntimeError("it writes into its arguments")
    torch.manual_seed(SEED)
    seeds = [torch.randn_like(x) if _is_float(x) else None for x in outputs]
    asking = frozenset(index for index, x in enumerate(outputs) if x.requires_grad)
    inputs = [a for a in leaves if _is_float(a)]
    if not asking:
        return [torch.zeros_like(a) for a in inputs], asking
    pairs = [(outputs[index], seeds[index]) for index in sorted(asking)]
    values, cotangents = [x for x, _ in pairs], [seed for _, seed in pairs]
    return list(torch.autograd.grad(values, inputs, cotangents, allow_unused=True, materialize_grads=True)), asking


def _is_float(argument: Any) -> bool:
    return isinstance(argument, Tensor) and (argument.is_floating_point() or argument.is_complex())


def _forward(function: Function, args: tuple[Any, ...]) -> Any:
    """What the Function's forward computes, op by op."""
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*args)
    return function.forward(_Context(tuple(map(_is_float, args))), *args)


class _Context:
    """Takes what a forward stores for its backward."""

    def __init__(self, needs_input_grad: tuple[bool, ...]) -> None:
        self.needs_input_grad = needs_input_grad
        self.saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Tensor) -> None:
        pass

    def mark_dirty(self, *tensors: Tensor) -> None:
        raise RuntimeError("it writes into its arguments")

    def mark_non_differentiable(self, *tensors: Tensor) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


def _returns_several(result: Any) -> bool | None:
    """Whether a Function returned several tensors; None for what is no tensor."""
    if isinstance(result, Tensor):
        return False
    return True if isinstance(result, tuple) and all(isinstance(x, Tensor) for x in result) else None


@contextmanager
def _each_apply(handler: Callable[[Function, tuple[Any, ...], Apply], Any]) -> Iterator[None]:
    """Inside, and in this thread only, the handler answers each call of a Function; `apply` is the Function's own. Code may
    have stored `apply` long before (`round_ste = RoundSTE.apply`), so what changes is the class that all of them call."""
    base = function_base()

    def apply(cls: Function, *args: Any, **kwargs: Any) -> Any:
        own: Apply = super(base, cls).apply
        current = getattr(_THREAD, "handler", None)
        if current is None or kwargs or cls.__module__.split(".")[0] in _OURS:
            result = own(*args, **kwargs)
        else:
            result = current(cls, args, own)
        mark_result(args, result)
        return result

    outer = getattr(_THREAD, "handler", None)
    token = object()
    with _LOCK:
        if not _INSIDE:
            base.apply = classmethod(apply)
        _INSIDE.append(token)
    _THREAD.handler = handler
    try:
        yield
    finally:
        _THREAD.handler = outer
        with _LOCK:
            _INSIDE.remove(token)
            if not _INSIDE:
                del base.apply
