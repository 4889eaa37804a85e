"""Inputs and outputs of classes that torch's pytree does not know: dataclasses, distributions, plain objects with tensors.

A graph takes and returns flat tensors. pytree takes lists, dicts and the output classes of transformers apart and puts them
together again; an object of any other class would count as one value without tensors. Here it is taken apart by its
attributes. The user's classes are not registered anywhere: only the two containers of this module are.
"""

from __future__ import annotations

import copy
import enum
import types
from collections import UserDict
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from lxt_fx.base.errors import CaptureError
from lxt_fx.base.torch_internals import children_of, pytree

_PLAIN = (
    type(None), int, float, complex, str, bytes, type, enum.Enum, nn.Module, types.FunctionType, types.MethodType,
    types.BuiltinFunctionType, types.ModuleType,
)  # fmt: skip
"""Values that are not taken apart."""

_VALUES = (Tensor, type(None), int, float, complex, str)
"""Values that a graph takes and returns."""

LeftOut = Callable[[str], None]
"""Gets the class of each cache that is left out of an output."""


class _Shape:
    """What is left of an object without its tensors: its class, the names of the parts that hold tensors, and a copy of the
    object in which these parts are None."""

    def __init__(self, names: tuple[str, ...], rest: Any) -> None:
        self.names, self.rest = names, rest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Shape) and (type(self.rest), self.names) == (type(other.rest), other.names)

    def __hash__(self) -> int:
        return hash((type(self.rest), self.names))


class _Object:
    """An object as its parts: those that hold tensors, by name, and the rest."""

    def __init__(self, shape: _Shape, parts: list[Any]) -> None:
        self.shape, self.parts = shape, parts

    def built(self) -> Any:
        """The object of the user's class."""
        made = _copied(self.shape.rest)
        for name, part in zip(self.shape.names, self.parts, strict=True):
            _set(made, name, part if isinstance(part, Tensor) else as_given(part))
        return made


class GivenObject(_Object):
    """An object among the inputs of a graph. pytree makes a GivenObject again."""


class MadeObject(_Object):
    """An object in the output of a graph. pytree makes the object of the user's class."""


def _flatten(found: _Object) -> tuple[list[Any], _Shape]:
    return list(found.parts), found.shape


def _flatten_with_keys(found: _Object) -> tuple[list[tuple[Any, Any]], _Shape]:
    return [(pytree.MappingKey(name), part) for name, part in zip(found.shape.names, found.parts, strict=True)], found.shape


pytree.register_pytree_node(
    GivenObject,
    _flatten,
    lambda parts, shape: GivenObject(shape, list(parts)),
    serialized_type_name=f"{__name__}.GivenObject",
    flatten_with_keys_fn=_flatten_with_keys,
)
pytree.register_pytree_node(
    MadeObject,
    _flatten,
    lambda parts, shape: MadeObject(shape, list(parts)).built(),
    serialized_type_name=f"{__name__}.MadeObject",
    flatten_with_keys_fn=_flatten_with_keys,
)


def with_given_objects(inputs: Any) -> Any:
    """The same nesting with every object that holds tensors as a GivenObject, so that pytree sees its tensors. Raises
    CaptureError for an object that refers to itself."""
    if all(isinstance(leaf, _VALUES) for leaf in pytree.tree_leaves(inputs)):  # torch.compile traces no more than this
        return inputs
    return _mapped(inputs, lambda leaf: _Parted(GivenObject).of(leaf) if holds_tensors(leaf) else leaf)


def as_given(inputs: Any) -> Any:
    """The reverse of `with_given_objects`: objects of the user's classes again."""
    return _mapped(inputs, lambda found: found.built() if isinstance(found, _Object) else found)


def with_made_objects(output: Any, left_out: LeftOut = lambda name: None) -> Any:
    """A model's output with every object that pytree does not know as a MadeObject, and with None for caches. Raises
    CaptureError for an object that refers to itself."""
    return _mapped(output, _Parted(MadeObject, left_out).of)


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors of a model's output, those inside of objects too, without those of caches."""
    return [leaf for leaf in pytree.tree_leaves(with_made_objects(output)) if isinstance(leaf, Tensor)]


def is_cache(found: object) -> bool:
    """Whether this is a cache of keys and values, or of the states of a recurrence, of a language model."""
    names = {cls.__name__ for cls in type(found).__mro__}
    return "Cache" in names or type(found).__name__.endswith("Cache")


