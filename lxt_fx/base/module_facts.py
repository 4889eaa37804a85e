"""What a module's Python code is and reads: classes, code, attributes, configs, hooks, and the kinds of its tensors.

`facts_of` walks all of it once and gives a flat list. Two lists tell whether a model still is what it was
(`remembered_facts.py`), and the text of one whether a model of another process is the same (`facts_text.py`). Values of
parameters and buffers are no facts: a graph shares the tensors. Nothing here runs code of the model, changes it, or knows
of capture.
"""

from __future__ import annotations

import enum
import functools
import inspect
import re
import sys
from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from logging import Logger
from types import (
    BuiltinFunctionType,
    CellType,
    CodeType,
    FunctionType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lxt_fx.base.torch_internals import contents_of
from lxt_fx.base.transformers_internals import recorded_outputs

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
"""Values that are compared by what they are."""

SEVERAL = (list, tuple, set, frozenset, dict)
"""Containers whose items are compared."""

OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes that every module has."""

HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs", "_forward_hooks", "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called", "_backward_hooks", "_backward_pre_hooks",
)  # fmt: skip

NOT_FOLLOWED = frozenset(sys.stdlib_module_names) | {
    "torch", "numpy", "lxt_fx", "builtins", "torchvision", "triton", "_pytest"
}  # fmt: skip
"""Packages whose functions are compared as they are, and not by what they call in turn. An `assert` in a test's model calls
functions of pytest, which hold all tests of the session."""

MOST_FACTS, MOST_OF_A_MODULE = 200_000, 200
"""The most facts of a model, if nothing else is asked: so many, and so many more for each of its modules. A second's
work."""

_BASES = frozenset({"PreTrainedModel"})
_GENERATION = "GenerationMixin"
"""Classes whose functions a forward hardly reads: they load, save and generate. They are compared, and not followed."""

_NOT_CALLED = frozenset({"__init__", "_init_weights", "reset_parameters", "prepare_inputs_for_generation", "extra_repr"})
"""Functions that no forward calls."""

_RUNS = frozenset({"__call__", "_wrapped_call_impl", "_call_impl", "_slow_forward", "__getattr__"})
"""The functions of `nn.Module` that run in a call."""

_NO_FACTS = frozenset({"_original_object_hash", "_commit_hash", "_name_or_path", "name_or_path"})
"""Attributes of configs that say where they come from, or are other numbers in each process."""

Fact = tuple[str, Any]
"""Where something stands, as a path, and what stands there: a plain value, or an object that `remembered` compares by
identity and `text_of` by name or code."""

SEPARATORS = ".[:"
"""What stands in a path between a thing and its parts: an attribute, an item, a global that its code reads."""
_SEPARATING = frozenset(SEPARATORS)


# One module


def is_plain(value: Any) -> bool:
    """Whether a value is compared by what it is: a number, flag, name, class or function, or a list, tuple, set or dict of
    these."""
    if isinstance(value, dict):
        return all(map(is_plain, dict.values(value)))
    if isinstance(value, SEVERAL):
        return all(map(is_plain, value))
    return isinstance(value, (*PLAIN, type)) or inspect.isroutine(value)


def copied(value: Any) -> Any:
    """A plain value with lists, sets and dicts of its own, which nobody changes."""
    if isinstance(value, dict):
        return {key: copied(item) for key, item in dict.items(value)}
    return type(value)(map(copied, value)) if type(value) in (list, set) else value


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The module's own attributes, without those that every module has: no parameters, buffers, submodules or hooks. A
    `forward` that was set on this module is among them."""
    return {name: value for name, value in vars(module).items() if name not in OF_TORCH}


def tensors_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The module's own parameters and buffers by name, without those of its submodules."""
    parameters, buffers, _ = contents_of(module)
    return {**parameters, **buffers}


def kind_of_tensor(tensor: Tensor | None) -> tuple[Hashable, ...] | None:
    """What a graph has written into it of a tensor: its class, dtype, shape, strides, device, layout, and whether it asks
    for a gradient."""
    if tensor is None:
        return None
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    return (
        type(tensor), tensor.dtype, tuple(tensor.shape), strides, tensor.device, tensor.layout, tensor.requires_grad,
    )  # fmt: skip


def hooks_on(module: nn.Module) -> list[tuple[str, Any]]:
    """The hooks on a module that run in its forward or backward, by the name of torch's dict that has them."""
    own = vars(module)
    return [(name, hook) for name in HOOKS for hook in (own.get(name) or {}).values()]


def functions_of(kind: type) -> Iterator[tuple[str, type, FunctionType]]:
    """Every function of a class and its bases up to `nn.Module` and `object`, also behind properties and the like: its
    name, the class that has it, and the function."""
    for base in kind.__mro__:
        if base in (object, nn.Module):
            return
        for name, held in vars(base).items():
            for function in _behind(held):
                yield name, base, function


def _behind(held: Any) -> Iterator[FunctionType]:
    """The functions of an entry of a class."""
    if isinstance(held, property):
        parts: Iterable[Any] = (held.fget, held.fset)
    elif isinstance(held, (classmethod, staticmethod)):
        parts = (held.__func__,)
    else:
        parts = (getattr(held, "func", held),)  # of a cached_property
    for part in parts:
        if isinstance(part, FunctionType):
            yield part


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions and comprehensions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)


