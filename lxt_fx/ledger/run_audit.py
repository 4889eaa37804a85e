"""The audit: one run with a tap on every edge, one backward for each explained number, and a ledger that must close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.embeddings import Inputs, as_called
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.attribution.target_entry import Choice, Reading
from lxt_fx.attribution.text_input import texts_by_example, texts_of_logits
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, stage, steps
from lxt_fx.compiler.nested_inputs import with_leaves_in
from lxt_fx.ledger.close_books import close_books
from lxt_fx.ledger.goals import Asked, check_form
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.ledger.meter import Meter
from lxt_fx.ledger.taps import Taps


@lasting
def audit(
    explained: nn.Module,
    inputs: Inputs,
    target: TargetsLike = None,
    *,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Ledger:
    """Where all relevance went: what each source received and what each node absorbed, adding up to the explained number.

    For a node with output o and carrying operands a_i, leak = <o, g_o> - sum_i <a_i, g_i>, where g_i is the gradient that
    the node passes to a_i. The relevance of the sources plus the leaks of all nodes is the explained value. For each leak
    the ledger states the cause, computed by the rule's formula, and the part that no formula accounts for.

    `explained` is a transformed module, or a model, which is transformed on these inputs under `attnlrp`. `inputs` are
    those of a call by name, `[batch, ...]`, or in order. `target` is what
    `explain` takes, for each example of the batch; or a list (or a tensor of indices) with one for each example; or a
    function of the output that returns one number for each example ([batch]), or a scalar for all of them. `tokenizer`
    gives names to tokens, `labels` to classes. The forward runs once, node by node; the backward once for each example. All
    sums are in float64. `progress` is as in `lxt_fx.progress`, for this call.

    The audit proves the graph in the dtype of its weights, so it runs without the caller's `torch.autocast`.

    Raises InputError where no input carries relevance, or the target is not one number an example; CallError for inputs
    that were not captured; NonFiniteError where relevance is NaN or infinite.
    """
    with gradients_on(), autocast_off():
        given, positional = _given(inputs)
        called = as_explained(explained, positional, given, "audit")
        called._refuse_hooks("audit")
        check_form(called)
        named = called._named(positional, as_called(called, given))
        explained, bound = called._prepared((), named)
        leaves, meter = explained._new_leaves(bound), Meter()
        if not leaves:
            raise InputError(
                f"audit: none of the inputs carries relevance; {explained.record.model_class} carries it from "
                f"{', '.join(explained.record.leaves)}, which must be given as floating-point tensors"
            )
        bound = with_leaves_in(bound, leaves)
        asked = Asked(Reading.of("audit", explained, labels), target, texts_of_logits(named, bound, tokenizer))
        with stage("running the forward, node by node"):
            goals = asked.goals(explained._run_by(Taps(explained, meter), bound))
        relevance = _backward(goals, leaves, meter)
        if not is_finite([goal.value for goal in goals] + [r for found in relevance.values() for r in found]):

            def again(output: Any) -> Tensor:
                return torch.stack([goal.value for goal in asked.goals(output)]).sum()

            raise_non_finite(explained, bound, again, f"audit: {goals[0].said}, or its relevance,")
        read = texts_by_example(named, bound, tokenizer) if "inputs_embeds" in explained.record.inputs else []
    with stage("closing the books"):
        return close_books(explained, goals, relevance, meter.readings(len(goals)), [text.tokens for text in read])


def _given(inputs: Inputs) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The inputs by name, and those in order."""
    if isinstance(inputs, Mapping):
        return dict(inputs), ()
    return {}, inputs if isinstance(inputs, tuple) else (inputs,)


def _backward(goals: list[Choice], leaves: Mapping[str, Tensor], meter: Meter) -> dict[str, list[Tensor]]:
    """leaf * gradient of each leaf for each example, in float64. The taps write to `meter` on the way."""
    relevance: dict[str, list[Tensor]] = {name: [] for name in leaves}
    for example, goal in steps("auditing examples", enumerate(goals), len(goals)):
        meter.example = example
        found = torch.autograd.grad(
            goal.value, list(leaves.values()), retain_graph=example + 1 < len(goals), allow_unused=True
        )
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
            value = leaf.detach().double()
            relevance[name].append(torch.zeros_like(value) if gradient is None else value * gradient.double())
    return relevance
