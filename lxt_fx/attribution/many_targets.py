"""The relevance of many explained numbers from one forward: the backward passes a batch of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from lxt_fx.attribution.embeddings import with_embeddings
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.split_head import Cut, cut_head
from lxt_fx.attribution.target import logits_of
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained

Targets = Sequence[int] | Sequence[tuple[int, int]] | Tensor | Callable[[Any], Tensor]
"""Entries of the logits, or a function of the model's output that returns a vector of numbers [targets]."""

Reduce = Literal["hidden", "channels", "none"]

MEMORY, ALIVE, LARGEST_CHUNK = 2**30, 8, 32
"""A chunk is as many targets as have `ALIVE` gradients of the size of the largest value that the forward saved within
`MEMORY` bytes, and at most `LARGEST_CHUNK`: beyond that, nothing is gained."""

IN_CACHE, LEAST_IN_CACHE = 2**23, 4
"""On a CPU one such gradient has at most so many bytes, unless these are fewer targets than that: larger ones leave the
caches and are new pages each time (32 targets of 128 tokens of SmolLM2: 6 % faster in chunks of 8 than of 32)."""


def relevance_of(
    explained: Explained,
    inputs: Tensor | Mapping[str, Any],
    targets: Targets,
    *,
    leaf: str | None = None,
    chunk: int | None = None,
    reduce: Reduce = "hidden",
) -> Tensor:
    """The relevance of every target, from one forward: [targets, batch, tokens], at least float32, on the leaf's device.

    `inputs` are the inputs of the explained module by name (`input_ids` will do for `inputs_embeds`), or the first of
    them. `targets` are one of

    - classes `[0, 1, 2]`, entries of logits [batch, classes]; of logits [batch, tokens, entries], at the last position;
    - (position, entry) pairs, entries of logits [batch, tokens, entries]; a negative position counts from the end;
    - a function of the module's output that returns the numbers to explain as a vector [targets].

    Each row of a batch is explained for the same entries; a function may sum over rows, which do not depend on one
    another. `leaf` is the input that relevance is read at, by default the first of `record.leaves`.

    `reduce` says what is summed: "hidden" the last dimension of the leaf, "channels" dimension 1 (of images [batch,
    channels, height, width]), "none" nothing: [targets, *leaf.shape].

    In gradient form relevance is value * gradient; in explicit form each output starts with its own value as relevance
    (for a function, output * d number / d output). `chunk` targets go backward at once and need memory for as many
    gradients; None chooses it so that about 1 GiB is enough (`lxt_fx.attribution.many_targets.MEMORY`). The head of a language model is run on
    the target positions alone, so no logits [batch, tokens, vocabulary] are made for (position, entry) pairs.

    Raises InputError for targets that do not fit, and NonFiniteError where a number or its relevance is not finite.
    """
    with gradients_on():
        if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
            raise InputError(f"relevance_of: chunk must be a whole number of at least 1, or None, got {chunk!r}")
        if reduce not in ("hidden", "channels", "none"):
            raise InputError(f'relevance_of: reduce must be "hidden", "channels" or "none", got {reduce!r}')
        bound, name = _bound(explained, inputs, leaf)
        explained = explained._fitting(bound)
        relevance, values = _relevance(explained, bound, name, targets, chunk, reduce)
        if not is_finite([values, relevance]):
            _refuse(explained, bound, targets)
        return relevance


def values_and_relevance(
    explained: Explained, inputs: Mapping[str, Any], pairs: Sequence[tuple[int, int]], chunk: int | None
) -> tuple[Tensor, Tensor]:
    """The logits [targets, batch] of (position, entry) pairs, and their relevance [targets, batch, tokens]."""
    with gradients_on():
        bound, name = _bound(explained, inputs, None)
        explained = explained._fitting(bound)
        relevance, values = _relevance(explained, bound, name, pairs, chunk, "hidden")
        if not is_finite([values, relevance]):
            _refuse(explained, bound, pairs)
        return values, relevance


