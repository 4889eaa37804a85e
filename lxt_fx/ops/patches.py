"""A convolution whose windows neither overlap nor leave gaps, as that of a vision transformer's patches: its backward is
one product of matrices. The backward of torch's convolution takes five times as long (224 pixels in patches of 16, CPU).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lxt_fx.ops.gradient_product import times_weight
from lxt_fx.ops.library import RuleFunction, define, is_batched, narrowed

CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


class Patches(RuleFunction):
    """The convolution with a stride as long as its kernel; what remains at the end of a dim gets nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape = x.shape
        kernel = list(weight.shape[2:])
        out: Tensor = CONVOLUTIONS[len(kernel)](x, weight, bias, kernel)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        g, kernel = gradients[0], weight.shape[2:]
        batch, grid, dims = g.shape[0], g.shape[2:], len(kernel)
        flat = g.reshape(batch, weight.shape[0], -1).transpose(1, 2).reshape(-1, weight.shape[0])
        matrix = weight.reshape(weight.shape[0], -1)
        through = torch.mm(flat, matrix) if is_batched(flat) else times_weight(flat, matrix)
        cells = through.reshape(batch, *grid, weight.shape[1], *kernel)
        order = [0, dims + 1, *(axis for dim in range(dims) for axis in (dim + 1, dims + 2 + dim))]
        covered = [cell * size for cell, size in zip(grid, kernel, strict=True)]
        pixels = cells.permute(order).reshape(batch, weight.shape[1], *covered)
        rest = [size - inside for size, inside in zip(ctx.shape[2:], covered, strict=True)]
        if any(rest):
            pixels = torch.constant_pad_nd(pixels, [end for size in reversed(rest) for end in (0, size)])
        return pixels, None, None


@define("patches(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", casts=narrowed)
def patches(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The convolution of [batch, channels, *sizes] with constant weight [outputs, channels, *kernel] and bias, whose stride
    is its kernel: R_i = sum_j x_i W_ji R_j / z_j (AttnLRP eq. 8). Saves the weight."""
    held = None if bias is None else bias.detach()
    out: Tensor = Patches.apply(input, weight.detach(), held)  # type: ignore[no-untyped-call]
    return out
