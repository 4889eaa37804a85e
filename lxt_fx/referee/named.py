"""Methods, tasks and metrics by name, and those of anybody."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeAlias, TypeVar, cast

from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.referee.contest import Method, Metric, Task

Kind = Literal["method", "task", "metric"]
T = TypeVar("T")

Wanted: TypeAlias = str | T | Iterable[str | T] | Mapping[str, str | T] | None
"""Names, objects, or objects by the names that results call them; None for all that are known."""

OwnFunction = Callable[..., Any]
"""A method of anybody: `f(model, inputs, value)` returns relevance, as `lxt_fx.referee.methods.own.OwnMethod` says."""

PARTS: dict[Kind, tuple[str, ...]] = {
    "method": ("name", "prepare"),
    "task": ("name", "cases", "replacements"),
    "metric": ("name", "better", "of"),
}
"""What an object of each kind has."""

METHODS = ("attnlrp", "cp_lrp", "gradient", "integrated_gradients", "random")
"""The methods that are compared where none is named."""


def known(kind: Kind) -> dict[str, Any]:
    """What is known by name. Imported now: some need other packages."""
    return dict(getattr(_room(kind), f"{kind.upper()}S"))


def from_path() -> dict[str, Callable[[Path], Task]]:
    """By the name of a task what makes it of public data."""
    return dict(_room("task").FROM_PATH)


def _room(kind: Kind) -> ModuleType:
    return importlib.import_module(f"lxt_fx.referee.{kind}s")


def methods_of(wanted: Wanted[Method | OwnFunction]) -> dict[str, Method]:
    """The methods that are compared, by name: of a name, an object, or a function `f(model, inputs, value)`.

    Raises UnknownNameError for an unknown name, InputError for anything else and for two of one name.
    """
    return cast(dict[str, Method], _parts("method", METHODS if wanted is None else wanted))


def tasks_of(wanted: Wanted[Task], data: Mapping[str, Path]) -> dict[str, Task]:
    """The tasks by name; those that `data` has a path for are made of what lies there. Raises as `methods_of`, and for data
    of a task that reads none."""
    found = cast(dict[str, Task], _parts("task", wanted))
    for name, path in data.items():
        if name not in found:
            raise InputError(f"bench: data has a path for {name!r}, which is none of the tasks: {', '.join(found)}")
        found[name] = _of_data(name, path)
    return found


def metrics_of(wanted: Wanted[Metric]) -> dict[str, Metric]:
    """The metrics by name. Raises as `methods_of`."""
    found = cast(dict[str, Metric], _parts("metric", wanted))
    for name, metric in found.items():
        if metric.better not in ("higher", "lower"):
            raise InputError(f"bench: metric {name} says better={metric.better!r}; say 'higher' or 'lower'")
    return found


def _parts(kind: Kind, wanted: Any) -> dict[str, Any]:
    if wanted is None:
        return dict(known(kind))
    if isinstance(wanted, Mapping):
        given = [(name, _part(kind, one)) for name, one in wanted.items()]
        given = [(name, _renamed(name, one)) for name, one in given]
    else:
        listed = [wanted] if isinstance(wanted, str) or not isinstance(wanted, Iterable) else list(wanted)
        made = [_part(kind, one) for one in listed]
        given = [(one if isinstance(one, str) and ":" not in one else part.name, part)
                 for one, part in zip(listed, made, strict=True)]  # fmt: skip
    names = [name for name, _ in given]
    if not names or len(set(names)) < len(names):
        raise InputError(f"bench: give {kind}s of different names, got {names}")
    return dict(given)


def _part(kind: Kind, given: Any) -> Any:
    if isinstance(given, str) and ":" in given:
        given = _imported(kind, given)
    elif isinstance(given, str):
        every = known(kind)
        if given not in every:
            near = difflib.get_close_matches(given, every, n=1)
            meant = f"; did you mean {near[0]!r}?" if near else "."
            raise UnknownNameError(f"bench: there is no {kind} {given!r}{meant} There are {', '.join(every)}")
        return every[given]
    if not isinstance(given, type) and all(hasattr(given, name) for name in PARTS[kind]):
        return given
    if kind == "method" and callable(given) and not isinstance(given, type):
        from lxt_fx.referee.methods.own import own_method

        return own_method(given)
    lacking = [name for name in PARTS[kind] if not hasattr(given, name)]
    raise InputError(
        f"bench: a {kind} is a name or an object with {', '.join(PARTS[kind])} (lxt_fx.referee.contest); got "
        f"{given!r}, " + ("a class; make an object of it" if isinstance(given, type) else f"without {', '.join(lacking)}")
    )


def _imported(kind: Kind, written: str) -> Any:
    module, _, name = written.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"bench: no {kind} {written!r} ({error}); give package.module:name, importable from here"
        ) from error


def _renamed(name: str, part: Any) -> Any:
    """The part under another name, so that results and messages agree."""
    if part.name == name or not is_dataclass(part) or "name" not in {one.name for one in fields(part)}:
        return part
    return replace(cast(Any, part), name=name)


def _of_data(name: str, path: Path) -> Task:
    if not path.exists():
        raise InputError(f"bench: {path}, the data of task {name}, is not there; give the path of a file or folder")
    made = from_path().get(name)
    if made is None:
        raise InputError(f"bench: task {name} reads no data; leave {path} out")
    return made(path)
