"""While `transform` runs or captures a model, its code is told what it is told in a call that relevance is read from: the
values that come from float inputs and from token lookups ask for a gradient.

Code asks: bitsandbytes' 4-bit layers take a kernel with a backward only if `x.requires_grad`, and else, on some processors,
write their weights anew in a form that has none. The inputs of a capture ask for no gradient (a model that writes into its
inputs could not run on leaves that do), and the tables of a frozen model do not either.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from lxt_fx.base.torch_internals import pytree

_READS_FLAG = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_CUTS = (Tensor.detach, torch.detach, Tensor.data.__get__)  # type: ignore[attr-defined]
_OF_GRADIENTS = (Tensor.register_hook, Tensor.retain_grad)
"""What code does only to a tensor that asks for a gradient, and what has no effect on a forward."""


_NO_TENSORS = (int, float, complex, str, type(None), torch.SymInt, torch.SymFloat, torch.SymBool, torch.dtype, torch.device)
"""Arguments of functions that are no tensors and contain none."""


class _NoHook:
    """The handle of a hook on a gradient that is not computed."""

    def remove(self) -> None:
        """Nothing to remove."""


class _Answers(TorchFunctionMode):
    """Answers `x.requires_grad` for values that would ask for a gradient in a call."""

    def __init__(self) -> None:
        super().__init__()
        self.asking = WeakTensorKeyDictionary()
        self.off = not torch.is_grad_enabled()  # for the whole run, and not only in a part of the model

    @property
    def is_on(self) -> bool:
        """Whether a call has gradients on here."""
        return self.off or torch.is_grad_enabled()

    def mark(self, made: Any) -> None:
        """These float tensors ask for a gradient, unless the model has switched gradients off."""
        if self.is_on:
            for tensor in _floats(made):
                self.asking[tensor] = True

    def asks(self, given: Any) -> bool:
        """Whether one of these tensors does, as the parameters of a model that is not frozen do."""
        return any(tensor in self.asking or isinstance(tensor, nn.Parameter) for tensor in _floats(given))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in _OF_GRADIENTS and not args[0].requires_grad and args[0] in self.asking:
            return _NoHook() if func is Tensor.register_hook else None
        result = func(*args, **(kwargs or {}))
        if func == _READS_FLAG:
            return result or args[0] in self.asking
        if self.is_on and func not in _CUTS and self.asks((args, kwargs)):
            self.mark(args[0] if func is Tensor.__setitem__ else result)
        return result


def _floats(values: Any) -> Iterator[Tensor]:
    """The float tensors in what a function is given or makes. It runs for every op of a model, so what most arguments are
    is not left to pytree."""
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex():
            yield values
    elif type(values) in (tuple, list, dict):
        for value in values.values() if type(values) is dict else values:
            yield from _floats(value)
    elif not isinstance(values, _NO_TENSORS):
        leaves, spec = pytree.tree_flatten(values)
        if not spec.is_leaf():
            yield from _floats(leaves)


class _Current(threading.local):
    answers: _Answers | None = None


_CURRENT = _Current()


@contextmanager
def as_in_a_call(model: nn.Module) -> Iterator[None]:
    """Inside the block, in this thread, `x.requires_grad` is what it is in a call whose inputs ask for a gradient."""
    answers, outer, thread = _Answers(), _CURRENT.answers, threading.get_ident()
    running = ExitStack()  # only the model's own calls are answered: around them, torch.export reads all that tensors say

    def begin(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if threading.get_ident() == thread:
            answers.mark((args, {name: value for name, value in kwargs.items() if "mask" not in name}))
            running.enter_context(answers)

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if threading.get_ident() == thread:
            running.close()

    hooks = model.register_forward_pre_hook(begin, with_kwargs=True), model.register_forward_hook(end, always_call=True)
    _CURRENT.answers = answers
    try:
        yield
    finally:
        _CURRENT.answers = outer
        for hook in hooks:
            hook.remove()


def mark_result(given: Any, made: Any) -> None:
    """What an `autograd.Function` makes of values that ask for a gradient asks for one: its forward runs with gradients
    off."""
    if (answers := _CURRENT.answers) is not None and answers.asks(given):
        answers.mark(made)
