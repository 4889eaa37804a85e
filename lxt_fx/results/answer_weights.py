"""Which tokens of an answer are asked about: a weight for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.one_line import one_line
from lxt_fx.results.readings import TextReading
from lxt_fx.results.words import places_of, shown_alone

Of = str | slice | Sequence[float] | Tensor | None
"""Tokens of an answer: a text that stands in it, a slice of its tokens, a weight for each token, or None for all."""


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A weight for each token of the answer [answer] in float64, and in words which these are."""

    each: Tensor
    said: str


def weights_of(of: Of, tokens: Sequence[str], where: str) -> Weights:
    """The weights on the tokens of an answer. Of tokens that are named, each has the same, and they sum to 1. A text means
    the last place where it stands in the answer.

    Raises InputError for a text that does not stand in the answer, a slice without tokens, and weights that are not one for
    each token, negative, not finite, or all 0.
    """
    count = len(tokens)
    if of is None:
        return _equal(range(count), tokens, "the answer")
    if isinstance(of, str):
        return _equal(_last(of, tokens, where), tokens)
    if isinstance(of, slice):
        chosen = range(count)[of]
        if not chosen:
            raise InputError(f"{where}: of={of} holds none of the {count} tokens of the answer")
        return _equal(chosen, tokens)
    return Weights(_given(of, count, where), "the answer, weighted by token")


def of_each(of: Any, examples: int, batched: bool, where: str) -> list[Of]:
    """The argument `of` for each example: one for all, or of a list of prompts a list with one for each.

    Raises InputError for a list of another length, and for one tensor of weights for several answers."""
    if not batched:
        return [of]
    if of is None or isinstance(of, (str, slice)):
        return [of] * examples
    if not isinstance(of, list) or len(of) != examples:
        got = f"{len(of)} of them" if isinstance(of, list) else type(of).__name__
        raise InputError(
            f"{where}: there are {examples} prompts, so `of` is a text or a slice for all answers, or a list with one for "
            f"each; got {got}"
        )
    return list(of)


def _equal(chosen: range, tokens: Sequence[str], said: str = "") -> Weights:
    each = torch.zeros(len(tokens), dtype=torch.float64)
    each[list(chosen)] = 1 / len(chosen)
    own = shown_alone(tokens)
    return Weights(each, said or f"'{one_line(''.join(own[at] for at in chosen), 60)}'")


def _last(of: str, tokens: Sequence[str], where: str) -> range:
    none, zeros = (False,) * len(tokens), (0,) * len(tokens)
    found = places_of(TextReading(tuple(tokens), None, none, zeros), of, where)
    if not found:
        raise InputError(f"{where}: {of!r} does not stand in the answer; give what does, a slice, or weights")
    return max(found, key=lambda span: span.start)


def _given(of: Sequence[float] | Tensor, count: int, where: str) -> Tensor:
    if isinstance(of, tuple) or not hasattr(of, "__len__"):
        raise InputError(
            f"{where}: `of` is a text in the answer, a slice of its tokens (slice(-3, None): the last three), or a list or "
            f"tensor with a weight for each, got {of!r}"
        )
    try:
        each = torch.as_tensor(of, dtype=torch.float64).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where}: the weights are no numbers: {error}") from error
    if each.shape != (count,):
        raise InputError(
            f"{where}: the answer has {count} tokens, and the weights the shape {list(each.shape)}; give one for each token"
        )
    if not bool(each.isfinite().all()) or bool((each < 0).any()) or not bool(each.any()):
        raise InputError(f"{where}: the weights must be finite, none below 0 and not all 0; got {each.tolist()[:8]}")
    return each
