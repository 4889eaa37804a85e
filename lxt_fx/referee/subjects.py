"""Models that are asked: from a folder, a name or an object, with what the tasks need to know of each."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.transformers_internals import auto_classes
from lxt_fx.faithfulness.removed_units import Unit
from lxt_fx.passes.capture.example import token_embedding
from lxt_fx.referee.case import Kind, Subject

SAVING: Mapping[str, Any] = {"use_cache": False, "logits_to_keep": 1}
"""Arguments of a call that save work: a causal model's cache, and the logits of positions that nothing asks for."""


def subject(
    model: nn.Module | str | Path,
    processor: Any | None = None,
    *,
    name: str | None = None,
    unit: Unit | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Subject:
    """A model as the bench asks it: a causal language model, an encoder of texts without a head, or a model of pictures.

    `model` is an object, which stays as it is, or a folder or name from which transformers loads it in `dtype` to `device`,
    in evaluation mode, with its tokenizer or image processor. `processor` is needed with an object, except for tasks whose
    pictures need no preparing. `unit` is what is removed at once: a token, or for pictures the side of a patch, by default
    the model's `patch_size`. `name` is how results call it.

    Raises InputError for a model that cannot be loaded or is of another kind, and for pictures without a patch size.
    """
    if isinstance(model, (str, Path)):
        loaded, own = load(str(model), dtype, device)
        processor = own if processor is None else processor
        name = name or Path(model).name or str(model)
    else:
        loaded = model
    if not isinstance(loaded, nn.Module):
        raise InputError(f"bench: a model is a folder, a name or a torch.nn.Module, got {type(loaded).__name__}")
    kind = kind_of(loaded)
    taken = set(inspect.signature(loaded.forward).parameters)
    constants = {key: value for key, value in SAVING.items() if kind == "language" and key in taken}
    return Subject(name or type(loaded).__name__, loaded, kind, processor, _unit(loaded, kind, unit), constants)


def kind_of(model: nn.Module) -> Kind:
    """What a model is for: causal language models predict the next token, models that read pictures alone answer about
    them, encoders of texts without a head embed a text.

    Raises InputError for any other model.
    """
    taken, named = set(inspect.signature(model.forward).parameters), {each.__name__ for each in type(model).__mro__}
    if "pixel_values" in taken and "input_ids" not in taken:
        return "image"
    if {"input_ids", "inputs_embeds"} <= taken and not {"decoder_input_ids", "pixel_values"} & taken:
        if named & _causal():
            return "language"
        if token_embedding(model) is not None and getattr(model, "base_model", None) is model:
            return "similarity"
    raise InputError(
        f"bench: {type(model).__name__} is no causal language model, no encoder of texts without a head and no model that "
        "reads pixel_values alone; load it by AutoModelForCausalLM, AutoModel or AutoModelForImageClassification"
    )


def load(name: str, dtype: torch.dtype, device: str | torch.device) -> tuple[nn.Module, Any]:
    """The model of a folder or name in evaluation mode, and its tokenizer or image processor (None where an image model has
    none).

    Raises InputError for what transformers cannot load, and for models of another kind.
    """
    import transformers

    config = _loaded(transformers.AutoConfig, name, "config")
    architecture = next(iter(config.architectures or ()), "")
    kinds = {auto.__name__: names for names, auto in auto_classes()}
    pictures = architecture in kinds["AutoModelForImageClassification"]
    if not pictures and architecture not in kinds["AutoModelForCausalLM"]:
        own = getattr(transformers, architecture, None)
        if own is None:
            raise InputError(
                f"bench: {name} is a {architecture or 'model without architectures in its config'}, which transformers "
                "does not have; load it in Python and give the object"
            )
        loader = own
    else:
        loader = transformers.AutoModelForImageClassification if pictures else transformers.AutoModelForCausalLM
    model: nn.Module = _loaded(loader, name, "weights", dtype=dtype).to(device).eval()
    if kind_of(model) != "image":
        return model, _loaded(transformers.AutoTokenizer, name, "tokenizer")
    try:
        return model, _loaded(transformers.AutoImageProcessor, name, "image processor")
    except InputError:
        return model, None  # arrays need no preparing, and a task of photos says that it needs one


def _loaded(loader: Any, name: str, part: str, **settings: Any) -> Any:
    try:
        return loader.from_pretrained(name, trust_remote_code=False, **settings)
    except Exception as error:  # whatever transformers and the hub raise for files that they cannot use
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"bench: the {part} of {name} could not be loaded: {first}") from error


def _causal() -> frozenset[str]:
    return next(names for names, auto in auto_classes() if auto.__name__ == "AutoModelForCausalLM")


def _unit(model: nn.Module, kind: Kind, unit: Unit | None) -> Unit:
    if kind != "image":
        if unit not in (None, "token"):
            raise InputError(f"bench: {type(model).__name__} reads tokens, which are its units; got unit={unit!r}")
        return "token"
    side = getattr(getattr(model, "config", None), "patch_size", None) if unit is None else unit
    if not isinstance(side, int) or isinstance(side, bool) or side < 1:
        raise InputError(
            f"bench: {type(model).__name__} reads pictures and its config has no patch_size that is one number; say how "
            "large a removed patch is: unit=16, the pixels of its side"
        )
    return side
