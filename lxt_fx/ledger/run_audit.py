"""The audit: one run with a tap on every edge, one backward for each explained row, and a ledger that must close."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.embeddings import with_embeddings
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import Choice, TargetLike, choose, class_labels
from lxt_fx.attribution.text_input import TextInput, texts_by_row
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.ledger.close import settle_accounts
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.ledger.taps import Meter, Taps

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]


def audit(
    explained: Explained,
    inputs: Inputs,
    target: TargetLike | Sequence[TargetLike] = None,
    *,
    tokenizer: Tokenizer | None = None,
    labels: Sequence[str] | None = None,
) -> Ledger:
    """Where all relevance went: what each source got, and what each node kept, adding up to the explained number.

    For a node with output o and carrying operands a_i, leak = <o, g_o> - sum_i <a_i, g_i>, where g_i is the gradient that
    the node passes to a_i. Summed over all nodes, relevance at the sources plus the leaks is the explained value; the
    ledger says for each leak its cause, as the row's formula has it, and what no formula accounts for.

    `inputs` are those of the module by name, `[batch, ...]`, or in order; token ids are embedded (`input_ids`). `target` is
    what `explain` takes, for each row of the batch; or a list with one for each row; or a function of the output that
    returns one number for each row ([batch]), or a scalar for all of them. `tokenizer` gives names to tokens, `labels` to
    classes. The forward runs once, node by node; the backward once for each row. All sums are taken in float64.

    Raises InputError where `explained` was not made by `transform`, no input carries relevance, or the target is not one
    number a row; CallError for inputs that were not captured; NonFiniteError where relevance is NaN or infinite.
    """
    if not isinstance(explained, Explained):
        raise InputError(
            f"audit: expected a module made by lxt_fx.transform, got {type(explained).__name__}; "
            "audit(lxt_fx.transform(model), inputs)"
        )
    if explained.record.form != "gradient":
        raise InputError("audit: it reads the fast form; transform the model without form='explicit', which gives the same")
    with gradients_on():
        texts, bound = _bound(explained, inputs, tokenizer)
        explained = explained._fitting(bound)
        leaves = _leaves(explained, bound)
        meter = Meter()
        output = explained._run_by(Taps(explained, meter), bound)
        goals = _goals(explained, output, target, texts, labels)
        relevance = _backward(goals, leaves, meter)
        if not is_finite([goal.value for goal in goals] + [r for found in relevance.values() for r in found]):

            def again(output: Any) -> Tensor:
                return torch.stack([goal.value for goal in _goals(explained, output, target, texts, labels)]).sum()

            raise_non_finite(explained, bound, again, f"audit: {goals[0].said}, or its relevance,")
    return settle_accounts(explained, goals, relevance, meter, [text.tokens for text in texts or []])


def _bound(
    explained: Explained, inputs: Inputs, tokenizer: Tokenizer | None
) -> tuple[list[TextInput] | None, dict[str, Any]]:
    """The inputs by name with every leaf a fresh tensor that asks for a gradient, and the texts they came from."""
    if isinstance(inputs, Mapping):
        given, positional = dict(inputs), ()
    else:
        given, positional = {}, inputs if isinstance(inputs, tuple) else (inputs,)
    ids = given.get("input_ids")
    takes_embeddings = "inputs_embeds" in explained.record.inputs
    given = with_embeddings(explained, given, explained.record.inputs)
    bound = explained._bind(positional, given)
    for name in explained.record.leaves:
        if isinstance(bound.get(name), Tensor) and bound[name].is_floating_point():
            bound[name] = bound[name].detach().clone().requires_grad_(True)
    texts = texts_by_row(ids, bound, tokenizer) if takes_embeddings else None
    return texts, bound


def _leaves(explained: Explained, bound: Mapping[str, Any]) -> dict[str, Tensor]:
    leaves = {name: bound[name] for name in explained.record.leaves if isinstance(bound.get(name), Tensor)}
    leaves = {name: value for name, value in leaves.items() if value.requires_grad}
    if not leaves:
        wanted = ", ".join(explained.record.leaves)
        raise InputError(
            f"audit: none of the inputs carries relevance; {explained.record.model_class} carries it from {wanted}, which "
            "must be given as floating-point tensors"
        )
    return leaves


def _goals(
    explained: Explained,
    output: Any,
    target: TargetLike | Sequence[TargetLike],
    texts: list[TextInput] | None,
    labels: Sequence[str] | None,
) -> list[Choice]:
    """What is explained in each row."""
    if callable(target):
        return _by_function(target, output, _batch(output))
    rows = _batch(output)
    targets = target if isinstance(target, list) else [target] * rows
    if len(targets) != rows:
        raise InputError(f"audit: {len(targets)} targets for {rows} rows; give one target, or a list with one for each row")
    names, kind, at = class_labels(explained, labels), explained.record.model_class, explained.record.positions
    goals = [choose(t, output, names, texts[r] if texts else None, kind, r, at) for r, t in enumerate(targets)]
    return [_checked(goal) for goal in goals]


def _batch(output: Any) -> int:
    tensors = [t for t in pytree.tree_leaves(output) if isinstance(t, Tensor) and t.dim()]
    return tensors[0].shape[0] if tensors else 1


def _by_function(function: Callable[[Any], Tensor], output: Any, rows: int) -> list[Choice]:
    value = function(output)
    name = getattr(function, "__name__", type(function).__name__)
    fits = isinstance(value, Tensor) and (value.numel() == 1 or list(value.shape) == [rows])
    if not fits:
        got = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise InputError(
            f"audit: the target function {name} must return one number for each of the {rows} rows, [{rows}], or a scalar; "
            f"got {got}. Select one element of each row, such as out.logits[:, -1].amax(-1)"
        )
    said = "a function of the output" + ("" if name == "<lambda>" else f", {name}")
    return [_checked(Choice(item, said)) for item in value.reshape(-1)]


def _checked(goal: Choice) -> Choice:
    if not goal.value.requires_grad:
        raise InputError(
            f"audit: {goal.said} does not depend on the input by a differentiable path, so there is nothing to audit; "
            "return a number computed from the output, without detach, item or argmax"
        )
    return goal


def _backward(goals: list[Choice], leaves: Mapping[str, Tensor], meter: Meter) -> dict[str, list[Tensor]]:
    """leaf * gradient of each leaf for each row, in float64, and what the meter reads on the way."""
    relevance: dict[str, list[Tensor]] = {name: [] for name in leaves}
    for row, goal in enumerate(goals):
        meter.row = row
        found = torch.autograd.grad(
            goal.value, list(leaves.values()), retain_graph=row + 1 < len(goals), allow_unused=True
        )
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
            value = leaf.detach().double()
            relevance[name].append(torch.zeros_like(value) if gradient is None else value * gradient.double())
    return relevance