def names_in(code: CodeType) -> frozenset[str]:
    """The global names and attributes that a code reads or calls."""
    return frozenset(name for each in codes_in(code) for name in each.co_names)


MOST_BYTES = 1_000_000
"""The largest array of numpy that is compared by its values."""


def has_comparable_values(array: Any) -> bool:
    """Whether an array of numpy is small enough to be compared by its values, and has them as plain bytes: masked arrays
    and arrays of objects do not."""
    return not isinstance(array, np.ma.MaskedArray) and array.nbytes <= MOST_BYTES and array.dtype != object


# A whole model


def facts_of(model: nn.Module, most: int | None = None, most_of_a_module: int | None = None) -> list[Fact]:
    """All facts of a model, in an order that only depends on the model: of each module its class, mode, hooks, tensors and
    attributes, what these hold in turn, and the code of all functions that its classes and attributes name, with what that
    code reads: closures, defaults, the globals of its modules. Raises TooManyFacts where that is a whole program:
    more than `most` facts and `most_of_a_module` for each module, or than `MOST_FACTS` and `MOST_OF_A_MODULE`."""
    most = MOST_FACTS if most is None else most
    walk = _Walk(model, most, MOST_OF_A_MODULE if most_of_a_module is None else most_of_a_module)
    walk.value("model", model)
    walk.follow()
    return walk.found


class TooManyFacts(Exception):
    """What a model's code reads holds more objects than can be compared at each call."""


@dataclass(frozen=True, slots=True)
class Again:
    """An object that stands at another place too: the path that it had there."""

    path: str


@dataclass(frozen=True, slots=True)
class Held:
    """A container or object whose parts are facts of their own."""

    kind: type


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """A tensor that is neither a parameter nor a buffer of a module: its values are facts too."""

    tensor: Tensor


