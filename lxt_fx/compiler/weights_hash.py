"""The weights of a model as a short hash that is equal in every process."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lxt_fx.base.named_tensors import named_tensors
from lxt_fx.base.streamed_weight import StreamedWeight, loaded
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.offloaded import in_place, is_offloaded

LONG = 16
"""How many digits of a hash are written."""

ROW = 512
"""How many words of 64 bits are a row."""


def weights_hash(model: nn.Module) -> str:
    """A hash of all parameters and buffers under their names: a model in which one number is another has another one, and
    so has one in which two tensors are exchanged. Of an explained module, those that its tokens are looked up in count
    too, which its graph does not hold."""
    modules = (model, *(front.module for front in model._fronts)) if isinstance(model, Explained) else (model,)
    names, tensors = defaultdict[int, set[str]](set), dict[int, Tensor]()
    for module in modules:
        for name, tensor in named_tensors(module):
            names[id(tensor)].add(name)
            tensors[id(tensor)] = tensor
    with torch.no_grad():
        each = [
            f"{sorted(names[key])} {list(x.shape)} {x.dtype} {_numbers(_read(model, names[key], x))}"
            for key, x in tensors.items()
        ]
    return short_hash(" ".join(sorted(each)).encode())


def _read(model: nn.Module, names: Iterable[str], tensor: Tensor) -> Tensor:
    """The tensor with its values, which are read if it is offloaded."""
    if tensor.is_meta and not isinstance(tensor, StreamedWeight) and is_offloaded(model):
        tensor = in_place(model, min(names), tensor)
    found: Tensor = loaded(tensor)
    return found


def _numbers(tensor: Tensor) -> str:
    """A hash of sums over all bits: of rows of 64-bit words their sums over rows and over columns, and of the rest the
    bytes. Sums of whole numbers are exact, so they do not depend on threads or devices; they take a sixth of the time of a
    hash."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return ""
    plain = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    flat = plain.contiguous().reshape(-1).view(torch.uint8)
    size = len(flat) - len(flat) % (8 * ROW)
    words = flat[:size] if flat.storage_offset() % 8 == 0 else flat[:size].clone()
    rows = words.view(torch.int64).reshape(-1, ROW)
    parts = (rows.sum(0), rows.sum(1), flat[size:])
    return short_hash(b"|".join(part.cpu().numpy().tobytes() for part in parts))


def short_hash(data: bytes) -> str:
    """The first digits of the SHA-256 hash of these bytes."""
    return hashlib.sha256(data).hexdigest()[:LONG]
