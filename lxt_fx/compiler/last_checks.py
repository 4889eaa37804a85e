"""The last checks of `transform`: module and model answer alike, on the example and on padded texts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import CallError, NonFiniteError
from lxt_fx.base.node_text import op_name
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.streamed_weight import is_streamed
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.captured_model import CapturedModel, cut_by
from lxt_fx.compiler.compiled import Compiled
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.step_checks import check_fused, gradients_on_example
from lxt_fx.passes.canonical.fill_missing import nodes_with_missing
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.capture.padded import PADDINGS, Padding, has_texts, padded
from lxt_fx.passes.capture.refused_inputs import answer_or_error
from lxt_fx.passes.positions.asked_positions import Narrowing
from lxt_fx.passes.verify import check_forward, forward_difference


def difference_to_model(source: CapturedModel, compiled: Compiled) -> float:
    """The difference of the module's output on the example to the model's; NaN on the meta device, where there is nothing
    to compare. Raises ForwardMismatchError where it is too large."""
    begun, gm = compiled.begun, compiled.module
    if isinstance(source.model, Explained) and source.placement is not None and source.expected is None:
        return source.model.record.forward_difference  # the same graph, whose values are moved
    if source.placement is None and on_meta(source.model, begun.example.kwargs) and not is_streamed(source.model):
        return math.nan
    pairs = [(begun.example, source.expected)]
    if source.whole is not None:
        pairs.append((cut_by(begun.fronts, source.whole.example, gm), source.whole.expected))
    settings = source.model_class, compiled.narrowing, compiled.chosen.merged
    return max(checked_on_example(gm, example, expected, *settings) for example, expected in pairs)


def checked_on_example(
    module: Explained,
    example: Example,
    expected: Any,
    model_class: str,
    narrowing: Narrowing | None = None,
    merged: Sequence[str] = (),
) -> float:
    """The difference of the module's output on the example, which has the inputs of its graph, to the model's, `expected`.
    Raises ForwardMismatchError where it is too large, or the fused graph gives another output."""
    with torch_state_restored(), torch.no_grad():
        torch.manual_seed(SEED)  # so that a forward that draws random numbers draws the same ones
        expected = expected if narrowing is None else narrowing.of(expected)
        difference = forward_difference(expected, module.forward(**example.kwargs))
        check_forward(difference, expected, model_class, merged, module)
        check_fused(module, example)
    return difference


def check_missing_values(compiled: Compiled) -> None:
    """Raises NonFiniteError where the example has missing values (NaN), the output is finite and the gradient that
    relevance is read from is not: an op multiplies what is missing by the 0 that the model asks of it. It names the last
    ops that read them."""
    module, example = compiled.module, compiled.begun.example
    if module.record.form != "gradient" or not (missing := nodes_with_missing(module, example.kwargs)):
        return
    outputs = [node for node in module.graph.output_node().all_input_nodes if node in missing]
    if outputs or all(bool(gradient.isfinite().all()) for gradient in gradients_on_example(module, example, fused=True)):
        return
    readers = [node for node in module.graph.nodes if node not in missing and missing & set(node.all_input_nodes)]
    names = ", ".join(f"%{node.name} = {op_name(node)}" for node in readers[:4])
    raise NonFiniteError(
        "transform: the example has missing values (NaN) that the model leaves out, and relevance would be NaN: a backward "
        f"multiplies 0 by what is missing. The last ops that read them: {names}. To go on: give numbers in their place and "
        "the mask of the model, or let the model fill them before it computes with them"
    )


def check_on_padded_texts(source: CapturedModel, compiled: Compiled) -> str:
    """Raises ForwardMismatchError where the module answers to padded texts in another way than the model. Returns a
    sentence for the certificate where they could not be compared; it is empty where they were, or where there are no
    texts."""
    model, example = source.model, source.captured.example
    if isinstance(model, Explained):
        return model.record.padded_note
    if (source.placement is None and on_meta(model, example.kwargs)) or not has_texts(example):
        return ""
    notes = []
    with torch_state_restored(), torch.no_grad():
        for paddings in _together(compiled.module):
            try:
                answer, found = _answers_to_padding(model, example, compiled.module, paddings)
            except _NotCompared as why:
                notes.append(str(why))
                continue
            expected = _narrowed(answer, compiled)
            difference = forward_difference(expected, _where_finite(expected, found))
            check_forward(
                difference, expected, source.model_class, compiled.chosen.merged, compiled.module, "padded texts"
            )
    return notes[0] if notes else ""


class _NotCompared(Exception):
    """Padded texts cannot be compared. The message is a sentence for the certificate; it is caught here."""


def _narrowed(expected: Any, compiled: Compiled) -> Any:
    """The model's output at the positions that the module gives."""
    return expected if compiled.narrowing is None else compiled.narrowing.of(expected)


def _answers_to_padding(
    model: nn.Module, example: Example, explained: Explained, paddings: Sequence[Padding]
) -> tuple[Any, Any]:
    """The outputs of the model and of the module for texts that are padded right and left, beside a full one. Raises
    _NotCompared where the model refuses such texts, or the graph says that it is not valid for them. To be run inside
    `torch_state_restored`."""
    texts = padded(model, example, paddings)
    if texts is None:
        raise _NotCompared("an input of the example is not one for each text, so it cannot be made for other texts")
    expected = answer_or_error(model, texts)
    if isinstance(expected, Exception):
        raise _NotCompared(f"the model refuses them: {_said(expected)}")
    try:
        fitting, bound = explained._prepared((), texts.kwargs | texts.constants)
        torch.manual_seed(SEED)
        return expected, fitting.forward(**bound)
    except CallError as error:
        raise _NotCompared(f"the graph is not valid for them: {_said(error)}") from error


def _said(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _where_finite(expected: Any, found: Any) -> Any:
    """What was found, with the model's own value where that is NaN or infinite: some models give NaN at padding in float64,
    whose least number is -inf in their float32 softmax."""
    wanted, actual = pytree.tree_leaves(expected), pytree.tree_leaves(found)
    if len(wanted) != len(actual):
        return found
    return [_with_non_finite(one, other) for one, other in zip(wanted, actual, strict=True)]


def _with_non_finite(expected: Any, found: Any) -> Any:
    same = isinstance(found, Tensor) and isinstance(expected, Tensor) and expected.shape == found.shape
    if not same or expected.dtype != found.dtype or not found.is_floating_point():
        return found
    return torch.where(expected.isfinite(), found, expected)


def _together(explained: Explained) -> list[Sequence[Padding]]:
    """The paddings of the texts of one batch: all at once, or one beside full texts where the batch size is fixed."""
    fixed = [sizes[0] for sizes in explained.record.sizes.values() if sizes and sizes[0] is not None]
    if not fixed:
        return [PADDINGS]
    full: list[Padding] = ["none"] * (fixed[0] - 1)
    return [[*full, padding] for padding in PADDINGS[1:]]
