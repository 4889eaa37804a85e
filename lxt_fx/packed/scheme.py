"""What is known of a class of packed layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.ops.packed import Unpack


@dataclass(frozen=True, slots=True)
class Scheme:
    """A class of layers that compute x W^T + b with packed W.

    `unpack` takes a layer to W [out, in] and b. `named` says its scheme as it is printed (`bitsandbytes nf4`), and `rounds`
    what its kernel rounds besides the weights, empty where it rounds nothing. `holds` returns why a layer of the class is no
    such map, or None.
    """

    unpack: Unpack
    named: Callable[[Any], str]
    rounds: Callable[[Any], str] = lambda layer: ""
    holds: Callable[[Any], str | None] = lambda layer: None


def by_identity(layer: Any) -> tuple[Tensor, Tensor]:
    """W and b of a layer whose format only its kernel knows, from what the kernel computes for the unit vectors and for 0.
    For kernels that do not round their input."""
    inside = int(layer.in_features)
    found = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point() and t.itemsize > 1), None)
    dtype = torch.float16 if found is None else found.dtype
    device = next(iter((*layer.parameters(), *layer.buffers()))).device
    units = torch.eye(inside, dtype=dtype, device=device)
    bias = type(layer).forward(layer, units.new_zeros(1, inside))[0]
    return (type(layer).forward(layer, units) - bias).T, bias