def holds_tensors(found: Any) -> bool:
    """Whether this is a container or an object with tensors inside, or a tensor."""
    if isinstance(found, (*_VALUES, enum.Enum)):  # torch.compile traces no more than this
        return isinstance(found, Tensor)
    todo, seen = [found], {id(found)}
    while todo:
        for leaf in pytree.tree_leaves(todo.pop(), is_leaf=is_cache):
            if isinstance(leaf, Tensor):
                return True
            parts = [] if isinstance(leaf, _PLAIN) else [value for _, value in _attributes(leaf) if id(value) not in seen]
            seen.update(map(id, parts))
            todo += parts
    return False


def user_classes(spec: Any) -> Iterator[str]:
    """The names of the user's classes in the structure of inputs or outputs."""
    if spec.type in (GivenObject, MadeObject):
        yield type(spec.context.rest).__qualname__
    for child in children_of(spec):
        yield from user_classes(child)


def same_but_for_tensors(one: Any, other: Any) -> bool:
    """Whether two structures of inputs are the same, and their objects too but for the tensors in them."""
    return bool(one == other) and all(map(_same_rest, _shapes(one), _shapes(other)))


def _shapes(spec: Any) -> Iterator[_Shape]:
    if spec.type is GivenObject:
        yield spec.context
    for child in children_of(spec):
        yield from _shapes(child)


def _same_rest(one: _Shape, other: _Shape) -> bool:
    values, others = dict(_attributes(one.rest)), dict(_attributes(other.rest))
    try:
        return values.keys() == others.keys() and all(bool(value == others[name]) for name, value in values.items())
    except (ValueError, RuntimeError, TypeError):  # of values that cannot be compared as a whole, such as arrays
        return False


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    return pytree.tree_map(function, tree, is_leaf=lambda found: isinstance(found, _Object) or is_cache(found))


class _Parted:
    """Takes objects apart. `inside` are the objects around the one that is taken apart now."""

    def __init__(self, kind: type[_Object], left_out: LeftOut = lambda name: None, inside: tuple[Any, ...] = ()) -> None:
        self.kind, self.left_out, self.inside = kind, left_out, inside

    def of(self, found: Any) -> Any:
        """A tensor or a plain value as it is, None for a cache in an output, else the object as its parts."""
        if isinstance(found, (*_VALUES, _Object)):
            return found
        if self.kind is MadeObject and is_cache(found):
            self.left_out(type(found).__name__)
            return None
        if any(found is outer for outer in self.inside):
            raise CaptureError(
                f"transform: an input or output of class {type(found).__name__} refers to itself, so its tensors cannot be "
                "listed; let the model take and return an object without this reference"
            )
        parts = {} if isinstance(found, _PLAIN) else dict(_attributes(found))
        parts = {name: value for name, value in parts.items() if holds_tensors(value)}
        if not parts:
            return self.kind(_Shape((), found), [])
        rest = copy.copy(found)
        for name in parts:
            _set(rest, name, None)
        inner = _Parted(self.kind, self.left_out, (*self.inside, found))
        return self.kind(_Shape(tuple(parts), rest), [_mapped(value, inner.of) for value in parts.values()])


def _attributes(found: Any) -> list[tuple[str, Any]]:
    """The attributes of an object by name, or the items of a dict."""
    if isinstance(found, (dict, UserDict)):
        return list(found.items())
    slots = [name for cls in type(found).__mro__ for name in _listed(vars(cls).get("__slots__", ()))]
    named = [(name, getattr(found, name)) for name in slots if not name.startswith("__") and hasattr(found, name)]
    return named + list(getattr(found, "__dict__", {}).items())


def _copied(found: Any) -> Any:
    """A shallow copy; of an object with a `__dict__` alone, written so that torch.compile can trace it."""
    if not hasattr(found, "__dict__") or isinstance(found, (dict, UserDict, tuple, list)) or hasattr(found, "__slots__"):
        return copy.copy(found)
    made = object.__new__(type(found))
    for name, value in found.__dict__.items():
        object.__setattr__(made, name, value)
    return made


def _listed(slots: Any) -> list[str]:
    return [slots] if isinstance(slots, str) else list(slots)


def _set(found: Any, name: str, value: Any) -> None:
    if isinstance(found, (dict, UserDict)):
        found[name] = value
    else:
        object.__setattr__(found, name, value)
