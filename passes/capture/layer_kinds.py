"""Analysis: which layers of a model are the same code with other weights.

The children of a module are twins if they have the same class and code, the same submodules, parameters and buffers of the
same shapes, and the same attributes. Attributes that only count the layers (`layer_idx`) may differ: while the first of the
twins is traced, a `Standing` object is in their place, which raises wherever the code would go another way in another twin.
"""

from __future__ import annotations

import inspect
import operator
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from lxt_fx.base.module_facts import PLAIN, attributes_of, hooks_on, kind_of_tensor, tensors_of

FEWEST = 3
"""The first and the last of the twins are traced, so there must be more."""

SAME = "__lxt_fx_same__"
"""Where a forward that capture puts on a module says on what it depends beside parameters and buffers: twins have the same,
and no attribute of the module counts."""

_COUNTS = (int, float, str)


class ReadError(Exception):
    """The code of a layer read an attribute that is another one in its twins, or more than can be compared."""


@dataclass(eq=False, slots=True)
class Kind:
    """Twins in the order of the model, by path. `differing` are the attributes in which they differ, by path in the layer
    and name, with the values of all twins. `why_not` says why they turned out to be no twins."""

    layers: tuple[tuple[str, nn.Module], ...]
    differing: Mapping[tuple[str, str], tuple[Any, ...]]
    why_not: str = field(default="")

    @property
    def first(self) -> str:
        """The path of the first twin."""
        return self.layers[0][0]

    @property
    def last(self) -> nn.Module:
        """The twin that is traced to see whether the others are what the first says they are."""
        return self.layers[-1][1]

    @contextmanager
    def standing_in(self, layer: nn.Module) -> Iterator[None]:
        """Inside the block, the attributes of this layer in which the twins differ stand for those of all of them."""
        places = [(vars(layer.get_submodule(path)), name, values) for (path, name), values in self.differing.items()]
        own = [attributes[name] for attributes, name, _ in places]
        try:
            for (path, _), (attributes, name, values) in zip(self.differing, places, strict=True):
                attributes[name] = Standing(self, f"{path}.{name}" if path else name, values)
            yield
        finally:
            for (attributes, name, _), value in zip(places, own, strict=True):
                attributes[name] = value


class Standing:
    """Stands for an attribute that differs between twins. It answers comparisons that have the same answer for all of them.
    Any other use raises ReadError and is noted in the kind, so that code which catches the error changes nothing."""

    def __init__(self, kind: Kind, name: str, values: tuple[Any, ...]) -> None:
        object.__setattr__(self, "_known", (kind, name, values))

    def __getattribute__(self, name: str) -> Any:
        _refuse(self)


def _known(standing: Standing) -> tuple[Kind, str, tuple[Any, ...]]:
    known: tuple[Kind, str, tuple[Any, ...]] = object.__getattribute__(standing, "_known")
    return known


def _refuse(standing: Standing, *args: Any, **kwargs: Any) -> Any:
    kind, name, _ = _known(standing)
    kind.why_not = f"their code reads {name}, in which they differ"
    raise ReadError(kind.why_not)


def _answering(name: str) -> Callable[..., Any]:
    """A comparison, where it has the same answer for all values."""
    compare = getattr(operator, name)

    def answer(standing: Standing, *others: Any) -> Any:
        if any(type(other) is Standing for other in others):
            _refuse(standing)
        try:
            answers = {bool(compare(value, *others)) for value in _known(standing)[2]}
        except Exception:  # whatever the comparison raises in one twin, it need not in another
            _refuse(standing)
        return answers.pop() if len(answers) == 1 else _refuse(standing)

    return answer


_COMPARED = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
_OF_EVERY_OBJECT = {"__class__", "__doc__", "__getattribute__", "__init__", "__init_subclass__", "__module__", "__new__"}
_USES = {*dir(int), *dir(float), *dir(str), "__call__", "__setitem__", "__torch_function__", "__array__", "__fspath__"}
for _name in _USES - _OF_EVERY_OBJECT:
    if _name.startswith("__"):
        setattr(Standing, _name, _answering(_name) if _name in _COMPARED else _refuse)


def kinds_of(model: nn.Module) -> list[Kind]:
    """The kinds of layers of which the model has at least three. Layers inside of twins are no kinds of their own."""
    found: list[Kind] = []
    todo, seen = [("", model)], {id(model)}
    while todo:
        path, module = todo.pop()
        children = [(f"{path}.{name}" if path else name, child) for name, child in module.named_children()]
        children = [(path, child) for path, child in children if id(child) not in seen]
        seen |= {id(child) for _, child in children}
        kinds = _kinds_among([(path, child) for path, child in children if any(True for _ in child.children())])
        taken = {id(layer) for kind in kinds for _, layer in kind.layers}
        found += kinds
        todo += [(path, child) for path, child in children if id(child) not in taken]
    return found


