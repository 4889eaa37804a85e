"""The models of a benchmark, as a person gives them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.referee.case import Subject
from lxt_fx.referee.subjects import subject

OneModel = Subject | nn.Module | str | Path | tuple[nn.Module, Any]
"""A model as it is asked, a model alone or with its tokenizer or image processor, or where transformers loads both from."""

Models = OneModel | Iterable[OneModel] | Mapping[str, OneModel]
"""One model, several, or several by the names that results call them."""


def subjects_of(models: Models) -> tuple[Subject, ...]:
    """The models with their names. Raises InputError for what is no model, for two of one name, and for none."""
    if isinstance(models, Mapping):
        found = tuple(_subject(one, name) for name, one in models.items())
    elif isinstance(models, (Subject, nn.Module, str, Path)) or _is_pair(models):
        found = (_subject(models, None),)
    else:
        found = tuple(_subject(one, None) for one in models) if isinstance(models, Iterable) else (_subject(models, None),)
    names = [one.name for one in found]
    if len(set(names)) < len(names) or not names:
        raise InputError(
            f"bench: give models of different names, got {names}; {{'mine': (model, tokenizer)}} gives them names"
        )
    return found


def _subject(given: Any, name: str | None) -> Subject:
    if isinstance(given, Subject):
        if name not in (None, given.name):
            raise InputError(f"bench: the Subject {given.name!r} is given the name {name!r}; give it one name")
        return given
    model, processor = given if _is_pair(given) else (given, None)
    return subject(model, processor, name=name)


def _is_pair(given: object) -> bool:
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    return isinstance(given[0], nn.Module) and not isinstance(given[1], (nn.Module, Subject))
