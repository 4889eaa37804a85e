"""The lens of a model: one matrix for each layer, averaged over prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.many_targets import check_chunk
from lxt_fx.attribution.non_finite import is_finite
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, steps
from lxt_fx.compiler.options import Rules
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.inputs.kinds import kind_of
from lxt_fx.inside.lens.lens_result import Lens, LensFacts
from lxt_fx.inside.lens.residuals import Positions, Residuals, residuals, text_call
from lxt_fx.tasks.reading import opened_with

FUNCTION = "lens"

BATCH = 8
"""How many prompts run at once unless it is said."""


@lasting
def lens(
    model: nn.Module | Any,
    inputs: Any,
    *,
    processor: Any = None,
    positions: Positions = None,
    rules: Rules | None = None,
    batch: int = BATCH,
    chunk: int | None = None,
    progress: bool | None = None,
) -> Lens:
    """What the residual stream of each layer stands for at the output: for each layer l the matrix

        J_l = mean over prompts of 1 / |V| sum over t in V, t' in V, t' >= t of d h_L,t' / d h_l,t

    where h_l,t is the residual stream before layer l at position t, h_L that behind the last layer, V the `positions` of a
    prompt, and the derivative that of the rules. With `rules="gradient"` this is the Jacobian lens, with `"cp_lrp"` that of
    the network with norms and attention held, which rebuilds a network without biases exactly: h_L,t' = sum over t of
    (d h_L,t' / d h_l,t) h_l,t. `Lens.read` shows what the layers of a text say by it.

        found = lxt_fx.lens(model, texts, processor=tokenizer, rules="gradient", positions=slice(1, None))
        print(found.read("The capital of France is"))

    `model` is a causal language model, what `transform` made from one, or a pipeline. `inputs` is a list of prompts, of
    which `batch` run at once; one prompt; or inputs by name. `positions` are those of each prompt that count, without
    padding: None for all, a slice, numbers. `rules` are a table or its name, by default those of the module, `attnlrp` for
    a model. The backward runs once for each unit of the residual stream, `chunk` of them at once; None chooses that by
    memory. `progress` is as in `lxt_fx.progress`, for this call.

    Raises InputError for what is no text of a causal language model, for positions that a prompt does not have, for a
    module in explicit form or for some positions only; NonFiniteError where a matrix is not finite.
    """
    check_chunk(chunk, FUNCTION)
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"{FUNCTION}: batch must be a whole number of at least 1, got {batch!r}")
    module, processor = opened_with(model, processor, FUNCTION)
    with gradients_on(), autocast_off():
        total, facts, prompts, count = None, None, 0, 0
        for some in _batches(inputs, batch):
            call = text_call(module, processor, some, FUNCTION, rules)
            mask = call.mask(positions, FUNCTION)
            sums = _summed(residuals(call, FUNCTION), mask, chunk)
            total = sums if total is None else total.add_(sums)
            prompts, count = prompts + len(mask), count + int(mask.sum())
            facts = facts or LensFacts.of(call.explained, weights_hash(call.explained), tuple(call.places))
        if total is None or facts is None:
            raise InputError(f"{FUNCTION}: there is no prompt to average over; give one, or a list of some")
        matrices = total / prompts
        if not is_finite([matrices]):
            layer = next(at for at, one in enumerate(matrices) if not is_finite([one]))
            raise NonFiniteError(
                f"{FUNCTION}: the matrix of residual.{layer} is not finite; try a wider dtype (model.float())"
            )
        return Lens(matrices.cpu(), facts.counted(prompts, count), call.explained, processor)


def _batches(inputs: Any, size: int) -> Iterator[Any]:
    """A list of prompts in parts; anything else as it is."""
    if kind_of(inputs) != "list":
        yield inputs
        return
    for start in steps("prompts", range(0, len(inputs), size), len(inputs), size):
        yield inputs[start : start + size]


def _summed(stream: Residuals, mask: Tensor, chunk: int | None) -> Tensor:
    """[layers, hidden, hidden] in at least float32: the sum over prompts of the mean over their positions."""
    stream.check_causal(mask)
    last = stream.values[-1]
    wide = torch.promote_types(last.dtype, torch.float32)
    counts = mask.to(last.device, wide)
    shares = counts / counts.sum(1, keepdim=True)
    found = torch.zeros(len(stream.values) - 1, stream.hidden, stream.hidden, dtype=wide, device=last.device)
    for start, rows in stream.rows(mask, chunk):
        for layer, one in enumerate(rows):
            found[layer, start : start + len(one)] = torch.einsum("ubth,bt->uh", one.to(wide), shares)
    return found
