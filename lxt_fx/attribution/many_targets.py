"""The relevance of many explained numbers from one forward: one backward takes a batch of gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.embeddings import as_called
from lxt_fx.attribution.leaf_call import LeafCall, leaf_call
from lxt_fx.attribution.many_entries import BatchTargets, Numbers
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.split_head import SplitModel, split_model
from lxt_fx.attribution.tapped import Tapped
from lxt_fx.attribution.target import TargetsLike, several_targets
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import texts_of_logits
from lxt_fx.attribution.through_head import through_head
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, stage, steps
from lxt_fx.base.torch_internals import pytree
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.opened_model import opened

Reduce = Literal["hidden", "channels", "none"]

MEMORY, ALIVE, LARGEST_CHUNK = 2**30, 8, 32
"""Chunk size: the number of targets for which about `ALIVE` gradients, each as large as the largest value that the forward
saved, fit into `MEMORY` bytes; at most `LARGEST_CHUNK`, as more gain nothing."""

IN_CACHE, LEAST_IN_CACHE = 2**23, 4
"""On a CPU such a gradient of a whole chunk has at most `IN_CACHE` bytes, but a chunk has at least `LEAST_IN_CACHE`
targets. Larger gradients leave the caches and are allocated anew each time (32 targets of 128 tokens of SmolLM2: 6 % faster
in chunks of 8 than of 32)."""


@lasting
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
    progress: bool | None = None,
) -> Tensor:
    """The relevance of every target, from one forward: [targets, batch, tokens], at least float32, on the leaf's device.

    `explained` is what `transform` made; a model is transformed on these inputs, under `attnlrp`. `inputs` are the inputs
    by name, as the model is called with them, or the first input alone. `targets` is a list of what `explain`
    takes as one target:

    - indices and names, `[7, " Paris"]`: entries of the logits, for a text at the default position that `explain` states.
      Names of tokens need the `tokenizer`, names of classes the model's config or `labels`;
    - `Target.at(position, entry)`: at another position; a negative one counts from the end;
    - `Target(3, minus=7)`, `("Paris", "London")`: the first logit minus the second. A pair of two indices is refused until
      0.3, because it meant (position, entry) here until 0.2;
    - functions of the module's output that return a number, or one number for each example [batch].

    `targets` may also be a single target, a tensor [targets] of indices, or one function of the output that returns all
    numbers as a vector [targets]. Each example of a batch is explained for every target. A function may sum over the
    examples, because they do not depend on one another. `leaf` names the leaf at which relevance is read, or the tokens
    that leaves are looked up by; by default the first of `record.leaves`, with all others of the same tokens.

    `reduce` says what is summed: "hidden" all that a token is looked up as, or the last dimension of another leaf;
    "channels" dimension 1 (of images [batch, channels, height, width]); "none" nothing: [targets, *leaf.shape].

    In gradient form relevance is value * gradient. In explicit form the backward of each output starts with its own value
    (for a contrast or a function with output * d number / d output). `chunk` targets run backward at once and need memory
    for as many gradients; None chooses it so that about 1 GiB is enough (`MEMORY` of this module). The head of a language
    model runs at the target positions only, so no logits [batch, tokens, vocabulary] are made, except for functions.
    `progress` is as in `lxt_fx.progress`, for this call.

    Raises InputError for targets that do not fit, and NonFiniteError if a number or its relevance is not finite.
    """
    with gradients_on():
        check_chunk(chunk, "relevance_of")
        if reduce not in ("hidden", "channels", "none"):
            raise InputError(f'relevance_of: reduce must be "hidden", "channels" or "none", got {reduce!r}')
        wanted, explained = several_targets(targets, "relevance_of"), opened(explained, "relevance_of")
        given, positional = _given(inputs)
        explained = as_explained(explained, positional, given, "relevance_of")
        call = leaf_call(explained, positional, as_called(explained, given), leaf, "relevance_of")
        if len(call.leaves) > 1 and reduce != "hidden":
            raise InputError(
                f"relevance_of: the tokens are looked up as {', '.join(call.leaves)}, whose shapes differ, so only "
                f'reduce="hidden" adds them up; choose one by leaf=... for reduce={reduce!r}'
            )
        reading = Reading.of("relevance_of", call.module, labels)
        asked = BatchTargets(reading, wanted, texts_of_logits(call.named, call.bound, tokenizer))
        return _finite(call, asked, chunk, reduce)[0]


def check_chunk(chunk: object, function: str) -> None:
    """Raises InputError for a `chunk` that is neither None nor a whole number of at least 1."""
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"{function}: chunk must be a whole number of at least 1, or None, got {chunk!r}")


def _given(inputs: Tensor | Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The inputs by name, and the positional ones."""
    if isinstance(inputs, Tensor):
        return {}, (inputs,)
    if not isinstance(inputs, Mapping):
        raise InputError(f"relevance_of: inputs must be a tensor or inputs by name, got {type(inputs).__name__}")
    return dict(inputs), ()


