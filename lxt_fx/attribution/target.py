"""Targets: how a user says which number is to be explained. Every function that takes a target reads it here."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, SupportsIndex, TypeGuard

from torch import Tensor

from lxt_fx.base.errors import InputError

Name = SupportsIndex | str
"""A class or token by index (a number of Python, numpy or torch, such as `logits.argmax()`), or by name."""


@dataclass(frozen=True, slots=True)
class Target:
    """The logit of `token` at `position`, minus the logit of `minus` if that is given.

    `token` is an index or a name: a token of the vocabulary, or a class. None means the token with the largest logit, and
    for the position the default that `explain` states.
    """

    token: Name | None = None
    minus: Name | None = None
    position: SupportsIndex | None = None

    @classmethod
    def at(cls, position: SupportsIndex, token: Name | None = None, minus: Name | None = None) -> Target:
        """The target at this position of the text; a negative one counts from the end."""
        return cls(token, minus, position)


TargetFunction = Callable[[Any], Tensor]
"""A function of the model's output that returns the number to explain."""

TargetLike = Target | Name | tuple[Name, Name] | TargetFunction | None
"""One target."""

TargetsLike = TargetLike | Sequence[TargetLike]
"""One target, or a list of them; a tensor or an array [targets] of indices is such a list."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A checked target that is an entry of the logits, in plain ints and strings."""

    token: int | str | None = None
    minus: int | str | None = None
    position: int | None = None


def target_by_example(given: TargetsLike, examples: int, function: str) -> list[Wanted | TargetFunction]:
    """The target of each example of a batch: one target for all, or a list with one for each.

    Raises InputError for a list of another length, and for anything that is no target.
    """
    if not is_list(given):
        return [_parsed(given, function)] * examples
    if len(given) != examples:
        raise InputError(
            f"{function}: {len(given)} targets for {examples} examples; give one target, or a list with one for each"
        )
    return [_parsed(item, function) for item in _items(given)]


def several_targets(given: TargetsLike, function: str) -> TargetFunction | list[Wanted | TargetFunction]:
    """The targets that each example is explained for: a list (a single target makes a list of one), or one function that
    returns all numbers.

    Raises InputError for an empty list, for a bare pair of indices, which is ambiguous, and for anything that is no target.
    """
    if not is_list(given) and callable(given):
        return given
    items = _items(given) if is_list(given) else [given]
    if not items:
        raise InputError(f"{function}: no targets were given")
    for item in items:
        _refuse_bare_pair(item, function)
    return [_parsed(item, function) for item in items]


def is_list(given: object) -> TypeGuard[Sequence[Any]]:
    """Whether this is a list of targets: a list, or a tensor or array with at least one dimension."""
    return isinstance(given, list) or getattr(given, "ndim", 0) > 0


def _items(given: Sequence[Any]) -> Sequence[Any]:
    """The items of the list; those of a tensor or an array as plain numbers."""
    plain: Sequence[Any] = given if isinstance(given, list) else getattr(given, "tolist", lambda: given)()
    return plain


def _parsed(given: object, function: str) -> Wanted | TargetFunction:
    if isinstance(given, Target):
        return _wanted(given, function)
    if isinstance(given, tuple) and len(given) == 2:
        return _wanted(Target(*given), function)
    if callable(given):
        return given
    return Wanted(_name(given, given, function))


def _wanted(target: Target, function: str) -> Wanted:
    position = None if target.position is None else _index(target.position, target, function, "position")
    return Wanted(_name(target.token, target, function), _name(target.minus, target, function), position)


def _name(part: object, given: object, function: str) -> int | str | None:
    """An index or name, or None; `given` is the target that it is part of, for error messages."""
    if part is None:
        return None
    if isinstance(part, str):
        if not part:
            raise InputError(f"{function}: the empty string names no token and no class; give a name or an index")
        return str(part)
    return _index(part, given, function, "target")


def _index(part: object, given: object, function: str, what: str) -> int:
    kind = str(getattr(part, "dtype", type(part).__name__))
    if "bool" in kind:
        raise InputError(f"{function}: {part!r} is a bool, not a {what}; give an index (1 for True)")
    try:
        return operator.index(part)  # type: ignore[arg-type]
    except TypeError:
        _no_target(part, given, function, kind)


def _no_target(part: object, given: object, function: str, kind: str) -> NoReturn:
    if "float" in kind:
        why = f"{part!r} is a value, not an index; give the index, such as logits.argmax() for logits.max()"
    elif isinstance(part, tuple):
        why = f"got {given!r}; a tuple is a contrast of two, and several targets are a list: {list(part)!r}"
    else:
        why = f"got {given!r}"
    raise InputError(
        f"{function}: a target must be an index, a name, two of them for a contrast, a lxt_fx.Target or a function of the "
        f"output; {why}"
    )


def _refuse_bare_pair(given: object, function: str) -> None:
    """Raises InputError for a pair of indices, until 0.3: in `relevance_of` it meant (position, entry) until 0.2, in every
    other function it is a contrast."""
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        return
    if not all(isinstance(part, SupportsIndex) for part in given):
        return
    a, b = given
    raise InputError(
        f"{function}: the pair ({a}, {b}) can be read in two ways; write Target.at({a}, {b}) for entry {b} at position "
        f"{a}, which it meant here until 0.2, or Target({a}, minus={b}) for logit {a} minus logit {b}, which a pair means "
        f"everywhere else and will mean here from 0.3 on. Two targets are a list: [{a}, {b}]"
    )
