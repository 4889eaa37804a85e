"""Capture: `flex_attention` becomes the ops of an attention, which have rules and a backward on every device.

torch hides it behind one op, which has no backward on CPU, and compiles it. Inside `flex_attention_in_ops` it computes the
scores, what `score_mod` and `mask_mod` make of them, their softmax and the mean of the values. Both functions are written
for one score; torch maps them over all. Here they are called once, with indices that broadcast: [batch, 1, 1, 1],
[1, heads, 1, 1], [1, 1, queries, 1] and [1, 1, 1, keys]. An attention that only masks its scores is
`scaled_dot_product_attention`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lxt_fx.base.errors import CaptureError
from lxt_fx.base.torch_internals import compiled_as_written, flex_attention_as, flex_mask_by, mapped_flex_attention
from lxt_fx.base.transformers_internals import flex_masks_read_padding

TO_GO_ON = 'load the model with attn_implementation="sdpa", or write this attention out in the model'


@contextmanager
def flex_attention_in_ops(model: nn.Module) -> Iterator[None]:
    """Inside the block, `flex_attention` calls the ops that it stands for, and functions that were compiled run as they are
    written."""
    attention, mask = flex_attention_as(_in_ops), flex_mask_by(_mask)
    with flex_masks_read_padding(model) as compiles, compiled_as_written(compiles), attention, mask:
        yield


@contextmanager
def flex_attention_mapped(model: nn.Module) -> Iterator[None]:
    """Inside the block, `flex_attention` runs as torch runs it without a compiler, on tensors that ask for gradients too:
    what the ops of `flex_attention_in_ops` are compared with."""
    with flex_masks_read_padding(model) as compiles, compiled_as_written(compiles), flex_attention_as(_mapped):
        yield


def _mapped(query: Tensor, key: Tensor, value: Tensor, score_mod: Any, block_mask: Sequence[Any], *rest: Any) -> Any:
    if query.device.type != "meta":
        _require_whole_mask(query, key, block_mask)
    return mapped_flex_attention()(query, key, value, score_mod, block_mask, *rest)


def _in_ops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    score_mod: Callable[..., Tensor],
    block_mask: Sequence[Any],
    scale: float,
    options: Any,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """The output [batch, heads, queries, width], and the logarithm (to base 2) of the sum of the powers of scores and the
    largest score [batch, heads, queries]."""
    times = query.shape[1] // key.shape[1]
    key, value = (x if times == 1 else x.repeat_interleave(times, 1) for x in (key, value))
    key, value = (x if x.shape[0] == query.shape[0] else x.expand(query.shape[0], -1, -1, -1) for x in (key, value))
    precise = torch.float64 if query.dtype is torch.float64 else torch.float32
    scores = query.to(precise) @ key.to(precise).transpose(-2, -1) * scale
    places = _places(scores.shape, query.device)
    changed, mask = _at(score_mod, "score_mod", places, scores), _mask_of(block_mask[-1], places)
    hidden = changed if mask is None else changed.masked_fill(~mask, -math.inf)
    statistics = hidden.logsumexp(-1) / math.log(2), hidden.amax(-1) / math.log(2)
    if changed is scores and value.dtype is query.dtype:
        shown = mask if mask is None else mask.expand(*mask.shape[:-2], *scores.shape[-2:])
        return F.scaled_dot_product_attention(query, key, value, shown, scale=scale), *statistics
    nothing = (hidden == -math.inf).all(-1, keepdim=True)
    weights = hidden.masked_fill(nothing, 0.0).softmax(-1).masked_fill(nothing, 0.0)  # a query that sees nothing gets 0
    return weights.to(query.dtype) @ value.to(query.dtype), *statistics


def _places(sizes: Sequence[int], device: Any) -> list[Tensor]:
    """The indices of batch, head, query and key, that broadcast to all scores."""
    return [torch.arange(n, device=device).view([-1 if d == at else 1 for d in range(4)]) for at, n in enumerate(sizes)]


def _at(function: Callable[..., Tensor], name: str, places: Sequence[Tensor], scores: Tensor) -> Tensor:
    """What the function makes of all scores [batch, heads, queries, keys]."""
    with _IndicesThatBroadcast():
        try:
            changed = function(scores, *places)
            return changed if changed is scores else changed.expand(scores.shape)
        except (RuntimeError, IndexError) as error:
            raise _refused(name, function, f"{type(error).__name__}: {error}") from error


def _mask_of(function: Callable[..., Tensor], places: Sequence[Tensor]) -> Tensor | None:
    """What the function says for all scores, in a shape of four dims that broadcasts to theirs; None where it shows all."""
    if _name(function) == "noop_mask":
        return None
    with _IndicesThatBroadcast():
        try:
            mask = function(*places)
        except (RuntimeError, IndexError) as error:
            raise _refused("mask_mod", function, f"{type(error).__name__}: {error}") from error
    return mask.view([1] * (4 - mask.dim()) + list(mask.shape)) if mask.dim() < 4 else mask


def _mask(function: Callable[..., Tensor], sizes: Sequence[int], device: Any) -> Tensor:
    """The mask [batch, heads, queries, keys] that `create_mask` makes."""
    mask = _mask_of(function, _places(sizes, device))
    whole = torch.ones((), dtype=torch.bool, device=device) if mask is None else mask
    return whole.expand(*sizes)


class _IndicesThatBroadcast(TorchFunctionMode):
    """`bias[head][query]` means `bias[head, query]` where head and query are indices that broadcast against each other, and
    not an index into what the first one made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Tensor, Tensor, tuple[Any, ...]]] = []  # what was read of what, at which indices

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.__getitem__:
            return func(*args, **(kwargs or {}))
        source, given = args
        index = given if isinstance(given, tuple) else (given,)
        before = next(((whole, indices) for made, whole, indices in self.made if made is source), None)
        if not any(isinstance(each, Tensor) for each in index) and before is None:
            return func(source, given)
        if not all(_is_index(each) for each in index):
            raise RuntimeError("it takes a slice or a mask of what it looked up")
        whole, indices = before or (source, ())
        result = func(whole, (*indices, *index))
        self.made.append((result, whole, (*indices, *index)))
        return result


