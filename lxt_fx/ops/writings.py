"""How ATen's ops are written out in others, where torch has no way of its own, or one that is a worse explanation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.torch_internals import aten_op

Writing = Callable[..., Any]


def _lerp(self: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """A mean with weights. torch's own `start + weight * (end - start)` takes a difference that may be 0."""
    return (1 - weight) * self + weight * end


def _cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """The lengths of all differences. For more than 25 vectors torch multiplies matrices, which rounds in another way."""
    lengths: Tensor = torch.linalg.vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)
    return lengths


def _conv_tbc(self: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """A convolution of [time, batch, channels]."""
    return torch.conv1d(self.permute(1, 2, 0), weight.permute(2, 1, 0), bias, 1, pad).permute(2, 0, 1)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] = (1,),
    padding: Sequence[int] | str = (0,),
    dilation: Sequence[int] = (1,),
    groups: int = 1,
) -> Tensor:
    """A product of two values that carry: each window of the input [batch, groups, channels, *places, *kernel] times the
    kernels [groups, out, channels, *kernel], as a product of matrices is."""
    dims = weight.dim() - 2
    stride, dilation = (tuple(x) * (dims // len(x)) for x in (stride, dilation))
    if isinstance(padding, str):
        total = [0 if padding == "valid" else d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        sides = [(pad // 2, pad - pad // 2) for pad in total]
    else:
        sides = [(pad, pad) for pad in tuple(padding) * (dims // len(padding))]
    windows = torch.constant_pad_nd(input, [pad for side in reversed(sides) for pad in side], 0.0)
    windows = torch.unflatten(windows, 1, (groups, -1))
    for dim, (size, step, apart) in enumerate(zip(weight.shape[2:], stride, dilation, strict=True)):
        windows = windows.unfold(3 + dim, apart * (size - 1) + 1, step)[..., ::apart]
    places, kernel = "xyz"[:dims], "uvw"[:dims]
    equation = f"bgi{places}{kernel},goi{kernel}->bgo{places}"
    result = torch.einsum(equation, windows, torch.unflatten(weight, 0, (groups, -1))).flatten(1, 2)
    return result if bias is None else result + bias.reshape(-1, *[1] * dims)


def _pdist(self: Tensor, p: float = 2.0) -> Tensor:
    count = int(self.shape[0])
    first, second = torch.triu_indices(count, count, 1, device=self.device)
    lengths: Tensor = torch.linalg.vector_norm(self[first] - self[second], p, -1)
    return lengths


def _hypot(self: Tensor, other: Tensor) -> Tensor:
    return (self * self + other * other).sqrt()


def _xlogy(self: Tensor, other: Tensor) -> Tensor:
    return self * other.log()


def _copysign(self: Tensor, other: Tensor) -> Tensor:
    return torch.where(other.signbit(), -self.abs(), self.abs())


def _logaddexp(self: Tensor, other: Tensor) -> Tensor:
    both: list[Tensor] = torch.broadcast_tensors(self, other)  # type: ignore[no-untyped-call]
    return torch.stack(both).logsumexp(0)


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


def _logcumsumexp(self: Tensor, dim: int) -> Tensor:
    return torch.stack([self.narrow(dim, 0, n + 1).logsumexp(dim) for n in range(self.shape[dim])], dim)


def _prod_of_all(self: Tensor) -> Tensor:
    return _prod(self.reshape(-1), 0)


def _fmax(self: Tensor, other: Tensor) -> Tensor:
    return torch.where((self >= other) | other.isnan(), self, other)


def _fmin(self: Tensor, other: Tensor) -> Tensor:
    return torch.where((self <= other) | other.isnan(), self, other)


def _remainder(self: Tensor, other: Any) -> Tensor:
    """x less a multiple of c, which is a step function: constant between jumps."""
    return self + (torch.remainder(self.detach(), other) - self.detach())


def _fmod(self: Tensor, other: Any) -> Tensor:
    return self + (torch.fmod(self.detach(), other) - self.detach())


def _div(self: Tensor, other: Tensor) -> Tensor:
    """A constant over a value is a multiple of its reciprocal."""
    return self * other.reciprocal()


def _atan2(self: Tensor, other: Tensor) -> Tensor:
    """The arctangent of the smaller coordinate over the larger, and the angle of the axis that it is near."""
    steep = self.abs() > other.abs()
    over = torch.where(steep, self, other)
    slope = torch.where(steep, other, self) / torch.where(over == 0, 1, over)
    quarter = torch.ones_like(slope).copysign(self).detach() * (math.pi / 2)
    return torch.where(steep, quarter - slope.atan(), torch.where(other.signbit(), 2 * quarter, 0) + slope.atan())


def _cross_of_three(self: Tensor, other: Tensor, dim: int | None = None) -> Tensor:
    """Along the first dim of size 3, if none is given."""
    return _cross(self, other, dim=next(d for d, size in enumerate(self.shape) if size == 3) if dim is None else dim)


def _cross(self: Tensor, other: Tensor, *, dim: int = -1) -> Tensor:
    forward, backward = self.roll(-1, dim) * other.roll(-2, dim), self.roll(-2, dim) * other.roll(-1, dim)
    return forward - backward


def _variance(
    self: Tensor, dim: list[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Tensor:
    """The mean of squared differences from the mean."""
    dims = list(dim) if dim else list(range(self.dim()))
    count = math.prod(self.shape[d] for d in dims)
    squares = (self - self.mean(dims, keepdim=True)) ** 2
    return squares.sum(dims, keepdim=keepdim) / (count - (1 if correction is None else correction))


def _variance_of_dims(self: Tensor, dim: list[int] | None, unbiased: bool = True, keepdim: bool = False) -> Tensor:
    return _variance(self, dim, correction=int(unbiased), keepdim=keepdim)


def _variance_of_all(self: Tensor, unbiased: bool = True) -> Tensor:
    return _variance(self, None, correction=int(unbiased))


def _root_of(variance: Writing) -> Writing:
    return lambda *args, **named: variance(*args, **named).sqrt()


def _and_mean(variance: Writing) -> Writing:
    def both(self: Tensor, dim: list[int] | None = None, **named: Any) -> tuple[Tensor, Tensor]:
        dims = list(dim) if dim else list(range(self.dim()))
        return variance(self, dim, **named), self.mean(dims, keepdim=named.get("keepdim", False))

    return both


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """With the statistics of the batch, by a layer that has no others."""
    dims = [d for d in range(input.dim()) if d != 1]
    channels = [-1, *[1] * (input.dim() - 2)]
    centred = input - input.mean(dims, keepdim=True)
    scaled = centred * ((centred * centred).mean(dims, keepdim=True) + eps).rsqrt()
    scaled = scaled if weight is None else scaled * weight.reshape(channels)
    return scaled if bias is None else scaled + bias.reshape(channels)


def _pad_sequence(
    sequences: list[Tensor], batch_first: bool = False, padding_value: float = 0.0, padding_side: str = "right"
) -> Tensor:
    longest = reduce(torch.sym_max, (sequence.shape[0] for sequence in sequences))
    rest = [0, 0] * (sequences[0].dim() - 1)
    missing = [longest - sequence.shape[0] for sequence in sequences]
    pads = [(0, size) if padding_side == "right" else (size, 0) for size in missing]
    padded = [torch.constant_pad_nd(x, [*rest, *pad], padding_value) for x, pad in zip(sequences, pads, strict=True)]
    return torch.stack(padded, 0 if batch_first else 1)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor]:
    """The sum of the vectors of each bag, with a weight each."""
    if mode != 0:
        raise NotImplementedError("the mean or maximum of a bag")
    vectors = weight.index_select(0, indices)
    if per_sample_weights is not None:
        vectors = vectors * per_sample_weights.unsqueeze(-1)
    if padding_idx is not None and padding_idx >= 0:
        vectors = vectors.masked_fill((indices == padding_idx).unsqueeze(-1), 0.0)
    starts = offsets[:-1] if include_last_offset else offsets
    begun = (torch.arange(indices.shape[0], device=indices.device).unsqueeze(-1) >= starts).sum(-1) - 1
    return (weight.new_zeros(starts.shape[0], weight.shape[1]).index_add(0, begun, vectors),)


_BY_NAME: dict[str, Writing] = {
    "lerp.Tensor": _lerp,
    "cdist": _cdist,
    "pdist": _pdist,
    "conv_tbc": _conv_tbc,
    **{f"conv{dims}d{kind}": _convolution for dims in (1, 2, 3) for kind in ("", ".padding")},
    "hypot": _hypot,
    "xlogy.Tensor": _xlogy,
    "copysign.Tensor": _copysign,
    "logaddexp": _logaddexp,
    "logcumsumexp": _logcumsumexp,
    "bilinear": _bilinear,
    "prod": _prod_of_all,
    "prod.dim_int": _prod,
    "cumprod": _cumprod,
    "addbmm": _addbmm,
    "fmax": _fmax,
    "fmin": _fmin,
    "div.Tensor": _div,
    "remainder.Scalar": _remainder,
    "remainder.Tensor": _remainder,
    "fmod.Scalar": _fmod,
    "fmod.Tensor": _fmod,
    "atan2": _atan2,
    "cross": _cross_of_three,
    "linalg_cross": _cross,
    "var": _variance_of_all,
    "var.dim": _variance_of_dims,
    "var.correction": _variance,
    "std": _root_of(_variance_of_all),
    "std.dim": _root_of(_variance_of_dims),
    "std.correction": _root_of(_variance),
    "var_mean.correction": _and_mean(_variance),
    "std_mean.correction": _and_mean(_root_of(_variance)),
    "batch_norm": _batch_norm,
    "pad_sequence": _pad_sequence,
    "embedding_bag.padding_idx": _embedding_bag,
}
WRITINGS: Mapping[Any, Writing] = {op: writing for name, writing in _BY_NAME.items() if (op := aten_op(name)) is not None}
"""By op, a function of the same arguments."""
