"""The relevance of every input of a call at once, for many numbers: what every way to explain a model is made of."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.embeddings import as_called
from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.many_entries import Numbers
from lxt_fx.attribution.many_targets import check_chunk, relevance_by_leaf
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained


@dataclass(frozen=True, slots=True, eq=False)
class Attributed:
    """The relevance of each input of a call, by its name, for each number: on the CPU and at least float32.

    An input that is looked up by tokens has [numbers, batch, tokens, units]: all that its tokens are looked up as, one
    lookup behind the other, or 1 unit with their sum. Any other input has [numbers, *its own shape]. `values` [numbers,
    ...] are the numbers, on the CPU. `seconds` is the time of the forward and the backward.
    """

    relevance: Mapping[str, Tensor]
    values: Tensor
    seconds: float


def call_at_all_leaves(explained: Explained, inputs: Mapping[str, Any], function: str) -> LeafCall:
    """The call with these inputs, with relevance read at every leaf that it has. Error messages name the `function`.

    Raises CallError for inputs that do not fit, and InputError where none of them is a leaf.
    """
    explained._refuse_hooks(function)
    named = explained._named((), as_called(explained, inputs))
    module, bound = explained._prepared((), named)
    bound = {name: value.detach() if isinstance(value, Tensor) else value for name, value in bound.items()}
    leaves = module._new_leaves(bound)
    if not leaves:
        raise InputError(
            f"{function}: none of the inputs carries relevance; {module.record.model_class} carries it from "
            f"{', '.join(module.record.leaves)}, which must be given as floating-point tensors"
        )
    return LeafCall(explained, module, named, bound | leaves, leaves)


def attributed(
    call: LeafCall, numbers: Numbers, function: str, *, chunk: int | None = None, units: bool = True
) -> Attributed:
    """The relevance of all leaves of the call for these numbers, from one forward. `chunk` numbers run backward at once,
    None chooses it by memory. With `units=False` what a token is looked up as is summed chunk by chunk, so that the memory
    does not grow with numbers x units. Error messages name the `function`.

    Raises InputError where a number does not depend on the inputs, or a lookup has no place for each token; and
    NonFiniteError if a number or its relevance is not finite.
    """
    check_chunk(chunk, function)
    start = time.perf_counter()
    chunks, values = relevance_by_leaf(call, numbers, chunk, function)
    return gathered(call, numbers, chunks, values, function, start, units=units)


def gathered(
    call: LeafCall,
    numbers: Numbers,
    chunks: Iterable[list[Tensor]],
    values: Tensor,
    function: str,
    start: float,
    *,
    units: bool = True,
) -> Attributed:
    """What `attributed` returns, from the relevance of the leaves for one chunk of numbers after another. `start` is the
    time at which the forward began."""
    found: dict[str, list[Tensor]] = {}
    for by_leaf in chunks:
        for name, part in by_input(call, by_leaf, units, function):
            found.setdefault(name, []).append(part.cpu())
    relevance = {name: torch.cat(parts) for name, parts in found.items()}
    values, seconds = values.cpu(), time.perf_counter() - start
    if not is_finite([values, *relevance.values()]):
        said = f"{function}: an explained number, or its relevance,"
        raise_non_finite(call.module, call.bound, lambda output: numbers.totals(output)[0].sum(), said)
    return Attributed(relevance, values, seconds)


def by_input(call: LeafCall, by_leaf: list[Tensor], units: bool, function: str) -> Iterator[tuple[str, Tensor]]:
    """The relevance of each input of the call, from that of each of its leaves."""
    names = leaf_inputs(call)
    lookups: dict[str, list[Tensor]] = {}
    for (leaf, value), part in zip(call.leaves.items(), call.of_tokens(by_leaf), strict=True):
        name, tokens = names[leaf]
        if tokens is None:
            yield name, part
            continue
        if part.shape[1 : 1 + tokens.dim()] != tokens.shape:
            raise InputError(
                f"{function}: {call.module.record.model_class} looks {name} {list(tokens.shape)} up as "
                f"{list(value.shape)}, which does not say where each token is; call "
                f"explained.with_leaves({name}=...): relevance is leaf * leaf.grad"
            )
        flat = part.flatten(1 + tokens.dim()) if part.dim() > 1 + tokens.dim() else part[..., None]
        lookups.setdefault(name, []).append(flat if units else flat.sum(-1, keepdim=True))
    for name, parts in lookups.items():
        yield name, torch.cat(parts, -1) if units else torch.stack(parts).sum(0)


def leaf_inputs(call: LeafCall) -> dict[str, tuple[str, Tensor | None]]:
    """For each leaf the input that it is made of, and its tokens; the leaf itself and None if it was given as it is."""
    made_of = {front.leaf: front.reads[0] for front in call.module._fronts}
    found: dict[str, tuple[str, Tensor | None]] = {}
    for leaf in call.leaves:
        name = made_of.get(leaf, leaf)
        tokens = None if leaf in call.named else call.named.get(name)
        found[leaf] = (name, tokens) if isinstance(tokens, Tensor) else (leaf, None)
    return found
