"""The models of a benchmark, as a person gives them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.transformers_internals import auto_classes
from lxt_fx.referee.case import Kind, Subject

Models = Subject | Iterable[Subject] | Mapping[str, "nn.Module | tuple[nn.Module, Any]"]
"""Subjects, or by name models with their tokenizer or image processor."""

WANTED = (
    "give {'SmolLM2': (model, tokenizer)}, or one or a list of lxt_fx.referee.case.Subject(name, model, kind, processor, "
    "unit)"
)


def subjects_of(models: Models) -> tuple[Subject, ...]:
    """The models with their names. Raises InputError for anything else, for two of one name, and for none."""
    if isinstance(models, Mapping):
        each = ((name, given if isinstance(given, tuple) else (given,)) for name, given in models.items())
        found = tuple(subject_of(name, *given) for name, given in each)
    elif isinstance(models, Subject):
        found = (models,)
    else:
        listed: list[Any] = list(models) if isinstance(models, Iterable) and not isinstance(models, nn.Module) else [models]
        wrong = [type(one).__name__ for one in listed if not isinstance(one, Subject)]
        if wrong:
            raise InputError(f"bench: models must have names, got {wrong[0]}; {WANTED}")
        found = tuple(listed)
    names = [one.name for one in found]
    if len(set(names)) < len(names) or not names:
        raise InputError(f"bench: give models of different names, got {names}")
    return found


def subject_of(name: str, model: object, processor: object = None) -> Subject:
    """A model of transformers: what it is for by its class, its unit by its config. A language model computes the logits
    behind the last token only, where its forward has `logits_to_keep`.

    Raises InputError for a model of which it is not known what it is for.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"bench: {name!r} is a {type(model).__name__}, no torch module; {WANTED}")
    kind = kind_of(name, model)
    if kind == "image":
        side = getattr(getattr(model, "config", None), "patch_size", None)
        if not isinstance(side, int):
            raise InputError(f"bench: the config of {name!r} has no patch_size; give a Subject with unit=16, say; {WANTED}")
        return Subject(name, model, kind, processor, side)
    keeps = kind == "language" and "logits_to_keep" in inspect.signature(model.forward).parameters
    return Subject(name, model, kind, processor, "token", {"logits_to_keep": 1} if keeps else {})


def kind_of(name: str, model: nn.Module) -> Kind:
    """What a model is for. Raises InputError where its class does not say it."""
    if getattr(model, "main_input_name", "") == "pixel_values":
        return "image"
    own = type(model).__name__
    loaders = {auto.__name__ for names, auto in auto_classes() if own in names}
    if "AutoModelForCausalLM" in loaders:
        return "language"
    if not loaders and own.endswith("Model") and getattr(model, "main_input_name", "") == "input_ids":
        return "similarity"
    raise InputError(f"bench: it is not known what {name!r}, a {own}, is for; say it: {WANTED}")
