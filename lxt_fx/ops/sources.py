"""The ops at which relevance ends although a gradient could go on: what stands behind them is a source of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lxt_fx.ops.library import RuleFunction, define


class End(RuleFunction):
    """y = x; the gradient is 0, and not missing, so that what lies before has a relevance: 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        """Nothing is saved."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return torch.zeros_like(gradients[0])


@define("source(Tensor self) -> Tensor")
def source(self: Tensor) -> Tensor:
    """y = x, no relevance passes: what arrives is the relevance of x as a source. Unlike a held value, y has one."""
    ended: Tensor = End.apply(self)  # type: ignore[no-untyped-call]
    return ended


@define("reconstruction_error(Tensor self, Tensor reconstruction) -> Tensor")
def reconstruction_error(self: Tensor, reconstruction: Tensor) -> Tensor:
    """e = h - (sum_k f_k d_k + b), a source: what arrives is the relevance of what a dictionary does not explain."""
    ended: Tensor = End.apply(self - reconstruction)  # type: ignore[no-untyped-call]
    return ended


SOURCES = frozenset({source, reconstruction_error})
