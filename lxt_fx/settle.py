"""Which optional inputs a model takes and which sizes its graph holds for, found by asking the model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from lxt_fx.errors import CaptureError, InputError
from lxt_fx.inputs import Example
from lxt_fx.on_meta import on_meta
from lxt_fx.passes.capture import Captured, capture, torch_state_kept
from lxt_fx.passes.verify import forward_difference, tolerance_of

SAME = 1e-4
"""Two outputs are the same up to the rounding of another kernel."""


def settled(model: nn.Module, example: Example) -> tuple[Example, Any]:
    """The example without optional inputs that the model would not fill in the same way, and the model's own output.

    (RoBERTa counts positions from its padding index, for example: there the positions stay the model's business.) A model
    on the meta device gives no values, so it is not asked: the example stays as it is, and there is no output.
    """
    if on_meta(model, example.kwargs):
        return example, None
    for _ in range(len(example.optional) + 1):
        expected = _try_call(model, example, example.optional)
        full = _try_call(model, example)
        if not isinstance(full, Exception) and forward_difference(expected, full) <= SAME:
            return example, full
        if not example.optional:
            break
        worst = next((n for n in example.optional if not _same_without(model, example, n)), example.optional[-1])
        example = example.without((worst,))
    error = _try_call(model, example)
    assert isinstance(error, Exception)
    raise InputError(
        f"transform: {type(model).__name__} itself fails on the example inputs ({', '.join(example.kwargs)}): "
        f"{type(error).__name__}: {error}"
    ) from error


def _same_without(model: nn.Module, example: Example, name: str) -> bool:
    others = tuple(other for other in example.optional if other != name)
    full, bare = _try_call(model, example, others), _try_call(model, example, example.optional)
    if isinstance(full, Exception) or isinstance(bare, Exception):
        return False
    return forward_difference(bare, full) <= SAME


def _try_call(model: nn.Module, example: Example, without: tuple[str, ...] = ()) -> Any:
    try:
        return example.call(model, without)
    except Exception as error:  # whatever the model raises is reported by the caller
        return error


def proven_capture(model: nn.Module, example: Example, *, dynamic: bool) -> Captured:
    """The model's graph with free sizes, tried at another batch and length; or, where it differs from the model there, with
    all sizes fixed to the example's (a model that reads `len(x)` bakes a size in without a word).

    Raises CaptureError where no graph can be had.
    """
    if not dynamic:
        return capture(model, example, dynamic=False)
    captured = _capture_free(model, example)
    if on_meta(model, example.kwargs):
        return captured
    other = example.resized() if captured.example is example else example
    if captured.method != "torch.export" or other is None or _holds_at(model, captured, other):
        return captured
    fixed = capture(model, example, dynamic=False)
    why = "the graph with free sizes differs from the model at other sizes than the example's"
    return replace(fixed, specialised=(why, *fixed.specialised))


def _capture_free(model: nn.Module, example: Example) -> Captured:
    """Captured on batch 2 where the example has batch 1: a size of 1 would be baked in."""
    twice = example.doubled()
    if twice is not None:
        try:
            captured = capture(model, twice, dynamic=True)
            if captured.method == "torch.export":
                return captured
        except CaptureError:
            pass  # the example's own batch is tried next, and its error is the one to report
    return capture(model, example, dynamic=True)


def _holds_at(model: nn.Module, captured: Captured, other: Example) -> bool:
    """Whether graph and model agree on inputs of other sizes; so does a model that refuses them itself."""
    with torch_state_kept(), torch.no_grad():
        expected = _try_call(model, other)
        if isinstance(expected, Exception):
            return True
        found = _try_call(captured.gm, replace(other, constants={}))
        return not isinstance(found, Exception) and forward_difference(expected, found) <= tolerance_of(expected)