def _kinds_among(children: Sequence[tuple[str, nn.Module]]) -> list[Kind]:
    alike: dict[type, list[tuple[str, nn.Module]]] = defaultdict(list)
    for path, child in children:
        alike[type(child)].append((path, child))
    kinds = []
    for layers in alike.values():
        if len(layers) < FEWEST:
            continue
        facts = [_facts(layer) for _, layer in layers]
        for group in _equal_structure(facts):
            kinds += _split([layers[at] for at in group], [facts[at] for at in group])
    return kinds


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the code of a layer can depend on. `structure` must be equal in twins."""

    structure: Hashable
    attributes: Mapping[tuple[str, str], Hashable]


def _equal_structure(facts: Sequence[_Facts]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for at, each in enumerate(facts):
        groups[each.structure].append(at)
    return [group for group in groups.values() if len(group) >= FEWEST]


def _split(layers: Sequence[tuple[str, nn.Module]], facts: Sequence[_Facts]) -> list[Kind]:
    """The kinds among layers of equal structure: apart by each attribute that differs, unless each has a value of its own
    that may be a count."""
    if len(layers) < FEWEST:
        return []
    differing: dict[tuple[str, str], tuple[Any, ...]] = {}
    for key in facts[0].attributes:
        every = [each.attributes[key] for each in facts]
        if len(set(every)) == 1:
            continue
        values = [vars(layer.get_submodule(key[0]))[key[1]] for _, layer in layers]
        kinds = {type(value) for value in values}
        if len(set(every)) == len(every) and len(kinds) == 1 and kinds <= set(_COUNTS):
            differing[key] = tuple(values)
            continue
        apart: dict[Hashable, list[int]] = defaultdict(list)
        for at, fact in enumerate(every):
            apart[fact].append(at)
        return [
            kind
            for group in apart.values()
            for kind in _split([layers[at] for at in group], [facts[at] for at in group])
        ]
    return [Kind(tuple(layers), differing)]


def _facts(layer: nn.Module) -> _Facts:
    paths = {id(module): path for path, module in layer.named_modules()}
    tensors: dict[int, int] = {}
    structure: list[Hashable] = []
    attributes: dict[tuple[str, str], Hashable] = {}
    for path, module in layer.named_modules():
        held = [
            (name, kind_of_tensor(tensor), tensors.setdefault(id(tensor), len(tensors)))  # a number for each tensor
            for name, tensor in tensors_of(module).items()
        ]
        inside = [(name, paths[id(child)]) for name, child in module.named_children()]
        hooked = id(module) if hooks_on(module) or _has_slots(type(module)) else None  # what is not known, differs
        own = attributes_of(module)
        structure.append((path, type(module), module.training, tuple(held), tuple(inside), hooked, tuple(own)))
        if (same := getattr(own.get("forward"), SAME, None)) is not None:
            attributes[path, "forward"] = same
            continue
        for key, value in own.items():
            attributes[path, key] = _fact(value, paths)
    return _Facts(tuple(structure), attributes)


def _has_slots(kind: type) -> bool:
    """Whether modules of this class may have attributes that are in no dict."""
    return any(vars(base).get("__slots__") for base in kind.__mro__)


def _fact(value: Any, paths: Mapping[int, str]) -> Hashable:
    """What is equal for equal attributes: the value of plain ones, the identity of any other object. A module of the layer
    is the same as that of a twin at the same path."""
    if isinstance(value, PLAIN):
        return type(value), repr(value) if isinstance(value, float) else value
    if isinstance(value, nn.Module) and id(value) in paths:
        return "module", paths[id(value)]
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_fact(item, paths) for item in value)
    if isinstance(value, dict):
        return type(value), tuple((_fact(key, paths), _fact(item, paths)) for key, item in value.items())
    if isinstance(value, (set, frozenset)):
        return type(value), frozenset(_fact(item, paths) for item in value)
    if isinstance(value, partial):
        return partial, _fact(value.func, paths), _fact(value.args, paths), _fact(value.keywords, paths)
    if inspect.ismethod(value):
        return "method", value.__func__, _fact(value.__self__, paths)
    return "object", id(value)


__all__ = ["FEWEST", "SAME", "Kind", "ReadError", "Standing", "kinds_of"]