def _finite(
    call: LeafCall, asked: BatchTargets, chunk: int | None, reduce: Reduce = "hidden"
) -> tuple[Tensor, Tensor]:
    """Relevance and values of the targets. Raises NonFiniteError if any of them is not finite."""
    relevance, values = _relevance(call, asked, chunk, reduce)
    if not is_finite([values, relevance]):
        said = f"{asked.reading.function}: a target, or its relevance,"
        raise_non_finite(call.module, call.bound, lambda output: asked.totals(output)[0].sum(), said)
    return relevance, values


def _relevance(call: LeafCall, asked: BatchTargets, chunk: int | None, reduce: Reduce) -> tuple[Tensor, Tensor]:
    chunks, values = relevance_by_leaf(call, asked, chunk)
    parts = [call.by_token(found) if reduce == "hidden" else _reduced(found[0], reduce) for found in chunks]
    return torch.cat(parts), values


def relevance_by_leaf(
    call: LeafCall, asked: Numbers, chunk: int | None, function: str = "relevance_of"
) -> tuple[Iterator[list[Tensor]], Tensor]:
    """The relevance of each leaf of the call, [targets, *leaf.shape] and at least float32, for one chunk of targets after
    another; and the values of all targets, [targets, batch] for entries. The forward has run when this returns, and the
    backward of a chunk runs when it is asked for. Error messages name the `function`."""
    run = forward_run(call, asked, function)
    return run.relevance(list(call.leaves.values()), chunk), run.values


