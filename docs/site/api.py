"""The API reference, written from signatures and docstrings. Those are Markdown, so Sphinx's autodoc, which reads
reStructuredText, is not used: each name becomes a `py:` directive of MyST, whose content is the docstring."""

from __future__ import annotations

import enum
import importlib
import inspect
import re
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import lxt_fx
from navigation import GROUPS

MADE_BY_USERS = {
    "Corpus", "CorpusExplainer", "Dictionary", "ExplainedCorpus", "Only", "Removal", "Rule", "RuleTable", "Target",
}  # fmt: skip
"""The classes whose constructor a person calls; the others are what functions return."""


def pages() -> dict[str, str]:
    """Each page of the reference by its name: Markdown.

    Raises ValueError for a public name that no group has, that two have, or that has no docstring.
    """
    grouped = [name for _, names in GROUPS.values() for name in names.split()]
    if missing := set(lxt_fx.__all__) - set(grouped):
        raise ValueError(f"docs/site/navigation.py: no group of the API reference has {', '.join(sorted(missing))}")
    if twice := {name for name in grouped if grouped.count(name) > 1}:
        raise ValueError(f"docs/site/navigation.py: two groups of the API reference have {', '.join(sorted(twice))}")
    return {group: page(group) for group in GROUPS}


def page(group: str) -> str:
    """A page with every name of a group."""
    sentence, names = GROUPS[group]
    return f"# {group.capitalize()}\n\n{sentence}\n\n" + "\n".join(entry(name, named(name)) for name in names.split())


def named(name: str) -> Any:
    """What a name of the package means; a module of a bridge may need a library, which must be installed."""
    return importlib.import_module(f"lxt_fx.{name}") if "." in name else getattr(lxt_fx, name)


def entry(name: str, thing: Any) -> str:
    """Signature and docstring of one public name, with its methods; a module has a heading, and what it holds."""
    full = f"lxt_fx.{name}"
    if isinstance(thing, ModuleType):
        inner = [described(f"{full}.{one}", getattr(thing, one)) for one in public(thing)]
        begun, ended = directive("module", full, "", 4), directive("currentmodule", "None", "", 4)
        return f"## {full}\n\n{begun}{ended}{text(thing, full)}\n\n" + "\n".join(inner)
    return described(full, thing)


def public(module: ModuleType) -> list[str]:
    """The public functions and classes of a module: those of `__all__`, else those that are written in it."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    written = (FunctionType, type)
    return [name for name, one in vars(module).items() if is_written(name, one, module, written)]


def is_written(name: str, one: Any, module: ModuleType, kinds: tuple[type, ...]) -> bool:
    inside = str(getattr(one, "__module__", "")).startswith(module.__name__)
    return not name.startswith("_") and isinstance(one, kinds) and inside


def described(full: str, thing: Any) -> str:
    """A function, a class with its members, or a value, as a directive."""
    name = full.rpartition(".")[2]
    if not isinstance(thing, type):
        kind = "function" if callable(thing) and hasattr(thing, "__name__") else "data"
        return directive(kind, full + (signature(thing) if kind == "function" else ""), text(thing, full), 6)
    if issubclass(thing, BaseException):
        return directive("exception", full, text(thing, full), 6)
    made = signature(thing) if name in MADE_BY_USERS or full.count(".") > 1 else ""
    return directive("class", full + made, "\n\n".join([text(thing, full), *members(full, thing)]), 6)


def members(full: str, cls: type) -> Iterator[str]:
    """The values of an enumeration, else public methods and properties with a docstring, those of our bases included."""
    if issubclass(cls, enum.Enum):
        for value in cls:
            yield directive("attribute", f"{full}.{value.name}", f"`{value.value}`", 4)
        return
    ours = [base for base in cls.__mro__ if base.__module__.startswith("lxt_fx")]
    found: dict[str, Any] = {}
    for base in ours:
        found = found | {name: one for name, one in vars(base).items() if not name.startswith("_") and name not in found}
    for name, one in found.items():
        inner = one.fget if isinstance(one, property) else getattr(one, "__func__", getattr(one, "func", one))
        if not inspect.isfunction(inner) or not inspect.getdoc(inner):
            continue
        kind = "method" if isinstance(one, (FunctionType, classmethod, staticmethod)) else "property"
        called = signature(inner, bound=not isinstance(one, staticmethod)) if kind == "method" else ""
        yield directive(kind, f"{full}.{name}{called}", text(inner, full), 4)


def signature(thing: Any, *, bound: bool = False) -> str:
    """`(a: int, b: str = "x") -> bool`, without `self`; `(...)` where Python knows none."""
    try:
        found = inspect.signature(thing)
    except (TypeError, ValueError):
        return "(...)"
    parameters = list(found.parameters.values())[1 if bound else 0 :]
    shown = [one.replace(default=Shown(one.default)) if one.default is not one.empty else one for one in parameters]
    returned = found.return_annotation if not isinstance(thing, type) else found.empty
    return str(found.replace(parameters=shown, return_annotation=returned)).replace("'", "").replace("\n", " ")


class Shown:
    """A default as a reader of the reference sees it: a function by its name, an object without its address."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        if callable(self.value) and hasattr(self.value, "__name__"):
            return str(self.value.__name__)
        plain = isinstance(self.value, (str, int, float, bool, tuple, type(None), list, dict))
        return repr(self.value).replace("'", '"') if plain else "..."


def text(thing: Any, full: str) -> str:
    """The docstring, with a link at each public name that it mentions."""
    found = inspect.getdoc(thing) if not is_value(thing) else type(thing).__doc__
    if not found:
        raise ValueError(f"{full} has no docstring, and is in the API reference")
    names = {name for _, group in GROUPS.values() for name in group.split()}

    def linked(match: re.Match[str]) -> str:
        mentioned = match[1].removeprefix("lxt_fx.")
        known = mentioned in names and (match[1] != mentioned or mentioned[0].isupper()) and f"lxt_fx.{mentioned}" != full
        return f"{{py:obj}}`{match[1]} <lxt_fx.{mentioned}>`" if known else match[0]

    return re.sub(r"(?<!`)`([A-Za-z_.]+)`(?!`)", linked, inspect.cleandoc(found))


def is_value(thing: Any) -> bool:
    """Whether it is an object without a docstring of its own (TABLES)."""
    return not isinstance(thing, (type, ModuleType)) and not hasattr(thing, "__name__")


def directive(kind: str, signed: str, content: str, fence: int) -> str:
    """A `py:` directive of MyST; a longer `fence` may hold directives of a shorter one."""
    return f"{'`' * fence}{{py:{kind}}} {signed}\n{content}\n{'`' * fence}\n\n"
