"""Recurrences of torch (`torch.lstm`, `gru`, `rnn_tanh`, `rnn_relu`) in an export whose number of steps is free.

torch.export finds the shape of their results by running them step by step, which fixes the number of steps to that of the
example. Inside `recurrences_of_any_length` each call becomes an op that only states its shapes; `as_torch_ops` puts torch's
own op back into the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.library import Library, register_fake
from torch.overrides import TorchFunctionMode

from lxt_fx.base.torch_internals import OpOverload, aten, base_name, schema_of

_LIBRARY = Library("lxt_fx_capture", "DEF")  # type: ignore[no-untyped-call]


def _of_any_length(op: OpOverload) -> OpOverload:
    """An op with the schema and the value of torch's that does not run to find its shapes."""
    name = base_name(op)
    _LIBRARY.define(f"{name}({str(schema_of(op)).split('(', 1)[1]}")  # type: ignore[no-untyped-call]
    _LIBRARY.impl(name, op, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    register_fake(f"lxt_fx_capture::{name}", _shapes, lib=_LIBRARY)
    made: OpOverload = getattr(torch.ops.lxt_fx_capture, name).default
    return made


def _shapes(
    input: Tensor, hx: Any, params: list[Tensor], has_biases: bool, num_layers: int, dropout: float, train: bool,
    bidirectional: bool, batch_first: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    states = hx if isinstance(hx, (list, tuple)) else [hx]
    width = states[0].shape[-1] * (2 if bidirectional else 1)
    return input.new_empty(*input.shape[:-1], width), *(torch.empty_like(state) for state in states)


_OPS = {name: _of_any_length(getattr(aten, name).input) for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")}
_FUNCTIONS: dict[Any, OpOverload] = {getattr(torch, name): op for name, op in _OPS.items()}


class RecurrencesOfAnyLength(TorchFunctionMode):
    """Inside, torch's recurrences on sequences that are not packed leave the number of steps free."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        called = _FUNCTIONS.get(func)
        if called is None or kwargs or _packed(args):
            return func(*args, **(kwargs or {}))
        return called(*args)


def _packed(args: tuple[Any, ...]) -> bool:
    """A packed sequence has the sizes of its batches behind the values, so that the settings begin later."""
    return len(args) < 4 or not isinstance(args[3], bool)


def as_torch_ops(gm: GraphModule) -> int:
    """Transform: the ops of this file become torch's own."""
    edits = 0
    for node in gm.graph.nodes:
        if node.op == "call_function" and node.target in _OPS.values():
            node.target = getattr(aten, base_name(node.target)).input
            edits += 1
    return edits


__all__ = ["RecurrencesOfAnyLength", "as_torch_ops"]
