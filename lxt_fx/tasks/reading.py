"""The inputs room as `explain` uses it: what a person has, as the inputs of a call, and the tokenizer that names tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Given
from lxt_fx.passes.capture.opened_model import opened


def opened_with(model: Any, processor: Any, function: str) -> tuple[nn.Module, Any]:
    """The model without its wrappers, and its processor."""
    return opened(model, function), processor


def read(
    model: nn.Module, processor: Any, inputs: Any, function: str, *, answer: Any, sampling_rate: int | None
) -> tuple[Given, Tokenizer | None]:
    """The inputs of the call, and the tokenizer, None if there is none. Inputs that are read already stay as they are."""
    if isinstance(inputs, Given):
        return inputs, tokenizer_of(processor)
    raise InputError(f"{function}: the inputs must be read already, got {type(inputs).__name__}")


def tokenizer_of(processor: Any) -> Tokenizer | None:
    """The tokenizer in a processor, or the processor if it is one; None if there is none."""
    found = getattr(processor, "tokenizer", None)
    found = processor if found is None else found
    return found if callable(getattr(found, "convert_ids_to_tokens", None)) else None