def _is_index(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() and value.dtype is not torch.bool
    return isinstance(value, (int, torch.SymInt))


def _require_whole_mask(query: Tensor, key: Tensor, block_mask: Sequence[Any]) -> None:
    """Raises CaptureError where the blocks of a BlockMask and its mask_mod show different keys. torch's kernels read both;
    what is written out here, as in torch without a compiler, is the mask_mod."""
    places = _places((*query.shape[:3], key.shape[2]), query.device)
    mask = _mask_of(block_mask[-1], places)
    shown = torch.ones((), dtype=torch.bool, device=query.device) if mask is None else mask
    partly, fully = (_shown(block_mask[at], block_mask[at + 1], block_mask[-3:-1], places) for at in (2, 4))
    if not bool((((partly & shown) | fully) == shown).all()):
        raise CaptureError(
            "transform: the blocks of a BlockMask that flex_attention is given show other keys than its mask_mod "
            f"({_name(block_mask[-1])}); lxt_fx reads the mask_mod only. To go on: make the BlockMask with "
            f"create_block_mask, from a mask_mod that says all, or {TO_GO_ON}"
        )


def _shown(counts: Tensor | None, indices: Tensor | None, sizes: Sequence[int], places: Sequence[Tensor]) -> Tensor:
    """Which keys the first `counts` blocks of `indices` show to each query: [batch, heads, queries, keys]."""
    if counts is None or indices is None:
        return torch.zeros((), dtype=torch.bool, device=places[0].device)
    listed = torch.arange(indices.shape[-1], device=indices.device) < counts.unsqueeze(-1)
    columns = int(indices.max()) + 2 + int(places[3].max()) // sizes[1]
    marked = torch.zeros(*indices.shape[:-1], columns, dtype=torch.bool, device=indices.device)
    marked = marked.scatter(-1, torch.where(listed, indices, columns - 1).long(), True)
    return marked[:, :, (places[2] // sizes[0]).flatten()[:, None], (places[3] // sizes[1]).flatten()]


def _refused(name: str, function: Callable[..., Any], why: str) -> CaptureError:
    return CaptureError(
        f"the {name} of flex_attention ({_name(function)}) cannot be called for all scores at once: "
        f"{why.splitlines()[0][:150]}; {TO_GO_ON}"
    )


def _name(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__name__))
