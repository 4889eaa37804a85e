"""The relevance of many explained numbers from one forward: the backward passes a batch of gradients."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.embeddings import with_embeddings
from lxt_fx.attribution.many_entries import BatchTargets
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.split_head import Cut, cut_head
from lxt_fx.attribution.target import TargetsLike, Wanted, several_targets
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import texts_of_logits
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained

Reduce = Literal["hidden", "channels", "none"]

MEMORY, ALIVE, LARGEST_CHUNK = 2**30, 8, 32
"""A chunk is as many targets as have `ALIVE` gradients of the size of the largest value that the forward saved within
`MEMORY` bytes, and at most `LARGEST_CHUNK`: beyond that, nothing is gained."""

IN_CACHE, LEAST_IN_CACHE = 2**23, 4
"""On a CPU one such gradient has at most so many bytes, unless these are fewer targets than that: larger ones leave the
caches and are new pages each time (32 targets of 128 tokens of SmolLM2: 6 % faster in chunks of 8 than of 32)."""


def relevance_of(
    explained: nn.Module,
    inputs: Tensor | Mapping[str, Any],
    targets: TargetsLike,
    *,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
    leaf: str | None = None,
    chunk: int | None = None,
    reduce: Reduce = "hidden",
) -> Tensor:
    """The relevance of every target, from one forward: [targets, batch, tokens], at least float32, on the leaf's device.

    `explained` is what `transform` made; a model is transformed on these inputs, under `attnlrp`. `inputs` are those of the
    module by name (`input_ids` will do for `inputs_embeds`), or the first of them. `targets` is a list of what `explain`
    takes as one target:

    - indices and names, `[7, " Paris"]`: entries of the logits, of a text at the position that `explain` states. Names of
      tokens need the `tokenizer`, names of classes the model's config or `labels`;
    - `Target.at(position, entry)`: at another position; a negative one counts from the end;
    - `Target(3, minus=7)`, `("Paris", "London")`: the first logit less the second. A pair of two indices is refused until
      0.3, as it meant (position, entry) here until 0.2;
    - functions of the module's output that return a number, or one for each example [batch].

    One target alone, or a tensor [targets] of indices, will do; so will one function of the output that returns all numbers
    as a vector [targets]. Each example of a batch is explained for every target; a function may sum over examples, which do
    not depend on one another. `leaf` is the input that relevance is read at, by default the first of `record.leaves`.

    `reduce` says what is summed: "hidden" the last dimension of the leaf, "channels" dimension 1 (of images [batch,
    channels, height, width]), "none" nothing: [targets, *leaf.shape].

    In gradient form relevance is value * gradient; in explicit form each output starts with its own value as relevance
    (for a difference or a function, output * d number / d output). `chunk` targets go backward at once and need memory for
    as many gradients; None chooses it so that about 1 GiB is enough (`MEMORY` of this module). The head of a language model
    is run on the target positions alone, so no logits [batch, tokens, vocabulary] are made, but for functions.

    Raises InputError for targets that do not fit, and NonFiniteError where a number or its relevance is not finite.
    """
    with gradients_on():
        if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
            raise InputError(f"relevance_of: chunk must be a whole number of at least 1, or None, got {chunk!r}")
        if reduce not in ("hidden", "channels", "none"):
            raise InputError(f'relevance_of: reduce must be "hidden", "channels" or "none", got {reduce!r}')
        wanted = several_targets(targets, "relevance_of")
        given, positional = _given(explained, inputs)
        explained = as_explained(explained, positional, given, "relevance_of")
        bound, name = _bound(explained, given, positional, leaf)
        explained = explained._fitting(bound)
        reading = Reading.of("relevance_of", explained, labels)
        asked = BatchTargets(reading, wanted, texts_of_logits(given, bound, tokenizer))
        return _finite(explained, bound, name, asked, chunk, reduce)[0]


def values_and_relevance(
    explained: Explained, inputs: Mapping[str, Any], targets: Sequence[Wanted], chunk: int | None, function: str
) -> tuple[Tensor, Tensor]:
    """The logits [targets, batch] of entries by index, and their relevance [targets, batch, tokens]; errors name the
    `function`."""
    with gradients_on():
        bound, name = _bound(explained, inputs, (), None)
        explained = explained._fitting(bound)
        asked = BatchTargets(Reading.of(function, explained, ()), list(targets), texts_of_logits(inputs, bound, None))
        relevance, values = _finite(explained, bound, name, asked, chunk, "hidden")
        return values, relevance


def _given(model: nn.Module, inputs: Tensor | Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The inputs by name, and those in order. A tensor is the first input, where that is token ids their embeddings, unless
    it holds whole numbers."""
    if not isinstance(inputs, Tensor):
        return dict(inputs), ()
    if isinstance(model, Explained):
        first = model.record.inputs[0]
    else:
        first = next(iter(inspect.signature(model.forward).parameters), "") if isinstance(model, nn.Module) else ""
    if first == "input_ids" or (first == "inputs_embeds" and not inputs.is_floating_point()):
        return {"inputs_embeds" if inputs.is_floating_point() else "input_ids": inputs}, ()
    return {}, (inputs,)


