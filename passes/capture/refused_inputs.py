"""Which optional inputs a model refuses, found by running the model with and without them."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import Any

from torch import nn

from lxt_fx.base.as_it_was import Written, as_it_was, runs_logged
from lxt_fx.base.errors import CaptureError, InputError
from lxt_fx.base.on_meta import on_meta
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.padded import padded, with_masks_of_ones
from lxt_fx.passes.capture.short_example import short_example
from lxt_fx.passes.verify import forward_difference

SAME = 1e-4
"""Two outputs within this difference are the same, up to the rounding of another kernel."""


def without_refused_inputs(model: nn.Module, example: Example) -> tuple[Example, Any]:
    """The example without the optional inputs that the model itself fills in differently, and the model's output.

    Such inputs are dropped, and the model computes them itself: RoBERTa, for example, counts positions from its padding
    index. Padded texts are tried too: OPT counts positions from the mask. A model that finds its padding by itself if it
    gets no mask needs one in each call. A model on the meta device computes no values, so nothing is dropped there and the
    output is None.

    Raises InputError for a model that fails on the example, or answers differently when it is called again.
    """
    if on_meta(model, example.kwargs):
        return example, None
    with runs_logged() as runs:
        example, expected = _in_one_way(model, example)
        counted = _counted_from_padding(model, example)
        if counted:
            example = example.without(counted)
            expected = example.call(model)
    if not answers_after(model, runs.of(expected), example, expected):
        raise _answers_differently(model, example)
    if _finds_its_padding(model, example):
        example = replace(example, optional=tuple(name for name in example.optional if not _is_mask(name)))
    return example, expected


def answers_after(model: nn.Module, written: Written, example: Example, expected: Any) -> bool:
    """Whether the model still gives the expected output after one of its runs has written what it writes."""
    if not written:
        return True
    with as_it_was(model):
        written.again()
        return _same(expected, answer_or_error(model, example))


def _answers_differently(model: nn.Module, example: Example) -> InputError:
    return InputError(
        f"transform: {type(model).__name__} answers differently when it is called again with the same inputs "
        f"({', '.join(example.kwargs)}): its forward changes something that the next call reads (a counter, a buffer, "
        "an attribute), which no graph can follow; give a model whose answer depends on its inputs only"
    )


def _is_mask(name: str) -> bool:
    return name.endswith("attention_mask")


def _counted_from_padding(model: nn.Module, example: Example) -> tuple[str, ...]:
    """The optional inputs that the model computes from the mask or the padding, if they are missing."""
    texts, others = padded(model, example), tuple(name for name in example.optional if not _is_mask(name))
    if texts is None or not others:
        return ()
    full = answer_or_error(model, texts)
    if isinstance(full, Exception) or _same(full, answer_or_error(model, texts, others)):
        return ()
    counted = tuple(name for name in others if not _same(full, answer_or_error(model, texts, (name,))))
    return counted or others


def _finds_its_padding(model: nn.Module, example: Example) -> bool:
    """Whether the model answers differently to padded texts without a mask than to a mask of ones."""
    texts, masks = padded(model, example), tuple(name for name in example.optional if _is_mask(name))
    if texts is None or not masks:
        return False
    full = answer_or_error(model, with_masks_of_ones(texts))
    return not isinstance(full, Exception) and not _same(full, answer_or_error(model, texts, example.optional))


def _same(full: Any, found: Any) -> bool:
    return not isinstance(found, Exception) and forward_difference(full, found) <= SAME


def _in_one_way(model: nn.Module, example: Example) -> tuple[Example, Any]:
    """The first way to call a model on which it does not fail. Raises the error of the first one if there is none."""
    errors = list[InputError]()
    for way in (example, *example.instead):
        try:
            return _without_refused(model, way)
        except InputError as error:
            errors.append(error)
    raise errors[0]


def _without_refused(model: nn.Module, example: Example) -> tuple[Example, Any]:
    """The example without the optional inputs that change the answer, and the answer. Of a long text that is tried on a
    part."""
    if (short := short_example(example)) is not None:
        with suppress(InputError):
            accepted, _ = _without_refused(model, short)
            whole = example.without(tuple(example.kwargs.keys() - accepted.kwargs.keys()))
            expected = answer_or_error(model, whole)
            if not isinstance(expected, Exception):
                return whole, expected
    whole = example
    for _ in range(len(example.optional) + 1):
        expected = answer_or_error(model, example, example.optional)
        full = answer_or_error(model, example)
        if not isinstance(full, Exception) and forward_difference(expected, full) <= SAME:
            return example, full
        if not example.optional:
            break
        worst = next((n for n in example.optional if not _same_without(model, example, n)), example.optional[-1])
        example = example.without((worst,))
    error = answer_or_error(model, example)
    if not isinstance(error, Exception):
        raise _answers_differently(model, example)
    decoder = tuple(name for name in whole.kwargs if name.startswith("decoder_"))
    if example.made and decoder:  # some models make the decoder's input of the encoder's
        return _without_refused(model, whole.without(decoder))
    advice = "\n  lxt_fx made these inputs; give those of a call: transform(model, kwargs={...})" if example.made else ""
    raise InputError(
        f"transform: {type(model).__name__} itself fails on the example inputs ({', '.join(example.kwargs)}): "
        f"{type(error).__name__}: {error}{advice}"
    ) from error


def _same_without(model: nn.Module, example: Example, name: str) -> bool:
    others = tuple(other for other in example.optional if other != name)
    full, bare = answer_or_error(model, example, others), answer_or_error(model, example, example.optional)
    if isinstance(full, Exception) or isinstance(bare, Exception):
        return False
    return forward_difference(bare, full) <= SAME


def answer_or_error(model: nn.Module, example: Example, without: tuple[str, ...] = ()) -> Any:
    """What the model answers to the example without some of its inputs, or the exception that it raises."""
    try:
        return example.call(model, without)
    except CaptureError:
        raise
    except Exception as error:  # whatever the model raises is reported by the caller
        return error


