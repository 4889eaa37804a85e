"""A model whose own forward changes it (which attention it runs, what it counts, what it builds at its first call) is put
back as it was, whenever we run it.

Looked at are all modules of the model, and what they hold in turn: their attributes, submodules, parameters, buffers and
hooks, the lists and dicts among these, and configs and other objects of a model's package. Attributes and entries are put
back by identity, so nothing is copied for it. Small tensors that are no parameters (counters, running statistics) are
copied, and their values put back; a parameter or a large tensor that a forward writes into is named in a warning.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from lxt_fx.base.model_snapshot import (
    NOTHING,
    Place,
    Snapshot,
    copied,
    copied_tensor,
    differs,
    fill,
    has_new_tensors_only,
    is_equal,
    is_other,
    put,
)
from lxt_fx.base.module_facts import is_plain, package_of
from lxt_fx.base.one_capture import one_capture
from lxt_fx.base.torch_internals import pytree


@dataclass(slots=True, eq=False)
class Written:
    """What the forward of a model wrote into it inside a block; known behind it, or after `look`. `places` are the
    attributes and entries that have another value, those that hold a list or dict whose entries have, among them. `made`
    has the new values of entries by their place, `parameters` names those that were drawn, and the forward `chooses` if it
    wrote anything but tensors."""

    places: frozenset[Place] = frozenset()
    made: dict[Place, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    chooses: bool = False
    _before: Snapshot | None = None
    _parts: list[tuple[Any, Any, Any]] = field(default_factory=list)
    _tensors: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.places or self._tensors)

    @property
    def in_place(self) -> bool:
        """Whether values of tensors were written."""
        return bool(self._tensors)

    def look(self) -> None:
        """Finds out what is another now."""
        if (before := self._before) is None:
            return
        self._before, places = None, set[Place]()
        for owner, was, place in before.parts:
            if not differs(owner, was):
                continue
            now = copied(owner)
            self._parts.append((owner, was, now))
            self.chooses = self.chooses or not has_new_tensors_only(now, was)
            if isinstance(owner, dict):
                changed = {key: now.get(key, NOTHING) for key in {*now, *was} if not is_equal(now, was, key)}
                self.made.update({(id(owner), key): value for key, value in changed.items()})
                places.update((id(owner), key) for key in changed)
                if place is not None and changed:
                    places.add(place)
            elif place is not None and not (is_plain(now) and is_plain(was) and now == was):
                places.add(place)
        self.places = frozenset(places)
        self._tensors = [(tensor, was, copied_tensor(tensor)) for tensor, was in before.copies if is_other(tensor, was)]
        if self.made:
            known = {id(x) for x in before.found}
            new = ((key, x) for (_, key), value in self.made.items() for x in _parameters_in(value))
            self.parameters = tuple(dict.fromkeys(key for key, x in new if id(x) not in known))

    def put_back(self) -> None:
        """Puts the model back as it was before the block."""
        for owner, was, now in self._parts:
            put(owner, now, was)
        fill((tensor, was) for tensor, was, _ in self._tensors)

    def again(self) -> None:
        """Changes the model as its forward did. To be called inside of another block that puts it back."""
        for owner, was, now in self._parts:
            put(owner, was, now)
        fill((tensor, now) for tensor, _, now in self._tensors)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[Written]:
    """Inside, the model may be run; behind the block, also if it raises, it is what it was before. Gives what was written
    meanwhile. One thread at a time is inside such a block, or captures: each would take what the other has put into the
    model for its own state. What a thread of the user changes meanwhile is undone too."""
    written = Written()
    if id(model) in _BEHIND.get() or _is_explained(model):
        yield written
        return
    with one_capture():
        written._before = before = Snapshot(model)
        try:
            yield written
        finally:
            written.look()
            written.put_back()
            before.warn(model)


def answer_of(model: nn.Module, call: Callable[[], Any]) -> Any:
    """What a call of the model returns, which is put back as it was before. Raises what the call raises."""
    with as_it_was(model) as written:
        output = call()
        written.look()
        if written.in_place:  # the output may be a part of what is put back
            output = pytree.tree_map_only(Tensor, Tensor.clone, output)
    if written:
        for runs in _LOGS.get():
            runs.add(output, written)
    return output


@contextmanager
def put_back_behind(model: nn.Module) -> Iterator[Written]:
    """As `as_it_was`, and blocks of that inside of this one leave it to this one: a backward that follows a run needs the
    tensors that the run has written."""
    with as_it_was(model) as written:
        token = _BEHIND.set(_BEHIND.get() | {id(model)})
        try:
            yield written
        finally:
            _BEHIND.reset(token)


_BEHIND: ContextVar[frozenset[int]] = ContextVar("_BEHIND", default=frozenset())
_LOGS: ContextVar[tuple[Runs, ...]] = ContextVar("_LOGS", default=())


class Runs:
    """The runs of a model that wrote something, each with its output."""

    def __init__(self) -> None:
        self._found: list[tuple[Any, Written]] = []

    def add(self, output: Any, written: Written) -> None:
        """Logs one run."""
        self._found.append((output, written))

    def of(self, output: Any) -> Written:
        """What the run wrote that gave this output."""
        return next((written for given, written in self._found if given is output), Written())

    def others(self, known: Written) -> list[Written]:
        """One run for each set of places that were written beyond those of a known one."""
        beyond = {written.places - known.places: written for _, written in self._found}
        return [written for places, written in beyond.items() if places]


@contextmanager
def runs_logged() -> Iterator[Runs]:
    """The calls inside the block by `answer_of` that wrote something."""
    runs = Runs()
    token = _LOGS.set((*_LOGS.get(), runs))
    try:
        yield runs
    finally:
        _LOGS.reset(token)


def _is_explained(model: nn.Module) -> bool:
    """Whether this is one of our own modules, whose graph changes nothing."""
    return isinstance(model, GraphModule) and any(package_of(kind) == "lxt_fx" for kind in type(model).__mro__)


def _parameters_in(value: Any) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
