"""The facts of a model, to be compared in the same process: plain values by what they are, objects by identity, and without
holding the model."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from lxt_fx.base.module_facts import PLAIN, Again, Constant, Fact, Held, has_comparable_values, kind_of_tensor
from lxt_fx.base.torch_internals import version_of


@dataclass(frozen=True, slots=True, eq=False)
class Remembered:
    """Facts to compare others with later. It holds none of the objects that could hold the model: objects are compared by
    identity, and count as others once they are gone. `certain` says that all of them can be compared so."""

    tokens: Mapping[str, Any]
    alive: tuple[weakref.ref[Any], ...]
    held: tuple[Any, ...]
    certain: bool
    unstable: tuple[str, ...] = ()

    def is_same(self, other: Remembered) -> bool:
        """Whether the facts are the same, but for those below the `unstable` paths of this one."""
        if not self.certain or not other.certain or any(ref() is None for ref in self.alive):
            return False
        if not self.unstable:
            return self.tokens == other.tokens
        return self._stable(self.tokens) == self._stable(other.tokens)

    def less_changed(self, earlier: Remembered) -> Remembered:
        """The same facts, of which those count no more that differ from earlier ones: the model's own forward, which ran
        in between, writes them (a counter, a cache, the list of a hook)."""
        paths = {*self.tokens, *earlier.tokens}
        changed = {path for path in paths if self.tokens.get(path) != earlier.tokens.get(path)}
        grown = {path.rpartition("[")[0] + "[" for path in changed if path not in self.tokens or path not in earlier.tokens}
        return replace(self, unstable=(*self.unstable, *sorted(changed | {path for path in grown if path != "["})))

    def _stable(self, tokens: Mapping[str, Any]) -> dict[str, Any]:
        return {path: token for path, token in tokens.items() if not path.startswith(self.unstable)}


def remembered(facts: Iterable[Fact]) -> Remembered:
    """Facts as they are now, to be compared with those of the same model at another time."""
    tokens: dict[str, Any] = {}
    alive: dict[int, weakref.ref[Any]] = {}
    held: list[Any] = []
    certain, times = True, Counter[str]()
    for path, fact in facts:
        try:
            token, objects = _token(fact)
        except Exception:  # objects may raise anything when they are read
            token, objects, certain = id(fact), (), False
        times[path] += 1  # of a class and an attribute with a name in common, and of the objects of one class in a set
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
                certain = certain and not gc.is_tracked(each)
    return Remembered(tokens, tuple(alive.values()), tuple(held), certain)


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
