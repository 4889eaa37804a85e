"""What a model's Python code reads from attributes and configs: numbers, flags, names, functions, and lists of these.

Adapters say by such attributes which of them are active, merged or scaled by how much; a graph has their values written
into it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import is_
from types import FunctionType
from typing import Any

from torch import nn

from lxt_fx.base.model_snapshot import Place
from lxt_fx.base.module_facts import SEVERAL, attributes_of, copied, is_plain, names_in

SAY_NOTHING = frozenset(
    {"gradient_checkpointing", "name_or_path", "warnings_issued", "use_cache", "return_dict", "use_return_dict"}
    | {"output_attentions", "output_hidden_states", "problem_type", "_is_hf_initialized", "_compiled_call_impl"}
    | {"_attn_implementation", "_attn_implementation_internal", "_experts_implementation_internal"}
)
"""Attributes that change how an output is computed or packed, or what happens in training, and not the numbers."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One attribute of a module or a config, as it was: `owner` is the dict of the object's attributes."""

    path: str
    owner: Mapping[str, Any]
    key: str
    was: Any

    @property
    def place(self) -> Place:
        """Where the attribute stands: two settings of one place are of the same attribute of the same object."""
        return id(self.owner), self.key

    def differs(self) -> bool:
        """Whether the attribute has another value. New keys of a dict are no difference: they say something of adapters
        that were added, and another attribute says which of them are active."""
        now = self.owner.get(self.key, nn)  # a module of Python stands for "nothing"
        if now is self.was:
            return False
        if not is_plain(now) or isinstance(now, SEVERAL) is not isinstance(self.was, SEVERAL):
            return True
        if isinstance(now, dict) and isinstance(self.was, dict):
            return any(key not in now or now[key] != value for key, value in self.was.items())
        return bool(now != self.was)

    def said(self) -> str:
        """What is another now, as a sentence."""
        now = repr(self.owner[self.key]) if self.key in self.owner else "gone"
        return f"{self.path} is {now[:80]} (it was {repr(self.was)[:80]})"


@dataclass(frozen=True, slots=True)
class Values:
    """Settings side by side, to be compared at the speed of C: single values by identity, several by what they hold."""

    owners: tuple[Mapping[str, Any], ...]
    keys: tuple[str, ...]
    objects: tuple[Any, ...]
    owners_of_several: tuple[Mapping[str, Any], ...]
    keys_of_several: tuple[str, ...]
    several: list[Any]

    @staticmethod
    def of(settings: Iterable[Setting]) -> Values:
        """These settings as they are now."""
        settings = list(settings)
        single = [s for s in settings if not isinstance(s.was, SEVERAL)]
        many = [s for s in settings if isinstance(s.was, SEVERAL)]
        return Values(
            tuple(s.owner for s in single), tuple(s.key for s in single), tuple(s.was for s in single),
            tuple(s.owner for s in many), tuple(s.key for s in many), [s.was for s in many],
        )  # fmt: skip

    def are_same(self) -> bool:
        """Whether every setting is the same object, or holds the same. May raise what `==` of foreign objects raises."""
        several = list(map(dict.get, self.owners_of_several, self.keys_of_several))  # type: ignore[arg-type]
        return several == self.several and all(map(is_, map(dict.get, self.owners, self.keys), self.objects))  # type: ignore[arg-type]


def settings_of(modules: Iterable[tuple[str, nn.Module]]) -> Iterator[Setting]:
    """The settings of these modules by path, and those of their configs that the code of their classes names."""
    named: dict[type, frozenset[str]] = {}
    seen: set[tuple[int, str]] = set()
    for path, module in modules:
        if type(module) is nn.Linear:
            continue  # its forward reads its parameters only
        yield from _of(path, vars(module), attributes_of(module))
        config = getattr(module, "config", None)
        if not hasattr(config, "__dict__"):
            continue
        names = named.setdefault(type(module), names_read(type(module)))
        for setting in _of(joined(path, "config"), vars(config), names & vars(config).keys() if "config" in names else ()):
            if setting.place not in seen:
                seen.add(setting.place)
                yield setting


def _of(path: str, owner: Mapping[str, Any], keys: Iterable[str]) -> Iterator[Setting]:
    for key in keys:
        if key not in SAY_NOTHING and "cache" not in key and is_plain(owner[key]):
            yield Setting(joined(path, key), owner, key, copied(owner[key]))


def joined(path: str, key: str) -> str:
    """The path of what stands under `key` in the module at `path`."""
    return f"{path}.{key}" if path else key


def names_read(kind: type[nn.Module]) -> frozenset[str]:
    """The names that the functions of a module class read or call, without those of torch's and transformers' own base
    classes."""
    names: set[str] = set()
    for each in kind.__mro__:
        if each is nn.Module or each.__name__ == "PreTrainedModel":
            break
        for name, found in vars(each).items():
            function = found.fget if isinstance(found, property) else found
            if name not in ("__init__", "_init_weights") and callable(function) and not isinstance(function, type):
                unwrapped = inspect.unwrap(function)
                names |= names_in(unwrapped.__code__) if isinstance(unwrapped, FunctionType) else set()
    return frozenset(names)
