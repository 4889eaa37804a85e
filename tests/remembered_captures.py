"""Captures that calls share: a model that `transform`, `explain` or another function is asked about again, with the same
example and in the same state, is captured once.

Every such function captures anew, which is nine tenths of what it costs. Tests that ask one model many things are marked
`pytest.mark.usefixtures("remembered_captures")` (conftest.py). Inside, `captured_on` gives a copy of the graph that it
captured before, as `shared_captures.explained` does; test_shared_captures.py proves that the module made of a copy is the
one that `transform` makes. Whatever could make another graph is compared: the inputs by value, the settings of the call,
the values of parameters and buffers, and all that `ModelState` compares before each call of an explained module.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lxt_fx.compiler import captures
from lxt_fx.compiler.captured_model import CapturedModel, copied
from lxt_fx.passes.capture.example import Example

LAST = 6
"""How many captures are remembered."""


@contextmanager
def remembered_captures() -> Iterator[None]:
    """Inside the block, `captured_on` remembers what it captured last."""
    with mock.patch.object(captures, "captured_on", _remembering(captures.captured_on)):
        yield


def _remembering(capture: Callable[..., CapturedModel]) -> Callable[..., CapturedModel]:
    made: deque[tuple[Any, Example, CapturedModel]] = deque(maxlen=LAST)

    def captured_on(model: nn.Module, example: Example, *, dynamic: bool) -> CapturedModel:
        state = _state(model, dynamic)
        for was, given, source in made:
            seen = source.state._seen if source.state is not None else None
            if source.model is model and was == state and seen is not None and seen.is_same() and _same(given, example):
                return copied(source)
        source = capture(model, example, dynamic=dynamic)
        made.append((_state(model, dynamic), example, source))
        return copied(source)

    return captured_on


def _state(model: nn.Module, dynamic: bool) -> list[Any]:
    """What a graph depends on beside the example, and `ModelState` does not compare."""
    config: Any = getattr(model, "config", None)
    tensors = [(x.data_ptr(), x._version, x.requires_grad) for x in chain(model.parameters(), model.buffers())]
    modes = [module.training for module in model.modules()]
    settings = [config.to_dict(), config._attn_implementation] if hasattr(config, "to_dict") else config
    return [dynamic, torch.get_default_dtype(), torch.is_grad_enabled(), settings, tensors, modes]


def _same(one: Example, other: Example) -> bool:
    """Whether the examples are equal: each tensor in dtype, layout and all values."""
    (leaves, spec), (others, other_spec) = pytree.tree_flatten(one.kwargs), pytree.tree_flatten(other.kwargs)
    settings = [(x.constants, x.optional, x.dynamic_dims, x.made, x.positional, x.order) for x in (one, other)]
    if spec != other_spec or settings[0] != settings[1] or len(one.instead) != len(other.instead):
        return False
    return all(map(_equal, leaves, others)) and all(map(_same, one.instead, other.instead))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return type(one) is type(other) and bool(one == other)
    kinds = [(x.dtype, x.device, x.shape, x.stride(), x.requires_grad) for x in (one, other)]
    return kinds[0] == kinds[1] and torch.equal(one, other)
