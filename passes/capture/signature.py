"""The names under which a model takes its inputs."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Mapping
from inspect import Parameter, Signature
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError


def named_signature(model: nn.Module) -> Signature:
    """The signature of the model's forward. A forward that passes `**kwargs` on, or names no inputs at all, also has the
    named ones of the class that it derives from."""
    own = inspect.signature(model.forward)
    if not any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL) for p in own.parameters.values()):
        return own
    own_first = [found for cls in type(model).__mro__ if (found := _forward_of(cls)) is not None]
    base = next(filter(_names_inputs, own_first[1:]), None)
    if base is None or _names_inputs(own) and not _of_kind(own, Parameter.VAR_KEYWORD):
        return own
    if not _names_inputs(own):
        return base
    added = [p.replace(kind=p.KEYWORD_ONLY) for p in base.parameters.values() if p.kind is not p.VAR_KEYWORD]
    inherited = [p for p in added if p.name not in own.parameters and p.default is not p.empty]
    *listed, rest = own.parameters.values()
    return own.replace(parameters=[*listed, *inherited, rest])


def bound_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Inputs by name, and the names of those that the model must be called with by position, because its forward takes
    `*args`.

    Such inputs have the names of the class that the model derives from, else `args_0`, `args_1`, ... Raises InputError
    where the inputs do not fit the signature.
    """
    own = inspect.signature(model.forward)
    try:
        bound = own.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(
            f"transform: the example inputs do not fit {type(model).__name__}.forward{own}: {error}"
        ) from error
    starred = _of_kind(own, Parameter.VAR_POSITIONAL)
    if starred and starred in bound.arguments:
        names = _positional_names(model, own, len(args))
        if twice := [name for name in names if name in kwargs]:
            raise InputError(f"transform: {twice[0]} of {type(model).__name__} is given by position and by name")
        return dict(zip(names, args, strict=True)) | kwargs, names
    rest = bound.arguments.pop(_of_kind(own, Parameter.VAR_KEYWORD) or "", {})
    return bound.arguments | rest, ()


def by_position(model: nn.Module, given: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs by name as the model can be called with them: by position those that its forward takes as `*args`."""
    own = inspect.signature(model.forward)
    if not _of_kind(own, Parameter.VAR_POSITIONAL):
        return (), dict(given)
    names = list(itertools.takewhile(given.__contains__, _positional_names(model, own, len(given))))
    return tuple(given[name] for name in names), {name: value for name, value in given.items() if name not in names}


def order_by_position(model: nn.Module, given: Iterable[str]) -> tuple[str, ...]:
    """What the model takes inputs by position as, whether an example has them or not: `model(ids, mask)` means the mask
    also where the example was ids and positions. Inputs that are `given` by names that it does not list come last."""
    listed = _positional(named_signature(model))
    starred = _of_kind(named_signature(model), Parameter.VAR_POSITIONAL) is not None
    return tuple(given) if starred else (*listed, *(name for name in given if name not in listed))


def _positional_names(model: nn.Module, own: Signature, count: int) -> tuple[str, ...]:
    starred = _of_kind(own, Parameter.VAR_POSITIONAL)
    mine, known = _positional(own), _positional(named_signature(model))
    known = known if known[: len(mine)] == mine else mine
    return tuple(known[:count]) + tuple(f"{starred}_{index - len(mine)}" for index in range(len(known), count))


def _positional(signature: Signature) -> list[str]:
    kinds = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return [p.name for p in signature.parameters.values() if p.kind in kinds]


def _of_kind(signature: Signature, kind: Any) -> str | None:
    return next((p.name for p in signature.parameters.values() if p.kind is kind), None)


def _names_inputs(signature: Signature | None) -> bool:
    """Whether a forward names its inputs: it has a named one, and no further ones by position."""
    if signature is None or _of_kind(signature, Parameter.VAR_POSITIONAL):
        return False
    return any(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values())


def _forward_of(cls: type) -> Signature | None:
    """The signature of the forward that this class defines itself, without `self`."""
    forward = vars(cls).get("forward")
    if not inspect.isfunction(forward):
        return None
    _, *others = inspect.signature(forward).parameters.values()
    return Signature(others)