Seeds = Callable[[int, int], Tensor]
"""The gradient at one tensor with which the backward of targets `start` to `stop` starts: [stop - start, *tensor.shape]."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """One forward of a call, with its autograd graph. The backward starts at `ends`, with `seeds`. `values` are those of
    the targets, [targets, batch] for entries. `inside` are the values of the places that were asked for. `chunk` targets
    fit into memory at once."""

    ends: list[Tensor]
    seeds: list[Seeds]
    values: Tensor
    inside: list[Tensor]
    chunk: int
    form: str
    function: str

    def relevance(self, tensors: list[Tensor], chunk: int | None, first: int = 0) -> Iterator[list[Tensor]]:
        """The relevance of leaves and values inside, [targets, *shape] and at least float32, for one chunk of targets after
        another, from target `first` on."""
        targets, size = len(self.values), chunk or self.chunk
        for start in steps("relevance of targets", range(first, targets, size), targets - first, size):
            stop = min(start + size, targets)
            found = self.gradients(tensors, start, stop, last=stop == targets)
            wide = [at_least_float32(each) for each in found]
            yield [
                tensor.detach() * each if self.form == "gradient" else each
                for tensor, each in zip(tensors, wide, strict=True)
            ]

    def gradients(self, tensors: list[Tensor], start: int, stop: int, *, last: bool) -> list[Tensor]:
        """What flows back to these tensors for the targets `start` to `stop`, [stop - start, *shape]. The autograd graph is
        freed after the `last` ones."""
        return backward(self.ends, tensors, [seed(start, stop) for seed in self.seeds], last, self.function)


def forward_run(call: LeafCall, asked: Numbers, function: str, tapped: Tapped | None = None) -> Run:
    """The forward of a call for these numbers, with the values inside that `tapped` gives. Where each number is an entry of
    the logits, the head of a language model runs at the target positions only."""
    explained = call.module
    saved = SavedBytes(explained)
    split = None
    if asked.entries_only:
        split = split_model(explained) if tapped is None else tapped.split
    with stage("running the forward"), saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        if split is not None:
            ends, seeds, values, inside = _from_hidden(explained, split, call.bound, asked)
        else:
            output, inside = (call.output(), []) if tapped is None else tapped.module.forward(**call.bound)
            ends, seeds, values = ends_at_output(explained.record.form, output, asked, function)
    chunk = saved.chunk(next(iter(call.leaves.values())).device)
    return Run(ends, seeds, values, inside, chunk, explained.record.form, function)


def _from_hidden(
    explained: Explained, split: SplitModel, bound: Mapping[str, Any], asked: Numbers
) -> tuple[list[Tensor], list[Seeds], Tensor, list[Tensor]]:
    hidden, inside = split.body(**bound)
    return *ends_at_hidden(explained.record.form, split, hidden, asked), inside


def ends_at_hidden(
    form: str, split: SplitModel, hidden: Tensor, asked: Numbers
) -> tuple[list[Tensor], list[Seeds], Tensor]:
    """The hidden states that the head reads, the gradient of each target at them, and the targets' values. A target depends
    on the hidden state of one position, so its gradient is 0 at all others. The head reads a copy of that hidden state for
    each target, so one backward through the head gives the gradients of all targets."""
    places = asked.places(hidden.shape[1], len(hidden)).to(hidden.device)  # [batch, targets]
    batch = torch.arange(len(hidden), device=hidden.device)
    read = hidden.detach()[batch[:, None], places]
    reaching, values = through_head(split, asked, read, form)

    def made(start: int, stop: int) -> Tensor:
        found: Tensor = hidden.new_zeros(stop - start, *hidden.shape)
        targets = torch.arange(stop - start, device=hidden.device)
        found[targets[:, None], batch, places.T[start:stop]] = reaching.transpose(0, 1)[start:stop]
        return found

    return [hidden], [made], values.T


def ends_at_output(form: str, output: Any, asked: Numbers, function: str) -> tuple[list[Tensor], list[Seeds], Tensor]:
    """The tensors at which the backward starts, what it starts with for each target, and the targets' values. In gradient
    form it starts at the targets themselves, in explicit form at the outputs with output * d target / d output."""
    totals, values = asked.totals(output)
    leaves = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
    if not totals.requires_grad:
        raise InputError(
            f"{function}: the targets do not depend on the input by a differentiable path, so nothing can be explained; "
            "give numbers computed from the output, without detach, item or argmax"
        )
    if form == "gradient":
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


def one_number(ends: Sequence[Tensor], seeds: Sequence[Seeds]) -> Tensor:
    """A number, [], whose gradient at the ends is what the backward of the first target starts with."""
    parts = [(end * seed(0, 1)[0].to(end.dtype)).sum() for end, seed in zip(ends, seeds, strict=True)]
    return torch.stack([at_least_float32(part) for part in parts]).sum()


def _one_each(totals: Tensor, start: int, stop: int) -> Tensor:
    """A one for each of the targets `start` to `stop`: these rows of the identity matrix."""
    made = totals.new_zeros(stop - start, len(totals))
    made[torch.arange(stop - start), torch.arange(start, stop)] = 1
    return made


def backward(
    ends: list[Tensor], leaves: list[Tensor], seeds: list[Tensor], last: bool, function: str
) -> list[Tensor]:
    """The gradient [targets, *leaf.shape] of each leaf for seeds [targets, ...]. A single target runs without a batch of
    gradients. The autograd graph is freed after the `last` ones."""
    one, count = len(seeds[0]) == 1, len(seeds[0])
    given = [seed[0] for seed in seeds] if one else seeds
    found = torch.autograd.grad(
        ends, leaves, given, retain_graph=not last, allow_unused=True, is_grads_batched=not one
    )
    if all(gradient is None for gradient in found):
        raise InputError(
            f"{function}: the targets do not depend on the input that relevance is read at; choose other numbers of the "
            "output, or another input"
        )
    return [
        leaf.new_zeros(count, *leaf.shape) if gradient is None else gradient[None] if one else gradient
        for leaf, gradient in zip(leaves, found, strict=True)
    ]


def _reduced(relevance: Tensor, reduce: Reduce) -> Tensor:
    """Relevance [targets, *leaf.shape], whole or summed over dimension 1 of the leaf."""
    return relevance.sum(2) if reduce == "channels" and relevance.dim() >= 3 else relevance


class SavedBytes:
    """The largest value that a forward saves for its backward, in bytes, weights not counted."""

    def __init__(self, explained: Explained) -> None:
        self.weights = set(_pointers(explained.parameters())) | set(_pointers(explained.buffers()))
        self.largest = 1

    def pack(self, tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in self.weights:
            self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return tensor.detach()  # an output that saves itself would never be freed where no backward goes through it

    def chunk(self, device: torch.device) -> int:
        largest = min(MEMORY // (ALIVE * self.largest), LARGEST_CHUNK)
        if device.type == "cpu":
            largest = min(largest, max(IN_CACHE // self.largest, LEAST_IN_CACHE))
        return max(1, largest)


def _pointers(tensors: Iterator[Tensor]) -> Iterator[int]:
    return (tensor.untyped_storage().data_ptr() for tensor in tensors)
