"""The tokenizer, image processor and feature extractor that a person gave, alone or in a processor or a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.passes.capture.opened_model import opened


@dataclass(frozen=True, slots=True, eq=False)
class Tools:
    """What makes a model's inputs; None for what was not given. `processor` makes those of a text and pictures together.
    `picture_function` is any function of a picture that returns a tensor, such as a transform of timm."""

    tokenizer: Any = None
    image_processor: Any = None
    feature_extractor: Any = None
    processor: Any = None
    picture_function: Callable[[Any], Any] | None = None


def unpacked(model: Any, processor: Any, function: str) -> tuple[nn.Module, Any]:
    """The model itself and its processor: those of a pipeline of transformers, the model without its wrappers.

    Raises InputError for swapped arguments and for what is no model.
    """
    if _is_pipeline(model):
        own = getattr(model, "processor", None)
        names = ("tokenizer", "image_processor", "feature_extractor")
        found = Tools(**{name: getattr(model, name, None) for name in names}, processor=own)
        return opened(model.model, function), processor if processor is not None else found
    if not isinstance(model, nn.Module) and isinstance(processor, nn.Module):
        raise InputError(
            f"{function}: the model comes first, then its tokenizer or processor; got a {type(model).__name__} first and "
            f"the model ({type(processor).__name__}) second: swap the two"
        )
    if isinstance(model, str):
        raise InputError(
            f"{function}: model must be a torch.nn.Module, got str {model!r}; load the model of this name first, with "
            "AutoModelForCausalLM.from_pretrained or the class that it is for"
        )
    if isinstance(processor, nn.Module):
        raise InputError(
            f"{function}: the second argument must be the model's tokenizer or processor, got a model "
            f"({type(processor).__name__})"
        )
    return opened(model, function), processor


def tools_of(processor: Any, what: Any, function: str) -> Tools:
    """What was given as the processor. Raises InputError where it and the inputs are swapped, or it is nothing of use."""
    if isinstance(processor, Tools):
        return processor
    if processor is None:
        return Tools()
    if is_tokenizer(what) or _is_image_processor(what) or _is_extractor(what) or _is_processor(what):
        raise InputError(
            f"{function}: the tokenizer or processor comes second and the inputs third; got a {type(processor).__name__} "
            f"second and a {type(what).__name__} third: swap the two"
        )
    if is_tokenizer(processor):
        return Tools(tokenizer=processor)
    if _is_processor(processor):
        names = ("tokenizer", "image_processor", "feature_extractor")
        return Tools(**{name: getattr(processor, name, None) for name in names}, processor=processor)
    if _is_image_processor(processor):
        return Tools(image_processor=processor)
    if _is_extractor(processor):
        return Tools(feature_extractor=processor)
    if callable(processor) and not isinstance(processor, type):
        return Tools(picture_function=processor)
    raise InputError(
        f"{function}: the second argument must be a tokenizer, an image processor, a feature extractor or a processor of "
        f"transformers, a function that makes a tensor of a picture, or None; got {_said(processor)}"
    )


def _said(processor: Any) -> str:
    return f"the string {processor!r}" if isinstance(processor, str) else type(processor).__name__


def is_tokenizer(found: Any) -> bool:
    """Whether this is a tokenizer."""
    return callable(getattr(found, "convert_ids_to_tokens", None)) and callable(getattr(found, "decode", None))


def _is_processor(found: Any) -> bool:
    parts = ("tokenizer", "image_processor", "feature_extractor")
    return callable(found) and not is_tokenizer(found) and any(_part(found, part) is not None for part in parts)


def _part(found: Any, name: str) -> Any:
    return None if isinstance(found, type) else getattr(found, name, None)


def _is_image_processor(found: Any) -> bool:
    return callable(found) and "pixel_values" in _input_names(found)


def _is_extractor(found: Any) -> bool:
    names = _input_names(found)
    return callable(found) and ("input_features" in names or "input_values" in names)


def _input_names(found: Any) -> tuple[str, ...]:
    names = _part(found, "model_input_names")
    return tuple(names) if isinstance(names, (list, tuple)) and not is_tokenizer(found) else ()


def _is_pipeline(found: Any) -> bool:
    classes = type(found).__mro__
    return any(cls.__name__ == "Pipeline" and cls.__module__.startswith("transformers.") for cls in classes)
