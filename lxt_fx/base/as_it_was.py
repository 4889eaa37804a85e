"""A model whose own forward changes it (which attention it runs, what it counts, what it builds at its first call) is put
back as it was, whenever we run it.

Looked at are all modules of the model, and what they hold in turn: their attributes, submodules, parameters, buffers and
hooks, the lists and dicts among these, and configs and other objects of a model's package. Attributes and entries are put
back by identity, so nothing is copied for it. Small tensors that are no parameters (counters, running statistics) are
copied, and their values put back; a parameter or a large tensor that a forward writes into is named in a warning.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import islice
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lxt_fx.base.module_facts import NOT_FOLLOWED, is_plain, package_of
from lxt_fx.base.torch_internals import pytree, version_of
from lxt_fx.base.warn_user import warn_user

MOST_BYTES = 32 * 2**20
"""How many bytes of tensors are copied at a run, the smallest tensors first."""

MOST_ENTRIES, MOST_PARTS = 10_000, 100_000
"""The largest list or dict that is looked at (a vocabulary is larger), and how many objects are looked at. Modules come
first."""

Place = tuple[int, str]
"""Where something stands: the dict of its object, by identity, and its name."""

_DICTS, _LISTS = (dict, OrderedDict, defaultdict), (list, deque)
_CONTAINERS = frozenset((*_DICTS, *_LISTS, set))
_HOLDS_NOTHING = frozenset((bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device))
_NOTHING = object()


@dataclass(slots=True, eq=False)
class Written:
    """What the forward of a model wrote into it inside a block; known behind it, or after `look`. `places` are the
    attributes and entries that have another value, those that hold a list or dict whose entries have, among them. `made`
    has the new values of entries by their place."""

    places: frozenset[Place] = frozenset()
    made: dict[Place, Any] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    _before: _Snapshot | None = None
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
            if not _differs(owner, was):
                continue
            now = owner.copy()
            self._parts.append((owner, was, now))
            if isinstance(owner, dict):
                changed = {key: now.get(key, _NOTHING) for key in {*now, *was} if not _is_equal(now, was, key)}
                self.made.update({(id(owner), key): value for key, value in changed.items()})
                places.update((id(owner), key) for key in changed)
                if place is not None and changed:
                    places.add(place)
            elif place is not None and not (is_plain(now) and is_plain(was) and now == was):
                places.add(place)
        self.places = frozenset(places)
        self._tensors = [(tensor, was, tensor.detach().clone()) for tensor, was in before.copies if _other(tensor, was)]
        if self.made:
            known = {id(x) for x in before.found}
            new = ((key, x) for (_, key), value in self.made.items() for x in _parameters_in(value))
            self.parameters = tuple(dict.fromkeys(key for key, x in new if id(x) not in known))

    def put_back(self) -> None:
        """Puts the model back as it was before the block."""
        for owner, was, now in self._parts:
            _put(owner, now, was)
        _fill((tensor, was) for tensor, was, _ in self._tensors)

    def again(self) -> None:
        """Changes the model as its forward did. To be called inside of another block that puts it back."""
        for owner, was, now in self._parts:
            _put(owner, was, now)
        _fill((tensor, now) for tensor, _, now in self._tensors)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[Written]:
    """Inside, the model may be run; behind the block, also if it raises, it is what it was before. Gives what was written
    meanwhile. Other threads should not change the model inside: that would be undone too."""
    written = Written()
    if id(model) in _BEHIND.get() or _is_explained(model):
        yield written
        return
    written._before = before = _Snapshot(model)
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


class _Snapshot:
    """A model as it is: its containers, each with a copy of what it holds and the attribute that it stands in, and its
    tensors."""

    def __init__(self, model: nn.Module) -> None:
        self.parts: list[tuple[Any, Any, Place | None]] = []
        self.found: list[Tensor] = []
        self._seen = set[int]()
        todo = deque[tuple[Any, Place | None]]((vars(module), None) for module in model.modules())
        while todo and len(self.parts) < MOST_PARTS:
            owner, place = todo.popleft()
            if id(owner) in self._seen or len(owner) > MOST_ENTRIES:
                continue
            self._seen.add(id(owner))
            was = owner.copy()
            self.parts.append((owner, was, place))
            if isinstance(owner, dict):
                for key, value in was.items():
                    self._held(value, place or (id(owner), key), todo)
            else:
                for value in was:
                    self._held(value, place, todo)
        copied = [tensor for tensor in self.found if _can_be_copied(tensor)]
        self.copies = [(tensor, tensor.detach().clone()) for tensor in _smallest(copied)]
        ours = {id(tensor) for tensor, _ in self.copies}
        others = [tensor for tensor in self.found if id(tensor) not in ours and not tensor.is_inference()]
        self._versions = [(tensor, version_of(tensor)) for tensor in others]

    def _held(self, value: Any, place: Place | None, todo: deque[tuple[Any, Place | None]]) -> None:
        kind = type(value)
        if kind in _HOLDS_NOTHING:
            return
        if kind in _CONTAINERS:
            todo.append((value, place))
        elif kind is tuple:
            for item in islice(value, MOST_ENTRIES):
                self._held(item, place, todo)
        elif isinstance(value, Tensor):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self.found.append(value)
        elif isinstance(value, nn.Module):
            todo.append((vars(value), None))
        elif package_of(kind) not in NOT_FOLLOWED and not isinstance(value, enum.Enum):
            own = getattr(value, "__dict__", None)
            if type(own) is dict:
                todo.append((own, None))

    def warn(self, model: nn.Module) -> None:
        """Names tensors that were written into and are not put back."""
        written = {id(tensor) for tensor, version in self._versions if version_of(tensor) != version}
        if written:
            every = (*model.named_parameters(), *model.named_buffers())
            name = next((name for name, tensor in every if id(tensor) in written), "a tensor")
            warn_user(
                f"{type(model).__name__}: its own forward writes into {name} in place, a parameter or a large tensor, of "
                "which no copy is made: it has the new values now, as after any call of the model. Copy the model before, "
                "if you need the old ones"
            )


def _is_explained(model: nn.Module) -> bool:
    """Whether this is one of our own modules, whose graph changes nothing."""
    return isinstance(model, GraphModule) and any(package_of(kind) == "lxt_fx" for kind in type(model).__mro__)


def _can_be_copied(tensor: Tensor) -> bool:
    plain = type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_quantized
    return plain and tensor.device.type != "meta" and not tensor.is_inference()


def _smallest(tensors: list[Tensor]) -> Iterator[Tensor]:
    left = MOST_BYTES
    for tensor in sorted(tensors, key=lambda tensor: tensor.nbytes):
        left -= tensor.nbytes
        if left < 0:
            return
        yield tensor


def _other(tensor: Tensor, was: Tensor) -> bool:
    same = tensor.dtype == was.dtype and tensor.device == was.device and tensor.requires_grad == was.requires_grad
    return not same or not torch.equal(tensor, was)


def _fill(tensors: Iterable[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, value in tensors:
            if tensor.requires_grad and tensor.grad_fn is not None:
                tensor.detach_()
            if tensor.shape == value.shape and tensor.dtype == value.dtype and tensor.device == value.device:
                tensor.copy_(value)
            else:
                tensor.data = value.clone()


def _differs(now: Any, was: Any) -> bool:
    """Whether a container holds other objects than before, or in another order."""
    if len(now) != len(was):
        return True
    if isinstance(now, set):
        return bool(now != was)
    if isinstance(now, dict):
        return not (all(map(is_, now, was)) and all(map(is_, now.values(), was.values())))
    return not all(map(is_, now, was))


def _is_equal(now: dict[Any, Any], was: dict[Any, Any], key: Any) -> bool:
    """Whether an entry has the same value: a number that is computed anew may be another object."""
    if key not in now or key not in was:
        return False
    one, other = now[key], was[key]
    return one is other or (type(one) is type(other) and is_plain(one) and is_plain(other) and bool(one == other))


def _put(owner: Any, now: Any, wanted: Any) -> None:
    """Puts what was found to differ between two states of a container as it is in the second."""
    if isinstance(owner, dict):
        for key in [key for key in now if key not in wanted]:
            owner.pop(key, None)
        owner.update({key: value for key, value in wanted.items() if now.get(key, _NOTHING) is not value})
        if [key for key in owner if key in wanted] != list(wanted):  # submodules run in their order
            for key, value in wanted.items():
                del owner[key]
                owner[key] = value
    elif isinstance(owner, list):
        owner[:] = wanted
    else:
        owner.clear()
        (owner.update if isinstance(owner, set) else owner.extend)(wanted)


def _parameters_in(value: Any) -> Iterator[nn.Parameter]:
    if isinstance(value, nn.Parameter):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