class _Walk:
    """Collects facts. What is reached twice is walked once. Functions and classes are followed last, so that no chain of
    them is a chain of calls here."""

    def __init__(self, model: nn.Module, most: int, most_of_a_module: int) -> None:
        self.found: list[Fact] = []
        classes = [str(type(module)) for module in model.modules()]
        self._classes, self._most = set(classes), most + most_of_a_module * len(classes)
        self._by_class = recorded_outputs()
        self._seen: dict[int, str] = {}
        self._alive: list[Any] = []  # so that no number of an object is used twice
        self._later: deque[tuple[str, FunctionType]] = deque()
        self._names: set[tuple[int, str]] = set()

    def value(self, path: str, value: Any) -> None:
        """Adds the facts of a value and of what it holds."""
        if len(self.found) > self._most:
            raise TooManyFacts(f"its code reads over {self._most} objects, such as {path:.200}")
        if isinstance(value, (*PLAIN, enum.Enum)):
            self.found.append((path, value))
            return
        if (first := self._seen.get(id(value))) is not None:
            self.found.append((path, Again(first)))
            return
        self._seen[id(value)] = path
        self._parts(path, value)
        if type(value) in SEVERAL:  # which of two equal lists it is says nothing
            del self._seen[id(value)]
        else:
            self._alive.append(value)

    def _parts(self, path: str, value: Any) -> None:
        match value:
            case nn.Module():
                self._module(path, value)
            case Tensor():
                self.found.append((path, Constant(value)))
            case ModuleType() | BuiltinFunctionType() | CodeType() | Logger() | re.Pattern() | np.ndarray() | np.generic():
                self.found.append((path, value))
            case FunctionType():
                self._function(path, value)
            case MethodType():
                self.found.append((path, Held(MethodType)))
                self.value(f"{path}.__self__", value.__self__)
                self.value(f"{path}.__func__", value.__func__)
            case functools.partial():
                self.found.append((path, Held(functools.partial)))
                self.value(f"{path}.func", value.func)
                self.value(f"{path}.args", value.args)
                self.value(f"{path}.keywords", value.keywords)
            case type():
                self._class(path, value, follow=issubclass(value, nn.Module))
            case CellType():
                self._cell(path, value)
            case _ if isinstance(wrapped := getattr(value, "__wrapped__", None), FunctionType):  # of an lru_cache
                self.value(f"{path}.__wrapped__", wrapped)
            case _:
                self._object(path, value)

    def follow(self) -> None:
        """Adds the facts of all functions that were found, and of those that they name in turn."""
        while self._later:
            path, function = self._later.popleft()
            self._reads_of(path, function)

    def _module(self, path: str, module: nn.Module) -> None:
        self.found.append((path, Held(type(module))))
        self.value(f"{path}.__class__", type(module))
        self.found.append((f"{path}.training", vars(module).get("training")))
        numbers = Counter[str]()
        for name, hook in hooks_on(module):
            numbers[name] += 1
            self.value(f"{path}.{name}[{numbers[name]}]", hook)
        for name, tensor in tensors_of(module).items():
            self._tensor(_attribute(path, name), tensor)
        for name, child in contents_of(module)[2].items():
            self.value(_attribute(path, name), child)
        for name, value in vars(module).items():
            if name not in OF_TORCH and name not in _NO_FACTS:
                self.value(_attribute(path, name), value)

    def _tensor(self, path: str, tensor: Tensor | None) -> None:
        if tensor is None:
            self.found.append((path, None))
        elif (first := self._seen.get(id(tensor))) is not None:
            self.found.append((path, Again(first)))
        else:
            self._seen[id(tensor)] = path
            self.found.append((path, tensor))

    def _object(self, path: str, value: Any) -> None:
        """Any other object: what it contains, and its attributes."""
        own = getattr(value, "__dict__", None)
        if isinstance(value, dict):
            self.found.append((path, Held(type(value))))
            items = list(dict.items(value))  # a class of its own may import a package for each item
            for place, (key, item) in zip(_places(path, (key for key, _ in items)), items, strict=True):
                if value is not self._by_class or key in self._classes:
                    self.value(place, item)
        elif isinstance(value, (set, frozenset)):
            self.found.append((path, Held(type(value))))
            members = sorted(value, key=_key)
            for place, item in zip(_places(path, members), members, strict=True):
                self.value(place, item)
        elif isinstance(value, (list, tuple, deque)):
            self.found.append((path, Held(type(value))))
            for index, item in enumerate(list(value)):
                self.value(f"{path}[{index}]", item)
        elif not isinstance(own, dict):
            self.found.append((path, value))
            return
        else:
            self.found.append((path, Held(type(value))))
        if type(value).__module__ not in ("builtins", "collections"):
            self.value(f"{path}.__class__", type(value))
            for name, item in list(own.items()) if isinstance(own, dict) else ():
                if name not in _NO_FACTS:
                    self.value(_attribute(path, name), item)

    def _cell(self, path: str, cell: CellType) -> None:
        try:
            self.value(f"{path}.cell", cell.cell_contents)
        except ValueError:  # nothing in it yet
            self.found.append((path, None))

    def _class(self, path: str, kind: type, *, follow: bool) -> None:
        """A class and its bases: the code of their functions, and the plain values that they hold. The functions of models'
        own classes are followed; a class of torch that is no module counts as it is."""
        self.found.append((path, kind))
        if package_of(kind) in NOT_FOLLOWED and not issubclass(kind, nn.Module):
            return
        for number, base in enumerate(kind.__mro__):
            if base is object or package_of(base) == "builtins":
                break
            own = f"{path}.__mro__[{number}]" if number else path
            follow = follow and base.__name__ not in _BASES and package_of(base) not in NOT_FOLLOWED
            if (id(base), "of a class") in self._names:
                continue
            self._names.add((id(base), "of a class"))
            followed = follow and not base.__name__.endswith(_GENERATION)
            for name, held in list(vars(base).items()):
                if base is nn.Module and name not in _RUNS:
                    continue  # others do not run in a call, and packages put more there
                place = _attribute(own, name)
                for part, function in enumerate(_behind(held)):
                    at = f"{place}[{part}]" if part else place  # the setter of a property
                    if followed and name not in _NOT_CALLED:
                        self.value(at, function)
                    else:
                        self.found.append((at, function.__code__))
                if not name.startswith("__") and isinstance(held, (*PLAIN, *SEVERAL)):
                    self.value(place, held)

    def _function(self, path: str, function: FunctionType) -> None:
        self.found.append((path, function.__code__))
        if package_of(function) not in NOT_FOLLOWED:
            self._later.append((path, function))

    def _reads_of(self, path: str, function: FunctionType) -> None:
        """What a function reads beside its arguments."""
        self.value(f"{path}.__defaults__", function.__defaults__)
        self.value(f"{path}.__kwdefaults__", function.__kwdefaults__)
        names = names_in(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
            self.value(f"{path}.{name}", cell)
        self._globals(path, function.__globals__, names)

    def _globals(self, path: str, owner: dict[str, Any], names: frozenset[str], depth: int = 3) -> None:
        """The globals of these names, and what the code reads of modules among them (`torch.nn.functional.softmax`)."""
        for name in sorted(names & owner.keys()):
            value = owner[name]
            if (id(owner), name) not in self._names:
                self._names.add((id(owner), name))
                self.value(f"{path}:{name}", value)
            if isinstance(value, ModuleType) and depth and value.__name__.partition(".")[0] not in sys.stdlib_module_names:
                self._globals(f"{path}:{name}", vars(value), names, depth - 1)


def _key(key: Any) -> str:
    """A key of a dict or an item of a set as text, by which it is named and sorted."""
    if isinstance(key, PLAIN) or (type(key) in (tuple, frozenset) and is_plain(key)):
        return repr(key)
    return f"{type(key).__name__} {getattr(key, '__qualname__', '')}"


def _attribute(path: str, name: str) -> str:
    """The path of an attribute. A name that looks like several (`"n.max"`) is quoted, so that it is below no other's."""
    return f"{path}.{name}" if _SEPARATING.isdisjoint(str(name)) else f"{path}.{name!r}"


def _places(path: str, keys: Iterable[Any]) -> Iterator[str]:
    """The path of each item of a dict or set. Keys that look alike, as objects of one class do, get numbers."""
    times = Counter[str]()
    for key in keys:
        named = _key(key)
        times[named] += 1
        yield f"{path}[{named}'{times[named]}]" if times[named] > 1 else f"{path}[{named}]"


def package_of(named: Any) -> str:
    """The package that a class or function comes from."""
    return str(getattr(named, "__module__", None) or "").partition(".")[0]
