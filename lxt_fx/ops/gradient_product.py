"""gradient @ weight, the matrix product in the backward of a linear map.

- An explanation of one class or token reads one position of the output. What comes after the last op that mixes positions
  has no gradient elsewhere, and with `sparse` these positions are not multiplied.
- On AMD processors with AVX-512 float32 goes to oneDNN, which is part of torch: MKL, which torch's `mm` calls, does not use
  AVX-512 there and takes twice as long (torch 2.13, EPYC, 128 x 384 x 384 to 197 x 3072 x 768). The forward stays with the
  kernels of the model, and its bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.torch_internals import onednn_linear
from lxt_fx.ops.library import LIBRARY, has_values, is_batched
from lxt_fx.ops.norms import all_zero

ONEDNN = onednn_linear()
"""oneDNN's linear map, where it is faster than torch's product of matrices; None elsewhere."""

ONEDNN_FROM = 8
"""Of fewer positions the product is a matter of reading the weights, and torch's own reads them as fast."""

WORTH_A_FUNCTION = 2**15
"""A weight of so many elements is multiplied long enough that a backward in Python, 30 microseconds more, is paid for."""


def times_weight(gradient: Tensor, weight: Tensor, sparse: bool = False) -> Tensor:
    """gradient @ weight for [positions, outputs] and [outputs, inputs], but for the order of sums. `sparse` says that many
    positions may have a gradient of 0."""
    if gradient.device.type != "cpu" or torch.is_grad_enabled() or is_batched(gradient):
        return gradient @ weight
    if not sparse and not takes_onednn(weight):
        return gradient @ weight
    return _product(gradient, weight, sparse) if has_values(gradient) else product(gradient, weight, sparse)


def takes_onednn(weight: Any) -> bool:
    """Whether oneDNN multiplies by this weight, a tensor or what is known of one."""
    if ONEDNN is None or weight.dtype is not torch.float32:
        return False
    return isinstance(weight, Tensor) and weight.device.type == "cpu"


def dense_product(gradient: Tensor, weight: Tensor) -> Tensor:
    """The product of all positions, where a kernel may be called that has no derivative."""
    fits = len(gradient) >= ONEDNN_FROM and gradient.dtype is torch.float32 and takes_onednn(weight)
    if ONEDNN is None or not fits or not torch.backends.mkldnn.enabled:
        return gradient @ weight
    through: Tensor = ONEDNN(gradient, weight.t(), None, "none", [], "")
    return through


def _product(gradient: Tensor, weight: Tensor, sparse: bool) -> Tensor:
    if not sparse or len(gradient) < 2 or not gradient.numel():
        return dense_product(gradient, weight)
    reached = where_some(gradient, 1)
    if len(reached) == len(gradient):
        return dense_product(gradient, weight)
    out = gradient.new_zeros(len(gradient), weight.shape[1])
    out[reached] = dense_product(gradient[reached], weight)
    return out


def where_some(matrix: Tensor, dim: int) -> Tensor:
    """The indices along the other dim that are not 0 throughout (NaN is not 0)."""
    if not matrix.numel():
        return torch.arange(0)
    return all_zero(matrix, [dim]).logical_not().flatten().nonzero()[:, 0]


def _shape_of_product(gradient: Tensor, weight: Tensor, sparse: bool) -> Tensor:
    return gradient.new_empty((gradient.shape[0], weight.shape[1]))


LIBRARY.define("product(Tensor gradient, Tensor weight, bool sparse) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("product", _product, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("lxt_fx::product", _shape_of_product, lib=LIBRARY)
product = torch.ops.lxt_fx.product.default
