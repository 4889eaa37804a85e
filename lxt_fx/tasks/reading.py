"""The inputs room as `explain` uses it: what a person has, as the inputs of a call, and the tokenizer that names tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.read import read_inputs
from lxt_fx.inputs.tools import tools_of, unpacked


def opened_with(model: Any, processor: Any, function: str) -> tuple[nn.Module, Any]:
    """The model without its wrappers, and its processor: those of a pipeline, if one was given."""
    return unpacked(model, processor, function)


def read(
    model: nn.Module, processor: Any, inputs: Any, function: str, *, answer: Any, sampling_rate: int | None
) -> tuple[Given, Tokenizer | None]:
    """The inputs of the call, and the tokenizer, None if there is none. Inputs that are read already stay as they are."""
    tokenizer = tools_of(processor, inputs, function).tokenizer
    if isinstance(inputs, Given):
        return inputs, tokenizer
    return read_inputs(model, processor, inputs, function, answer=answer, sampling_rate=sampling_rate), tokenizer
