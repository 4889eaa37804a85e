"""What the modules of a model hold, with copies of their containers, to be compared and put back later."""

from __future__ import annotations

import enum
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import is_
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

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

_CONTAINERS = (dict, list, set, deque)
_OF_PYTHON = (SimpleNamespace, Namespace)
"""Classes of Python whose objects hold what their owner writes into them."""
_HOLDS_NOTHING = frozenset((bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device))
NOTHING = object()
"""Stands for an entry that is not there."""


class Snapshot:
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
            was = copied(owner)
            self.parts.append((owner, was, place))
            if isinstance(owner, dict):
                for key, value in was.items():
                    self._held(value, place or (id(owner), key), todo)
            else:
                for value in was:
                    self._held(value, place, todo)
        small = _smallest([tensor for tensor in self.found if _can_be_copied(tensor)])
        self.copies = [(tensor, copied_tensor(tensor)) for tensor in small]
        ours = {id(tensor) for tensor, _ in self.copies}
        others = [x for x in self.found if type(x) in (Tensor, nn.Parameter) and id(x) not in ours and not x.is_inference()]
        self._versions = [(tensor, version_of(tensor)) for tensor in others]

    def _held(self, value: Any, place: Place | None, todo: deque[tuple[Any, Place | None]]) -> None:
        kind = type(value)
        if kind in _HOLDS_NOTHING:
            return
        if isinstance(value, _CONTAINERS):
            todo.append((value, place))
        elif isinstance(value, tuple):
            for item in islice(value, MOST_ENTRIES):
                self._held(item, place, todo)
        elif isinstance(value, Tensor):
            if id(value) not in self._seen:
                self._seen.add(id(value))
                self.found.append(value)
        elif isinstance(value, nn.Module):
            todo.append((vars(value), None))
        if (package_of(kind) not in NOT_FOLLOWED and not isinstance(value, enum.Enum | nn.Module)) or kind in _OF_PYTHON:
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


def copied_tensor(tensor: Tensor) -> Tensor:
    """The values of a tensor; it requires a gradient if that does."""
    copy = tensor.detach().clone()
    return copy.requires_grad_() if tensor.requires_grad else copy


def is_other(tensor: Tensor, was: Tensor) -> bool:
    """Whether a tensor has other values than its copy, or requires a gradient where that does not; NaN equals NaN."""
    if tensor.dtype != was.dtype or tensor.device != was.device or tensor.requires_grad != was.requires_grad:
        return True
    if torch.equal(tensor, was):
        return False
    if tensor.shape != was.shape or not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return not torch.allclose(tensor, was, rtol=0, atol=0, equal_nan=True)


def fill(tensors: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Gives tensors the values of their copies. One that an in-place write made part of an autograd graph leaves it."""
    with torch.no_grad():
        for tensor, value in tensors:
            if tensor.grad_fn is not None and not value.requires_grad:
                tensor.detach_()
            if tensor.shape == value.shape and tensor.dtype == value.dtype and tensor.device == value.device:
                tensor.copy_(value)
            else:
                tensor.data = value.clone()


def differs(now: Any, was: Any) -> bool:
    """Whether a container holds other objects than before, or in another order."""
    if len(now) != len(was):
        return True
    if isinstance(now, set):
        return bool(now != was)
    if isinstance(now, dict):
        return not (all(map(is_, dict.__iter__(now), was)) and all(map(is_, dict.values(now), was.values())))
    return not all(map(is_, now, was))


def is_equal(now: dict[Any, Any], was: dict[Any, Any], key: Any) -> bool:
    """Whether an entry has the same value: a number that is computed anew may be another object."""
    if key not in now or key not in was:
        return False
    one, other = now[key], was[key]
    return one is other or (type(one) is type(other) and is_plain(one) and is_plain(other) and bool(one == other))


def put(owner: Any, now: Any, wanted: Any) -> None:
    """Puts what was found to differ between two states of a container as it is in the second."""
    if isinstance(owner, dict):
        kind = _dict_of(owner)
        for key in [key for key in now if key not in wanted]:
            kind.pop(owner, key, None)
        for key, value in wanted.items():
            if now.get(key, NOTHING) is not value:
                kind.__setitem__(owner, key, value)
        if [key for key in kind.__iter__(owner) if key in wanted] != list(wanted):  # submodules run in their order
            for key, value in wanted.items():
                kind.pop(owner, key, None)
                kind.__setitem__(owner, key, value)
    elif isinstance(owner, list):
        list.__setitem__(owner, slice(None), wanted)
    else:
        owner.clear()
        (owner.update if isinstance(owner, set) else owner.extend)(wanted)


def _dict_of(owner: dict[Any, Any]) -> type[dict[Any, Any]]:
    """The class whose functions act on the entries of a dict: one of its own may do more, such as import a package."""
    return OrderedDict if isinstance(owner, OrderedDict) else dict


def copied(owner: Any) -> Any:
    """What a container holds, as a dict, list or set."""
    if isinstance(owner, dict):
        kind = _dict_of(owner)
        return dict.copy(owner) if kind is dict else {key: dict.__getitem__(owner, key) for key in kind.__iter__(owner)}
    return set(owner) if isinstance(owner, set) else list(owner)


def has_new_tensors_only(now: Any, was: Any) -> bool:
    """Whether a container differs by tensors alone, or lists and dicts of these: a table that a model builds."""
    if isinstance(now, dict):
        changed = [now.get(key, NOTHING) for key in {*now, *was} if not is_equal(now, was, key)]
    else:
        known = {id(item) for item in was}
        changed = [item for item in now if id(item) not in known]
    return all(isinstance(x, Tensor) for value in changed for x in pytree.tree_leaves(value))