def _bound(explained: Explained, inputs: Tensor | Mapping[str, Any], leaf: str | None) -> tuple[dict[str, Any], str]:
    """The inputs by name, with the leaf as a leaf of autograd, and the name of the leaf."""
    if not isinstance(explained, Explained):
        raise InputError(f"relevance_of: needs what transform returns, got {type(explained).__name__}; transform it first")
    record = explained.record
    if isinstance(inputs, Tensor):
        inputs = {"inputs_embeds" if record.inputs[0] == "input_ids" else record.inputs[0]: inputs}
    name = record.leaves[0] if leaf is None else leaf
    if name not in record.leaves:
        raise InputError(f"relevance_of: relevance is read at {', '.join(record.leaves)}, and not at {leaf!r}")
    bound = explained._bind((), with_embeddings(explained, inputs, record.inputs))
    bound = {key: value.detach() if isinstance(value, Tensor) else value for key, value in bound.items()}
    return bound | {name: bound[name].clone().requires_grad_(True)}, name


def _relevance(
    explained: Explained, bound: Mapping[str, Any], name: str, targets: Targets, chunk: int | None, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    leaf: Tensor = bound[name]
    saved = _Saved(explained)
    cut = None if callable(targets) else cut_head(explained)
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        ends, seeds, values = (
            _from_output(explained, bound, targets) if cut is None else _from_rows(explained, cut, bound, targets)
        )
    size = chunk or saved.chunk(leaf.device)
    wide = torch.promote_types(leaf.dtype, torch.float32)
    times = leaf.detach().to(wide) if explained.record.form == "gradient" else leaf.new_ones((), dtype=wide)
    parts = []
    for start in range(0, len(values), size):
        stop = min(start + size, len(values))
        found = _backward(ends, leaf, [seed(start, stop) for seed in seeds], stop == len(values))
        parts.append(_reduced(found.to(wide) * times, reduce))
    return torch.cat(parts), values


Seeds = Callable[[int, int], Tensor]
"""What the backward of targets `start` to `stop` begins with at one tensor: [stop - start, *tensor.shape]."""


def _from_rows(
    explained: Explained, cut: Cut, bound: Mapping[str, Any], targets: Any
) -> tuple[list[Tensor], list[Seeds], Tensor]:
    """The rows that the head reads, and what reaches them from each target: its own row, and 0 at all others. Each target
    is computed from a row of its own, so one backward through the head gives them all."""
    rows = cut.body(**bound)
    pairs = _pairs(targets, rows.shape[1])
    positions = torch.tensor([position for position, _ in pairs], device=rows.device)
    chosen = rows.detach()[:, positions].requires_grad_(True)
    values = _entries(cut.head(chosen), [(index, entry) for index, (_, entry) in enumerate(pairs)])
    seed = torch.ones_like(values) if explained.record.form == "gradient" else values.detach()
    (reaching,) = torch.autograd.grad(values, chosen, seed)

    def seeds(start: int, stop: int) -> Tensor:
        made: Tensor = rows.new_zeros(stop - start, *rows.shape)
        targets = torch.arange(start, stop, device=rows.device)
        made[targets - start, :, positions[start:stop]] = reaching.transpose(0, 1)[start:stop]
        return made

    return [rows], [seeds], values.detach().T


def _from_output(
    explained: Explained, bound: Mapping[str, Any], targets: Any
) -> tuple[list[Tensor], list[Seeds], Tensor]:
    """The outputs that the targets are computed from, and each target's gradient at them, or its share of their values."""
    output = explained(**bound)
    values = _numbers(output, targets, explained.record.model_class)
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    # a target that has two dims, [targets, batch], sums over rows, which do not depend on one another
    totals = values if values.dim() == 1 else values.sum(1)
    if not totals.requires_grad:
        raise InputError("relevance_of: the targets do not depend on the input by a differentiable path")
    if explained.record.form == "gradient":
        return [totals], [lambda start, stop: _one_each(totals, start, stop)], values.detach()

    def shares(tensor: Tensor) -> Seeds:
        def seeds(start: int, stop: int) -> Tensor:
            ones = _one_each(totals, start, stop)
            (gradient,) = torch.autograd.grad(
                totals, tensor, ones, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
            shape = (stop - start, *tensor.shape)
            return tensor.new_zeros(shape) if gradient is None else tensor.detach() * gradient

        return seeds

    return leaves, [shares(tensor) for tensor in leaves], values.detach()


def _one_each(totals: Tensor, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of the identity matrix."""
    made = totals.new_zeros(stop - start, len(totals))
    made[torch.arange(stop - start), torch.arange(start, stop)] = 1
    return made


def _backward(ends: list[Tensor], leaf: Tensor, seeds: list[Tensor], last: bool) -> Tensor:
    """The gradient [targets, *leaf.shape] for seeds [targets, ...]; one target alone needs no batch."""
    if len(seeds[0]) == 1:
        (one,) = torch.autograd.grad(ends, leaf, [seed[0] for seed in seeds], retain_graph=not last, allow_unused=True)
        found = None if one is None else one[None]
    else:
        (found,) = torch.autograd.grad(
            ends, leaf, seeds, retain_graph=not last, allow_unused=True, is_grads_batched=True
        )
    if found is None:
        raise InputError("relevance_of: the targets do not depend on the leaf; choose other numbers or another leaf")
    return found


def _reduced(relevance: Tensor, reduce: Reduce) -> Tensor:
    """[targets, *leaf.shape], summed over the leaf's last dimension or its dimension 1."""
    if reduce == "none" or relevance.dim() < 3:
        return relevance
    return relevance.sum(-1 if reduce == "hidden" else 2)


def _numbers(output: Any, targets: Any, model_class: str) -> Tensor:
    """The targets as numbers [targets, batch], or [targets] by a function."""
    if callable(targets):
        values = targets(output)
        if isinstance(values, Tensor) and values.dim() == 1 and len(values):
            return values
        got = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise InputError(f"relevance_of: the target function must return a vector of numbers [targets], got {got}")
    logits = logits_of(output, model_class)
    if logits.dim() == 2:
        return torch.stack([logits[:, _within(entry, logits)] for entry in _classes(targets)])
    if logits.dim() != 3:
        raise InputError(f"relevance_of: logits have shape {list(logits.shape)}; give targets as a function of the output")
    return _entries(logits, _pairs(targets, logits.shape[1])).T


def _entries(logits: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Entries (position, entry) of logits [batch, positions, entries]: [batch, targets]."""
    return torch.stack([logits[:, position, _within(entry, logits)] for position, entry in pairs], dim=1)


def _within(entry: int, logits: Tensor) -> int:
    if 0 <= entry < logits.shape[-1]:
        return entry
    raise InputError(f"relevance_of: there is no entry {entry}; the logits have {logits.shape[-1]}")


def _listed(targets: Any) -> list[Any]:
    listed = targets.tolist() if isinstance(targets, Tensor) else list(targets)
    if not listed:
        raise InputError("relevance_of: no targets were given")
    return listed


def _classes(targets: Any) -> list[int]:
    listed = _listed(targets)
    if all(isinstance(target, int) for target in listed):
        return listed
    raise InputError("relevance_of: the logits are [batch, classes], so targets are class indices, without positions")


def _pairs(targets: Any, count: int) -> list[tuple[int, int]]:
    """(position, entry) of each target, positions counted from the front."""
    pairs = []
    for target in _listed(targets):
        pair = (-1, target) if isinstance(target, int) else tuple(target)
        if len(pair) != 2 or not all(isinstance(number, int) for number in pair):
            raise InputError(f"relevance_of: a target is an entry or a pair (position, entry) of numbers, got {target!r}")
        if not -count <= pair[0] < count:
            raise InputError(f"relevance_of: position {pair[0]} is not among the {count} positions of the logits")
        pairs.append((pair[0] % count, pair[1]))
    return pairs


def _refuse(explained: Explained, bound: Mapping[str, Any], targets: Targets) -> None:
    def total(output: Any) -> Tensor:
        return _numbers(output, targets, explained.record.model_class).sum()

    raise_non_finite(explained, bound, total, "relevance_of: a target, or its relevance,")


class _Saved:
    """The largest value that a forward keeps for its backward, weights left out."""

    def __init__(self, explained: Explained) -> None:
        self.weights = set(_pointers(explained.parameters())) | set(_pointers(explained.buffers()))
        self.largest = 1

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return tensor

    def chunk(self, device: torch.device) -> int:
        largest = min(MEMORY // (ALIVE * self.largest), LARGEST_CHUNK)
        if device.type == "cpu":
            largest = min(largest, max(IN_CACHE // self.largest, LEAST_IN_CACHE))
        return max(1, largest)


def _pointers(tensors: Iterator[Tensor]) -> Iterator[int]:
    return (tensor.untyped_storage().data_ptr() for tensor in tensors)
