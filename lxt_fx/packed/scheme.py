"""What is known of a class of packed layers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.torch_internals import contents_of
from lxt_fx.ops.packed import Unpack


@dataclass(frozen=True, slots=True)
class Scheme:
    """A class of layers that compute x W^T + b with packed W.

    `unpack` takes a layer to W [out, in] and b. `named` says its scheme as it is printed (`bitsandbytes nf4`), and `rounds`
    what its kernel rounds besides the weights, empty where it rounds nothing. `holds` returns why a layer of the class is
    no such map, or None.
    """

    unpack: Unpack
    named: Callable[[Any], str]
    rounds: Callable[[Any], str] = lambda layer: ""
    holds: Callable[[Any], str | None] = lambda layer: None


def shell(module: nn.Module) -> Any:
    """A copy of the module with the same tensors and submodules, in dicts of its own and without hooks."""
    found = copy.copy(module)
    for name, held in vars(module).items():
        if isinstance(held, dict):
            vars(found)[name] = held.copy() if "hook" not in name else type(held)()
    vars(found).pop("forward", None)
    return found


def by_identity(layer: Any, dtype: torch.dtype | None = None, size: int | None = None) -> tuple[Tensor, Tensor | None]:
    """W and b of a layer whose format only its kernel knows: W is what the kernel computes for the unit vectors, in this
    dtype and of this size (`in_features` if None), without a bias. For kernels that do not round their input."""
    bare = shell(layer)
    for held in contents_of(bare):
        if "bias" in held:
            held["bias"] = None
    tensors = [*layer.parameters(), *layer.buffers()]
    wide = (t.dtype for t in tensors if t.is_floating_point() and t.itemsize > 1)
    size = layer.in_features if size is None else size
    units = torch.eye(size, dtype=dtype or next(wide, torch.float16), device=tensors[0].device)
    return type(layer).forward(bare, units).T, layer.bias
