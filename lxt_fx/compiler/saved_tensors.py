"""The tensors of a module in a file: each once, under the names of all that share it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.named_tensors import named_tensors
from lxt_fx.base.saved_json import Saved
from lxt_fx.base.streamed_weight import StreamedWeight
from lxt_fx.ops.packed import packed_layer_of

_PART = re.compile(r"[\w\-+:/@ ]{1,200}", re.ASCII)
"""A name between the dots of a path: what code may hold between quotes."""
DEEPEST = 64
"""How many names a path may have."""
MOST = 1_000_000


class Tensors:
    """Tensors to be written, by key. Two names of one storage, tied weights, share a key."""

    def __init__(self) -> None:
        self.written: dict[str, Tensor] = {}
        self._keys: dict[tuple[Any, ...], str] = {}
        self._storages: set[int] = set()

    def key(self, name: str, tensor: Tensor) -> str:
        """The key of a tensor: that of an equal view of the same storage, else its name. Raises InputError for a name that
        cannot stand in a file, and a tensor that has no values."""
        if not is_path(name):
            raise InputError(f"save: the tensor {name!r} has a name that cannot be written; rename its module")
        if isinstance(tensor, StreamedWeight):
            raise InputError(
                f"save: {name} is offloaded and read for each use, and a file would need all weights in memory; save the "
                "module of the model loaded without offload"
            )
        if tensor.is_meta or tensor.layout != torch.strided:
            kind = "on the meta device" if tensor.is_meta else f"of layout {tensor.layout}"
            raise InputError(f"save: the tensor {name} is {kind}, and a file holds dense values")
        same = (_place(tensor), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        if same not in self._keys:
            self._keys[same] = name
            self.written[name] = self._alone(tensor.detach())
        return self._keys[same]

    def _alone(self, tensor: Tensor) -> Tensor:
        """The tensor, without memory that another one of the file has. It is copied only if it must be."""
        tensor = tensor.contiguous()
        shared = _place(tensor) in self._storages or tensor.untyped_storage().nbytes() > tensor.nbytes
        self._storages.add(_place(tensor))
        return tensor.clone() if shared else tensor


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def write_tensors(module: nn.Module, tensors: Tensors) -> dict[str, str]:
    """Adds all parameters and buffers, but for packed weights. Returns the key of each by name."""
    return {name: tensors.key(name, tensor) for name, tensor in named_tensors(module) if packed_layer_of(tensor) is None}


def read_names(saved: Saved, tensors: Mapping[str, Tensor], reserved: Iterable[str]) -> dict[str, str]:
    """The key of each tensor's name. Raises InputError for a name that is no path, a key that the file does not have, and
    a name that a module uses itself (`forward`, or one of `reserved` at the top)."""
    found: dict[str, str] = {}
    above = frozenset(reserved)
    below = frozenset(dir(nn.Module()))
    modules: set[str] = set()
    if len(saved.entries()) > MOST:
        saved.fail(f"has more than {MOST} names")
    for path, key in saved.entries().items():
        if not is_path(path):
            key.fail("is no path of a tensor")
        first, *rest = path.split(".")
        if first in above or not below.isdisjoint((first, *rest)):
            key.fail("has a name that a module uses itself")
        found[path] = key.text(10_000)
        if found[path] not in tensors:
            key.fail(f"is {found[path][:200]!r}, and the file has no such tensor")
        modules.update(".".join([first, *rest][:count]) for count in range(1, len(rest) + 1))
    if both := sorted(modules & found.keys()):
        saved.fail(f"holds {both[0]!r} as a tensor and as a module")
    return found


def root_of(keys: Mapping[str, str], parameters: Iterable[str], tensors: Mapping[str, Tensor]) -> nn.Module:
    """A module with these tensors at these paths. Names of one key get the same tensor."""
    root = nn.Module()
    learned = set(parameters)
    shared: dict[str, Any] = {}
    for path, key in keys.items():
        owner, last = made_owner(root, path)
        if path in learned:
            shared.setdefault(key, nn.Parameter(tensors[key], requires_grad=tensors[key].is_floating_point()))
            owner.register_parameter(last, shared[key])
        else:
            owner.register_buffer(last, tensors[key])
    return root


def made_owner(root: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that has the tensor at this path, and the tensor's name in it. Modules on the way are made where they are
    missing."""
    *modules, last = path.split(".")
    owner = root
    for name in modules:
        if name not in dict(owner.named_children()):
            owner.add_module(name, nn.Module())
        owner = owner.get_submodule(name)
    return owner, last


def is_path(name: str) -> bool:
    """Whether code may read a tensor by this name, whole or in quotes: parts between dots, without quotes or brackets."""
    parts = name.split(".")
    return len(parts) <= DEEPEST and all(_PART.fullmatch(part) for part in parts)
