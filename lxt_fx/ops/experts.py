"""The expert matmul of transformers as an op of ours, which exists without an import of transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt_fx.base.transformers_internals import register_ops
from lxt_fx.ops.library import define

OTHER_NAME = "transformers.grouped_mm_fallback.default"
"""What a captured graph calls; the op exists only once `transformers.integrations.moe` is imported."""


@define("grouped_matmul(Tensor input, Tensor weight, Tensor offs) -> Tensor")
def grouped_matmul(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """`input` [entries, in], sorted by expert, times the expert's matrix of `weight` [experts, in, out]; the entries of
    expert e end before `offs[e]`. Runs the kernel of transformers, for dtypes that torch's own `_grouped_mm` does not
    take."""
    register_ops()
    result: Tensor = torch.ops.transformers.grouped_mm_fallback(input, weight, offs)
    return result