def _bound(
    explained: Explained, given: Mapping[str, Any], positional: tuple[Any, ...], leaf: str | None
) -> tuple[dict[str, Any], str]:
    """The inputs by name, with the leaf as a leaf of autograd, and the name of the leaf."""
    record = explained.record
    name = record.leaves[0] if leaf is None else leaf
    if name not in record.leaves:
        raise InputError(f"relevance_of: relevance is read at {', '.join(record.leaves)}, and not at {leaf!r}")
    bound = explained._bind(positional, with_embeddings(explained, given, record.inputs))
    bound = {key: value.detach() if isinstance(value, Tensor) else value for key, value in bound.items()}
    return bound | {name: bound[name].clone().requires_grad_(True)}, name


def _finite(
    explained: Explained, bound: Mapping[str, Any], name: str, asked: BatchTargets, chunk: int | None, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    """Relevance and values; raises NonFiniteError where one is not finite."""
    relevance, values = _relevance(explained, bound, name, asked, chunk, reduce)
    if not is_finite([values, relevance]):
        said = f"{asked.reading.function}: a target, or its relevance,"
        raise_non_finite(explained, bound, lambda output: asked.totals(output)[0].sum(), said)
    return relevance, values


def _relevance(
    explained: Explained, bound: Mapping[str, Any], name: str, asked: BatchTargets, chunk: int | None, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    leaf: Tensor = bound[name]
    saved = _Saved(explained)
    cut = cut_head(explained) if asked.entries_only else None
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        ends, seeds, values = (
            _from_output(explained, bound, asked) if cut is None else _from_rows(explained, cut, bound, asked)
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
    explained: Explained, cut: Cut, bound: Mapping[str, Any], asked: BatchTargets
) -> tuple[list[Tensor], list[Seeds], Tensor]:
    """The rows that the head reads, and what reaches them from each target: its own row, and 0 at all others. Each target
    is computed from a row of its own, so one backward through the head gives them all."""
    rows = cut.body(**bound)
    places = asked.places(rows.shape[1], len(rows)).to(rows.device)  # [batch, targets]
    batch = torch.arange(len(rows), device=rows.device)
    chosen = rows.detach()[batch[:, None], places].requires_grad_(True)
    logits = cut.head(chosen)
    entries = asked.entries(logits)
    values = entries.of(logits)
    ends, seeds = entries.ends(logits, explained.record.form)
    (reaching,) = torch.autograd.grad(ends, chosen, seeds)

    def made(start: int, stop: int) -> Tensor:
        found: Tensor = rows.new_zeros(stop - start, *rows.shape)
        targets = torch.arange(stop - start, device=rows.device)
        found[targets[:, None], batch, places.T[start:stop]] = reaching.transpose(0, 1)[start:stop]
        return found

    return [rows], [made], values.detach().T


def _from_output(
    explained: Explained, bound: Mapping[str, Any], asked: BatchTargets
) -> tuple[list[Tensor], list[Seeds], Tensor]:
    """The outputs that the targets are computed from, and each target's gradient at them, or its share of their values."""
    output = explained(**bound)
    totals, values = asked.totals(output)
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    if not totals.requires_grad:
        raise InputError(
            f"{asked.reading.function}: the targets do not depend on the input by a differentiable path"
        )
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
