"""The linear map to the logits, with a backward that skips zeros of the gradient.

An explanation of one token asks for one logit: one element of the gradient [batch, tokens, vocabulary] is not 0, and yet
the plain backward multiplies all of it by the whole matrix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.ops.gradient_product import dense_product, where_some
from lxt_fx.ops.library import LIBRARY, RuleFunction, define, narrowed

SPARSE = 8
"""Only the vocabulary entries with a gradient are multiplied where they are fewer than one in `SPARSE`: picking them copies
their rows of the weight matrix."""


def _sparse_product(gradient: Tensor, weight: Tensor) -> Tensor:
    """gradient @ weight for [..., entries] and [entries, hidden], by the positions and entries whose gradient is not 0
    throughout: the same, but for the order of sums."""
    flat = gradient.reshape(-1, gradient.shape[-1])
    if not flat.numel():
        return gradient @ weight
    out = flat.new_zeros(flat.shape[0], weight.shape[1])
    positions = where_some(flat, 1)
    some = flat if len(positions) == len(flat) else flat[positions]
    entries = where_some(some, 0) if len(positions) else positions
    sparse = len(entries) * SPARSE < len(weight)
    out[positions] = some[:, entries] @ weight[entries] if sparse else dense_product(some, weight)
    return out.reshape(*gradient.shape[:-1], weight.shape[1])


LIBRARY.define("sparse_product(Tensor gradient, Tensor weight) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("sparse_product", _sparse_product, "CPU")  # type: ignore[no-untyped-call]
# on other devices reading the values would wait for the device
LIBRARY.impl("sparse_product", torch.matmul, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
sparse_product = torch.ops.lxt_fx.sparse_product.default


def _shape_of_product(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.new_empty((*gradient.shape[:-1], weight.shape[1]))


torch.library.register_fake("lxt_fx::sparse_product", _shape_of_product, lib=LIBRARY)


class Head(RuleFunction):
    """x W^T + b; the native gradient. Saves the weight alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        recorded = torch.is_grad_enabled()  # for a second derivative, which `sparse_product` does not have
        return (gradients[0] @ weight if recorded else sparse_product(gradients[0], weight)), None, None


@define("head(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", casts=narrowed)
def head(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b with constant W, b; R_i = sum_j x_i W_ji R_j / z_j (AttnLRP eq. 8). Its backward skips the
    positions and entries of y that nothing reaches."""
    out: Tensor = Head.apply(input, weight.detach(), None if bias is None else bias.detach())  # type: ignore[no-untyped-call]
    return out
