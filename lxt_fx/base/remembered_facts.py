"""The facts of a model, to be compared in the same process: plain values by what they are, objects by identity, and without
holding the model."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from lxt_fx.base.module_facts import (
    PLAIN,
    SEPARATORS,
    Again,
    Constant,
    Fact,
    Held,
    has_comparable_values,
    kind_of_tensor,
)
from lxt_fx.base.torch_internals import version_of


@dataclass(frozen=True, slots=True, eq=False)
class Remembered:
    """Facts to compare others with later. It holds none of the objects that could hold the model: objects are compared by
    identity, and count as others once they are gone. `uncertain` is the path of one that cannot be compared so, empty if
    all can. `unstable` are paths of facts that the model's own forward writes, and with a `[` behind it that of a container
    that it fills."""

    tokens: Mapping[str, Any]
    alive: tuple[weakref.ref[Any], ...]
    held: tuple[Any, ...]
    uncertain: str
    unstable: frozenset[str] = frozenset()

    def is_same(self, other: Remembered) -> bool:
        """Whether the facts are the same, but for those that the forward wrote when these were remembered, and for new ones
        inside of what it wrote or filled. A fact that the forward left as it was counts wherever it stands."""
        if self.uncertain or other.uncertain or any(ref() is None for ref in self.alive):
            return False
        return all(map(self._is_unstable, _differing(self.tokens, other.tokens)))

    def less_changed(self, earlier: Remembered) -> Remembered:
        """The same facts, of which those count no more that differ from earlier ones: the model's own forward, which ran
        in between, writes them (a counter, a cache, the list of a hook)."""
        changed, known = _differing(self.tokens, earlier.tokens), self.tokens.keys() | earlier.tokens.keys()
        added = [path for path in changed if path not in self.tokens or path not in earlier.tokens]
        filled = {path[: len(above) + 1] for path in added if (above := _nearest(path, known)) is not None}
        filled = {place for place in filled if place.endswith("[")}
        return replace(self, unstable=self.unstable | changed | filled)

    def _is_unstable(self, path: str) -> bool:
        if path in self.unstable:
            return True
        above = None if path in self.tokens else _nearest(path, self.tokens)
        return above is not None and not self.unstable.isdisjoint((above, path[: len(above) + 1]))


def _differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> set[str]:
    """The paths at which facts differ, or stand in one of both only."""
    return {path for path in one if path not in other or one[path] != other[path]} | (other.keys() - one.keys())


def _nearest(path: str, known: Container[str]) -> str | None:
    """The path of what holds the fact at a path, as far as it is known. A key may have separators in it too; what is cut
    off there is the path of nothing."""
    cut = (path[:at] for at in range(len(path) - 1, 0, -1) if path[at] in SEPARATORS)
    return next((above for above in cut if above in known), None)


def remembered(facts: Iterable[Fact]) -> Remembered:
    """Facts as they are now, to be compared with those of the same model at another time."""
    tokens: dict[str, Any] = {}
    alive: dict[int, weakref.ref[Any]] = {}
    held: list[Any] = []
    uncertain, times = "", Counter[str]()
    for path, fact in facts:
        try:
            token, objects = _token(fact)
        except Exception:  # objects may raise anything when they are read
            token, objects, uncertain = id(fact), (), uncertain or path
        times[path] += 1  # where a module has an attribute and a submodule of one name
        place = f"{path}'{times[path]}" if times[path] > 1 else path
        while place in tokens:
            place += "'"
        tokens[place] = token
        for each in objects:
            if id(each) in alive:
                continue
            try:
                alive[id(each)] = weakref.ref(each)
            except TypeError:
                held.append(each)
                uncertain = uncertain or (path if gc.is_tracked(each) else "")
    return Remembered(tokens, tuple(alive.values()), tuple(held), uncertain)


def _token(fact: Any) -> tuple[Any, tuple[Any, ...]]:
    """What a fact is compared by, and the objects whose identity counts."""
    match fact:
        case Again():
            return fact.path, ()
        case Held():
            return (id(fact.kind), "held"), (fact.kind,)
        case Constant():
            return (id(fact.tensor), kind_of_tensor(fact.tensor), version_of(fact.tensor)), (fact.tensor,)
        case Tensor():
            return (id(fact), kind_of_tensor(fact)), (fact,)
        case float():
            return (float, fact.hex()), ()
        case np.ndarray() | np.generic() if has_comparable_values(fact):
            return (str(fact.dtype), fact.shape, fact.tobytes()), ()
        case _ if isinstance(fact, PLAIN):
            return (type(fact), fact), ()
    return id(fact), (fact,)
