"""Attention on long texts, some queries at a time, so that no value of the forward or the backward has queries times keys
entries.

What one query gets depends on that query, on all keys and values, and on its own part of the mask. So the ops of an
attention, from the scores to the sum over values, give the same for some of the queries as for all. The forward runs them
for one chunk of queries after another and saves only what enters (queries, keys, values, and the vectors that the mask is
made of). The backward computes each chunk again and differentiates it, by the rules of the ops in it: relevance is the same
as that of the whole, to rounding. The idea is that of Rabe and Staats 2021, "Self-attention does not need O(n^2) memory".

Up to `WHOLE` queries everything runs at once, as the model wrote it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import OpOverload, base_name
from lxt_fx.ops.fused import simplest_mask
from lxt_fx.ops.in_chunks import Axes, Chunk, InChunks, Inputs, chunks_of, cut
from lxt_fx.ops.library import has_values

WHOLE = 1024
"""Attentions of up to so many queries run at once."""

Part = Callable[..., Any]
"""A piece of a graph as a function of a number of queries, and of the values that enter it, cut down to these queries."""


@dataclass(frozen=True)
class LazyMask:
    """A mask or bias [.., queries, keys] that `part` makes from vectors, for as many queries at a time as are asked for.
    `axes` are the dims of the vectors that hold queries."""

    part: Part
    axes: tuple[int | None, ...]
    __name__ = "mask_by_queries"

    def __call__(self, parts: Inputs) -> Tensor | None:
        """The whole mask; None where there are more queries than `WHOLE`."""
        queries = self.queries(parts)
        found: Tensor | None = self.part(queries, *parts) if is_compiling() or queries <= WHOLE else None
        return found

    def queries(self, parts: Inputs) -> int:
        """For how many queries it is: 1 where it is the same for all."""
        return next((x.shape[dim] for x, dim in zip(parts, self.axes, strict=True) if dim is not None), 1)

    def at(self, chunk: Chunk, parts: Inputs) -> Tensor:
        """The mask at the queries of the chunk, [.., queries, keys]."""
        made: Tensor = self.part(chunk.stop - chunk.start, *cut(chunk, parts, list(map(Axes, self.axes))))
        return made


Seen = bool | list[Chunk]
"""What the queries of a fused attention see: all keys that the mask shows, if there is one (False), those up to their own
place (True), or what each chunk says."""


@dataclass(frozen=True)
class LazySimplestMask:
    """`simplest_mask` of a mask that is made for some queries at a time."""

    mask: LazyMask
    __name__ = "simplest_mask_by_queries"

    def __call__(self, parts: Inputs) -> tuple[Tensor | None, Seen]:
        """(mask, is_causal) as `simplest_mask` gives them. With more queries than `WHOLE` there is no mask: (None, False)
        where nothing is hidden, (None, True) where the mask is causal, else (None, chunks)."""
        found = self.mask(parts)
        return simplest_mask(found) if found is not None else (None, self._seen(parts))

    def _seen(self, parts: Inputs) -> Seen:
        """Read from the values of the mask, as long as it is made of values that can be read."""
        queries = self.mask.queries(parts)
        one = self.mask.at(Chunk(0, 1), parts)
        chunks = chunks_of(queries, one.numel())
        if one.dtype is not torch.bool or not has_values(one):
            return chunks
        found: list[Chunk] = []
        hides, causal = False, one.shape[-1] == queries
        for chunk in chunks:
            visible = self.mask.at(chunk, parts)
            found.append(_what_it_sees(chunk, visible))
            causal = causal and torch.equal(visible, _up_to_each(chunk, queries, visible.device).expand_as(visible))
            hides = hides or found[-1].masked or found[-1].keys != (0, one.shape[-1])
        return causal if causal or not hides else found


def _what_it_sees(chunk: Chunk, visible: Tensor) -> Chunk:
    keys = visible.reshape(-1, visible.shape[-1]).any(0).nonzero()
    if not len(keys):
        return chunk  # queries that see nothing
    first, last = int(keys[0]), int(keys[-1]) + 1
    return Chunk(chunk.start, chunk.stop, (first, last), not bool(visible[..., first:last].all()))


def _up_to_each(chunk: Chunk, keys: int, device: torch.device) -> Tensor:
    """[queries, keys]: for each query of the chunk the keys up to its own place."""
    places = torch.arange(chunk.start, chunk.stop, device=device)
    return torch.arange(keys, device=device) <= places.unsqueeze(1)


@dataclass(frozen=True)
class FusedAttention:
    """`lxt_fx.sdpa`, `sdpa_held` or `grouped_sdpa`. It runs in chunks where its mask is lazy, and where torch has no fused
    kernel for it and would make all scores."""

    op: OpOverload
    mask: LazyMask | None = None

    @property
    def __name__(self) -> str:
        return f"{base_name(self.op)}_by_queries"

    def __call__(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sees: Seen, parts: Inputs,
        **settings: float | bool | None,
    ) -> Tensor:  # fmt: skip
        """softmax(q k^T + mask) v, [batch, heads, queries, width], with the settings of the op (scale, shares)."""
        chunks = self._chunks(query, key, value, mask, sees)
        if chunks is None:
            whole: Tensor = self.op(query, key, value, mask, 0.0, bool(sees), **settings)
            return whole

        def run(chunk: Chunk, given: list[Any]) -> Tensor:
            q, k, v, *of_mask = given
            found: Tensor = self.op(q, k, v, self._hidden(chunk, key, sees, of_mask), 0.0, False, **settings)
            return found

        axes = [Axes(-2), Axes(keys=-2), Axes(keys=-2), *map(Axes, self.mask.axes if self.mask is not None else ())]
        done: Tensor = InChunks.apply(run, chunks, axes, -2, query, key, value, *parts)  # type: ignore[no-untyped-call]
        return done

    def _chunks(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, sees: Seen) -> list[Chunk] | None:
        """The chunks of queries; None if all run at once."""
        has_kernel = query.dim() == 4 and query.shape[-1] == value.shape[-1]
        if isinstance(sees, list) and has_kernel:
            return sees
        if is_compiling() or has_kernel or mask is not None or query.shape[-2] <= WHOLE:
            return None
        keys = key.shape[-2]
        small = chunks_of(query.shape[-2], query.shape[:-2].numel() * keys)
        if isinstance(sees, list):
            step = small[0].stop
            return [replace(c, start=a, stop=min(a + step, c.stop)) for c in sees for a in range(c.start, c.stop, step)]
        return [replace(c, keys=(0, min(c.stop, keys)) if sees else None, masked=sees) for c in small]

    def _hidden(self, chunk: Chunk, key: Tensor, sees: Seen, parts: Inputs) -> Tensor | None:
        """The mask of the chunk; None where it hides nothing."""
        first, last = chunk.keys or (0, key.shape[-2])
        if isinstance(sees, list) and chunk.masked and self.mask is not None:
            made: Tensor = self.mask.part(chunk.stop - chunk.start, *parts)
            return made[..., first:last]
        return _up_to_each(chunk, key.shape[-2], key.device)[..., first:last] if sees is True else None


@dataclass(frozen=True)
class WrittenAttention:
    """An attention that the model writes in single ops, from the product of queries and keys to the sum over values.
    `whole` computes it from the masks and the inputs, `part` for some queries from the inputs and what the masks are made
    of. The first two inputs are the operands of the product of queries and keys."""

    whole: Part
    part: Part
    axes: tuple[int | None, ...]
    ops: tuple[str, ...]
    """Their names, to be printed."""

    @property
    def __name__(self) -> str:
        return f"by_queries[{' '.join(self.ops)}]"

    def __call__(self, masks: Sequence[Tensor | None], inputs: Inputs, parts: Inputs) -> Tensor:
        """[.., queries, width]."""
        queries = inputs[0].shape[-2]
        if is_compiling() or (queries <= WHOLE and None not in masks):
            whole: Tensor = self.whole(queries, *masks, *inputs)
            return whole

        def run(chunk: Chunk, given: list[Any]) -> Tensor:
            found: Tensor = self.part(chunk.stop - chunk.start, *given)
            return found

        chunks = chunks_of(queries, inputs[0].shape[:-2].numel() * inputs[1].shape[-1])
        axes = list(map(Axes, self.axes))
        done: Tensor = InChunks.apply(run, chunks, axes, -2, *inputs, *parts)  # type: ignore[no-untyped-call]
        return done
