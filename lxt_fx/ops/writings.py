"""How ATen's ops are written out in others, where torch has no way of its own, or one that is a worse explanation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.torch_internals import aten_op


def _lerp(self: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """A mean with weights. torch's own `start + weight * (end - start)` takes a difference that may be 0."""
    return (1 - weight) * self + weight * end


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """The lengths of all differences. For more than 25 vectors torch multiplies matrices, which rounds in another way."""
    return torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def _hypot(self: Tensor, other: Tensor) -> Tensor:
    return (self * self + other * other).sqrt()


def _xlogy(self: Tensor, other: Tensor) -> Tensor:
    return self * other.log()


def _copysign(self: Tensor, other: Tensor) -> Tensor:
    return torch.where(other.signbit(), -self.abs(), self.abs())


def _logaddexp(self: Tensor, other: Tensor) -> Tensor:
    return torch.stack(torch.broadcast_tensors(self, other)).logsumexp(0)


def _bilinear(input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear map of the first input whose weights the second gives."""
    rows = torch.einsum("...i,kij->...kj", input1, weight)
    result = torch.matmul(rows, input2.unsqueeze(-1)).squeeze(-1)
    return result if bias is None else result + bias


def _prod(self: Tensor, dim: int, keepdim: bool = False) -> Tensor:
    """A product of n factors, each with 1/n of the relevance."""
    product = torch.einsum(",".join(["..."] * self.shape[dim]) + "->...", *self.unbind(dim))
    return product.unsqueeze(dim) if keepdim else product


def _cumprod(self: Tensor, dim: int) -> Tensor:
    return torch.stack([_prod(self.narrow(dim, 0, n + 1), dim) for n in range(self.shape[dim])], dim)


def _addbmm(self: Tensor, batch1: Tensor, batch2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    return beta * self + alpha * torch.matmul(batch1, batch2).sum(0)


WRITINGS: Mapping[Any, Callable[..., Any]] = {
    op: writing
    for name, writing in {
        "lerp.Tensor": _lerp,
        "cdist": _cdist,
        "hypot": _hypot,
        "xlogy.Tensor": _xlogy,
        "copysign.Tensor": _copysign,
        "logaddexp": _logaddexp,
        "bilinear": _bilinear,
        "prod.dim_int": _prod,
        "cumprod": _cumprod,
        "addbmm": _addbmm,
    }.items()
    if (op := aten_op(name)) is not None
}
"""By op, a function of the same arguments."""
