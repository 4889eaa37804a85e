"""Relevance at every place inside a model at once, from one forward and one backward."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.attributed import gathered
from lxt_fx.attribution.many_targets import check_chunk
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting
from lxt_fx.compiler.options import Rules
from lxt_fx.inside.inside_call import InsideCall, inside_call
from lxt_fx.inside.latent_result import Latent, made_value
from lxt_fx.tasks.explain import explanations_from

FUNCTION = "latent"

DEFAULT = ("residual.*", "attention.*.heads", "mlp.*.neurons")
"""The places that are read if none are named: the residual stream, the heads and the neurons of each layer."""


@lasting
def latent(
    explained: nn.Module | Any,
    inputs: Any,
    target: TargetsLike | Sequence[TargetsLike] = None,
    places: str | Sequence[str] = DEFAULT,
    *,
    processor: Any = None,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    chunk: int | None = None,
    progress: bool | None = None,
) -> Latent:
    """The relevance and the activation at places inside a model: of its residual stream, heads, neurons, features.

    `explained` is what `transform` made; a model is transformed on these inputs, under `attnlrp`. `inputs`, `target`,
    `answer`, `labels`, `rules` and `chunk` are as in `explain`, and so is `processor`, a tokenizer or processor: a text
    needs one, inputs by name do not. `places` are standard names (`lxt_fx.places` lists them), module paths or `%node`s,
    where `*` stands for one part between dots.

        found = lxt_fx.latent(explained, "The capital of France is", " Paris", processor=tokenizer)
        found.relevance["mlp.11.neurons"]      # [batch, tokens, neurons], at least float32
        found.top(10, "mlp.*.neurons")         # the neurons that spoke most for the answer, with their tokens
        found.heads()                          # [layers, heads]

    The relevance of a value is value * gradient, as that of an input is (AttnLRP, Achtibat et al. 2024, section 3.3: the
    relevance of latent neurons is a by-product of one backward), and in explicit form the relevance itself. Summed over a
    cut of the network, such as the residual stream between two layers, it is the explained number less what the ops behind
    the cut absorb, which `audit` lists. The forward and the backward run once, whatever the number of places.

    Raises InputError for inputs and targets that do not fit, and for a module that answers at some positions only;
    UnknownNameError for a place that there is not; NonFiniteError where relevance is NaN or infinite.
    """
    check_chunk(chunk, FUNCTION)
    with gradients_on():
        start = time.perf_counter()
        inside = inside_call(
            explained, processor, inputs, target, places, FUNCTION, answer=answer, labels=labels, rules=rules
        )
        return latent_of(inside, FUNCTION, start, chunk)


def latent_of(inside: InsideCall, function: str, start: float, chunk: int | None = None) -> Latent:
    """The backward of a call, begun at `start` (`time.perf_counter`), whose forward has run. Error messages name the
    `function`. Raises NonFiniteError where relevance is NaN or infinite."""
    found: list[list[Tensor]] = [[] for _ in inside.places]
    chunks = _at_leaves(inside, found, chunk)
    attributed = gathered(inside.leaves, inside.call.numbers, chunks, inside.run.values, function, start)
    relevance = [torch.cat(parts)[: inside.targets] for parts in found]  # behind them may come one for a check
    if not is_finite(relevance):
        numbers, said = inside.call.numbers, f"{function}: an explained number, or its relevance at a place,"
        raise_non_finite(inside.leaves.module, inside.leaves.bound, lambda out: numbers.totals(out)[0].sum(), said)
    explanations = explanations_from(inside.call, inside.leaves, attributed, several=inside.several)
    values = {
        name: made_value(inside, place, activation, each)
        for (name, place), activation, each in zip(inside.places.items(), inside.run.inside, relevance, strict=True)
    }
    return Latent(values, tuple(explanations), inside.several)


def _at_leaves(inside: InsideCall, found: list[list[Tensor]], chunk: int | None) -> Iterator[list[Tensor]]:
    """The relevance of the leaves for one chunk of targets after another; that of the places is put into `found`, on the
    CPU."""
    leaves = list(inside.leaves.leaves.values())
    for parts in inside.run.relevance([*leaves, *inside.run.inside], chunk):
        for into, part in zip(found, parts[len(leaves) :], strict=True):
            into.append(part.cpu())
        yield parts[: len(leaves)]
