"""Capture of the path through a model that has a backward."""

from __future__ import annotations

from torch import nn

from lxt_fx.base.errors import CaptureError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.on_meta import on_meta
from lxt_fx.passes.capture.as_in_a_call import as_in_a_call
from lxt_fx.passes.capture.autograd_functions import Functions, own_backwards_as_ops, own_backwards_found
from lxt_fx.passes.capture.capture import Captured, torch_state_restored
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.refused_inputs import answer_or_error
from lxt_fx.passes.capture.try_sizes import capture_and_try_sizes


def captured_with_backwards(model: nn.Module, example: Example, functions: Functions, *, dynamic: bool) -> Captured:
    """The model's graph as of a call whose inputs ask for a gradient. `functions` is what is known of its
    `autograd.Function`s.

    Where gradients are off, a model may call other kernels. If the capture meets a Function that no run on the example met,
    the model runs once more with gradients on, so that its backward is measured, and is captured again. Raises
    CaptureError.
    """
    failed: CaptureError | None = None
    captured: Captured | None = None
    try:
        captured = _captured(model, example, functions, dynamic)
    except CaptureError as error:
        failed = error
    if functions.unknown and not on_meta(model, example.kwargs):
        known = len(functions.own)
        with torch_state_restored(), own_backwards_found(functions):
            answer_or_error(model, example)  # an error that it raises here, it raises in the capture too
        if len(functions.own) > known:
            return _captured(model, example, functions, dynamic)
    if captured is None:
        assert failed is not None
        raise failed
    return captured


def _captured(model: nn.Module, example: Example, functions: Functions, dynamic: bool) -> Captured:
    with gradients_on(), as_in_a_call(model), own_backwards_as_ops(functions):
        return capture_and_try_sizes(model, example, dynamic=dynamic)
