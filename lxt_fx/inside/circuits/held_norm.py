"""A norm that is one op, as the linear map that it is when its statistic is held at the value of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.torch_internals import aten
from lxt_fx.base.wide import at_least_float32


def held_norm(op: Any, given: Mapping[str, Any], instead: Tensor) -> Tensor:
    """What a norm over the last dims gives of `instead`, with the mean square or the variance of its input `given`:
    (x - mean(x)) s w + b of a layer norm, x s w of an RMS norm."""
    before: Tensor = given["input"]
    dims = list(range(-len(given["normalized_shape"]), 0))
    ran, x = at_least_float32(before), at_least_float32(instead)
    if op is aten.layer_norm.default:
        spread, x = ran.var(dims, correction=0, keepdim=True), x - x.mean(dims, keepdim=True)
        small = given.get("eps", 1e-5)
    else:
        spread, eps = ran.pow(2).mean(dims, keepdim=True), given.get("eps")
        small = torch.finfo(before.dtype).eps if eps is None else eps
    found = x * (spread + small).rsqrt()
    weight, bias = given.get("weight"), given.get("bias")
    found = found if weight is None else found * weight
    whole: Tensor = found if bias is None else found + bias
    return whole.to(before.dtype)
