"""The inputs room as `explain` uses it: what a person has, as the inputs of a call, and the tokenizer that names tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.base.errors import InputError
from lxt_fx.base.streamed_weight import StreamedWeight
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.read import picture_inputs, read_inputs
from lxt_fx.inputs.tools import tools_of, unpacked
from lxt_fx.passes.capture.offloaded import is_offloaded
from lxt_fx.tasks.explained_call import features_of


def opened_with(model: Any, processor: Any, function: str) -> tuple[nn.Module, Any]:
    """The model without its wrappers, and its processor: those of a pipeline, if one was given."""
    return unpacked(model, processor, function)


def read(
    model: nn.Module, processor: Any, inputs: Any, function: str, *, answer: Any, sampling_rate: int | None
) -> tuple[Given, Tokenizer | None]:
    """The inputs of the call, and the tokenizer, None if there is none. Inputs that are read already stay as they are.
    Raises InputError for a model without values."""
    if _has_no_values(model):
        raise InputError(
            f"{function}: {type(model).__name__} is on the meta device, where tensors have no values, so there is nothing "
            "to explain; load its parameters"
        )
    features = features_of(model)
    if features is not None and processor is None:
        processor = getattr(model, "tokenizer", None)
    tokenizer = tools_of(processor, inputs, function).tokenizer
    if isinstance(inputs, Given):
        return inputs, tokenizer
    called = model if features is None else _ByName(model, features)
    return read_inputs(called, processor, inputs, function, answer=answer, sampling_rate=sampling_rate), tokenizer


def _has_no_values(model: nn.Module) -> bool:
    """Whether all parameters are on the meta device, and no hook of accelerate loads them for a call."""
    parameters = list(model.parameters())
    lost = [parameter.is_meta and not isinstance(parameter, StreamedWeight) for parameter in parameters]
    empty = bool(lost) and all(lost)
    return empty and not is_offloaded(model)


def read_picture(model: nn.Module, processor: Any, picture: Any, function: str) -> Given:
    """The inputs of the call of a model that is explained for its picture, whatever other inputs it has."""
    tools_of(processor, picture, function)
    return picture if isinstance(picture, Given) else picture_inputs(model, processor, picture, function)


class _ByName(nn.Module):
    """A model that takes a text's features in one dict, called with them by name, as the inputs room calls a model."""

    def __init__(self, model: nn.Module, features: str) -> None:
        super().__init__()
        self.model, self.features = model, features

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None) -> Any:
        """The model's own output."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        return self.model(**{self.features: {name: value for name, value in given.items() if value is not None}})
