"""The linear map that makes the logits, with a backward that multiplies only what is asked for.

Who explains a token asks for one logit of many: of the gradient at the logits [batch, tokens, vocabulary] one element is
not 0, and yet the plain backward multiplies all of it by the whole matrix.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lxt_fx.ops.library import LIBRARY, define
from lxt_fx.ops.norms import flat_rows

SPARSE = 8
"""Columns are picked out where fewer than one in so many has a gradient; picking them copies their rows of the matrix."""


def _sparse_product(gradient: Tensor, weight: Tensor) -> Tensor:
    """gradient @ weight for [..., entries] and [entries, hidden], by the rows and columns of the gradient that are not 0
    throughout: the same, but for the order of sums."""
    flat = gradient.reshape(-1, gradient.shape[-1])
    if not flat.numel():
        return gradient @ weight
    out = flat.new_zeros(flat.shape[0], weight.shape[1])
    rows = _where_some(flat, 1)
    some = flat if len(rows) == len(flat) else flat[rows]
    columns = _where_some(some, 0) if len(rows) else rows
    sparse = len(columns) * SPARSE < len(weight)
    out[rows] = some[:, columns] @ weight[columns] if sparse else some @ weight
    return out.reshape(*gradient.shape[:-1], weight.shape[1])


def _where_some(matrix: Tensor, dim: int) -> Tensor:
    """The indices along the other dim that are not 0 throughout (NaN is not 0)."""
    if not matrix.numel():
        return torch.arange(0)
    return flat_rows(matrix, [dim]).logical_not().flatten().nonzero()[:, 0]


LIBRARY.define("sparse_product(Tensor gradient, Tensor weight) -> Tensor")  # type: ignore[no-untyped-call]
LIBRARY.impl("sparse_product", _sparse_product, "CPU")  # type: ignore[no-untyped-call]
# elsewhere one would have to wait for the values
LIBRARY.impl("sparse_product", torch.matmul, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
sparse_product = torch.ops.lxt_fx.sparse_product.default


def _shape_of_product(gradient: Tensor, weight: Tensor) -> Tensor:
    return gradient.new_empty((*gradient.shape[:-1], weight.shape[1]))


torch.library.register_fake("lxt_fx::sparse_product", _shape_of_product, lib=LIBRARY)


class Head(torch.autograd.Function):
    """x W^T + b; the native gradient. It keeps nothing but the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        recorded = torch.is_grad_enabled()  # for a second derivative, which the product by parts has not
        return (gradients[0] @ weight if recorded else sparse_product(gradients[0], weight)), None, None


@define("head(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor")
def head(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b with constant W, b; R_i = sum_j x_i W_ji R_j / z_j (AttnLRP eq. 8). Its backward skips the rows and
    entries of y that nothing reaches."""
    out: Tensor = Head.apply(input, weight.detach(), None if bias is None else bias.detach())  # type: ignore[no-untyped-call]
    return out
