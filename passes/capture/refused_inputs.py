"""Which optional inputs a model refuses, found by running the model with and without them."""

from __future__ import annotations

from typing import Any

from torch import nn

from lxt_fx.base.errors import CaptureError, InputError
from lxt_fx.base.on_meta import on_meta
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.verify import forward_difference

SAME = 1e-4
"""Two outputs within this difference are the same, up to the rounding of another kernel."""


def without_refused_inputs(model: nn.Module, example: Example) -> tuple[Example, Any]:
    """The example without the optional inputs that the model itself fills in differently, and the model's output.

    Such inputs are dropped, and the model computes them itself: RoBERTa, for example, counts positions from its padding
    index. A model on the meta device computes no values, so nothing is dropped there and the output is None.
    """
    if on_meta(model, example.kwargs):
        return example, None
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
    assert isinstance(error, Exception)
    raise InputError(
        f"transform: {type(model).__name__} itself fails on the example inputs ({', '.join(example.kwargs)}): "
        f"{type(error).__name__}: {error}"
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


