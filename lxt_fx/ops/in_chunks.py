"""A function of some of the queries at a time: its values are put together, and the backward computes each chunk again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.autocast import DEVICES
from lxt_fx.ops.library import RuleFunction, is_batched

ENTRIES = 1 << 21
"""About how many entries the scores of one chunk have."""

FEWEST, MOST = 8, 256
"""Queries of a chunk."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Queries `start` to `stop`, which see no key outside of `first` to `last` (None: any key). `masked`: whether some of
    these keys are hidden from some of these queries."""

    start: int
    stop: int
    keys: tuple[int, int] | None = None
    masked: bool = True


Inputs = Sequence[Any]
RunChunk = Callable[[Chunk, list[Any]], Tensor]
"""The value at the queries of the chunk, from the inputs cut down to the chunk."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The dims of an input that hold queries, and keys; None where it has none of them."""

    queries: int | None = None
    keys: int | None = None


def chunks_of(queries: int, entries: int) -> list[Chunk]:
    """Chunks of queries, each of which has `entries` scores."""
    step = min(MOST, max(FEWEST, ENTRIES // max(entries, 1)))
    return [Chunk(start, min(start + step, queries)) for start in range(0, queries, step)]


class InChunks(RuleFunction):
    """Runs the chunks and puts their values together along dim `axis`. Saves the inputs, and computes each chunk again in
    the backward."""

    @staticmethod
    def forward(ctx: Any, run: RunChunk, chunks: list[Chunk], axes: Sequence[Axes], axis: int, *inputs: Any) -> Tensor:
        ctx.run, ctx.chunks, ctx.axes, ctx.axis = run, chunks, axes, axis
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        ctx.autocast = [(d, torch.get_autocast_dtype(d)) for d in DEVICES if _autocasts(d)]
        value: Tensor | None = None
        for chunk in chunks:
            part = run(chunk, cut(chunk, inputs, axes))
            if value is None:
                value = _like(part, axis, chunks[-1].stop)
            value.narrow(axis, chunk.start, chunk.stop - chunk.start).copy_(part)
        assert value is not None
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs = [x if isinstance(x, Tensor) else other for x, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
        asked = [index for index, needed in enumerate(ctx.needs_input_grad[4:]) if needed]
        if torch.is_grad_enabled():
            return (None,) * 4 + _differentiable(ctx, inputs, asked, gradients[0])
        batched = is_batched(gradients[0])
        sums = _Sums(inputs, ctx.axes, batched)
        for chunk in ctx.chunks:
            chunk = replace(chunk, keys=None, masked=True) if batched else chunk
            leaves = cut(chunk, inputs, ctx.axes)
            for index in asked:
                leaves[index] = leaves[index].detach().requires_grad_(True)
            with torch.enable_grad(), _autocast(ctx.autocast):
                part = ctx.run(chunk, leaves)
            g = gradients[0].narrow(ctx.axis, chunk.start, chunk.stop - chunk.start)
            found = torch.autograd.grad(part, [leaves[index] for index in asked], g, allow_unused=True)
            for index, gradient in zip(asked, found, strict=True):
                sums.add(index, chunk, gradient)
        return (None,) * 4 + tuple(sums.total(index) for index in range(len(inputs)))


def _differentiable(ctx: Any, inputs: Inputs, asked: list[int], g: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients as a function that can be differentiated again; this saves what the chunks compute."""
    with _autocast(ctx.autocast):
        value = torch.cat([ctx.run(chunk, cut(chunk, inputs, ctx.axes)) for chunk in ctx.chunks], ctx.axis)
    found = torch.autograd.grad(value, [inputs[index] for index in asked], g, allow_unused=True, create_graph=True)
    by_index = dict(zip(asked, found, strict=True))
    return tuple(by_index.get(index) for index in range(len(inputs)))


@dataclass(slots=True)
class _Sums:
    """Gradients of the inputs, added up over chunks in float32 or wider; `batched` ones out of place, where every chunk has
    all keys."""

    inputs: Inputs
    axes: Sequence[Axes]
    batched: bool
    found: dict[int, Any] = field(default_factory=dict)

    def add(self, index: int, chunk: Chunk, gradient: Tensor | None) -> None:
        """Adds the gradient of an input that is cut down to the chunk."""
        if gradient is None:
            return
        if self.batched:
            self.found.setdefault(index, []).append(gradient)
            return
        if index not in self.found:
            x = self.inputs[index]
            self.found[index] = torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
        _narrow(self.found[index], chunk, self.axes[index]).add_(gradient)

    def total(self, index: int) -> Tensor | None:
        """The gradient of the input."""
        found = self.found.get(index)
        if isinstance(found, list):
            queries = self.axes[index].queries
            found = torch.stack(found).sum(0) if queries is None else torch.cat(found, queries)
        return None if found is None else found.to(self.inputs[index].dtype)


def _narrow(x: Tensor, chunk: Chunk, axes: Axes) -> Tensor:
    if axes.queries is not None:
        x = x.narrow(axes.queries, chunk.start, chunk.stop - chunk.start)
    if axes.keys is not None and chunk.keys is not None:
        x = x.narrow(axes.keys, chunk.keys[0], chunk.keys[1] - chunk.keys[0])
    return x


def cut(chunk: Chunk, inputs: Inputs, axes: Sequence[Axes]) -> list[Any]:
    """The inputs cut down to the queries and keys of the chunk."""
    return [_narrow(x, chunk, of) if isinstance(x, Tensor) else x for x, of in zip(inputs, axes, strict=True)]


def _like(part: Tensor, axis: int, queries: int) -> Tensor:
    """An empty tensor for all queries. Its dims have the order in memory that they have in the value of a chunk, since ops
    behind it may view it."""
    order = sorted(range(part.dim()), key=part.stride, reverse=True)
    sizes = [queries if dim == axis % part.dim() else part.shape[dim] for dim in range(part.dim())]
    back = [order.index(dim) for dim in range(part.dim())]
    return part.new_empty([sizes[dim] for dim in order]).permute(back)


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


@contextmanager
def _autocast(states: list[tuple[str, torch.dtype]]) -> Iterator[None]:
    """Autocast as it was in the forward."""
    with ExitStack() as stack:
        for device, dtype in states:
            stack.enter_context(torch.autocast(device, dtype))
        yield
