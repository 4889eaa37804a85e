"""The expert matmul of transformers under a name of ours, which is there without an import of transformers."""

from __future__ import annotations

import torch
from torch import Tensor

from lxt_fx.base.transformers_internals import register_ops
from lxt_fx.ops.library import define

OTHER_NAME = "transformers.grouped_mm_fallback.default"
"""What a captured graph calls; it is no op before `transformers.integrations.moe` is imported."""


@define("grouped_matmul(Tensor input, Tensor weight, Tensor offs) -> Tensor")
def grouped_matmul(input: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """`input` [entries, in], sorted by expert, times the expert's matrix of `weight` [experts, in, out]; those of expert e
    end before `offs[e]`. transformers registers it for dtypes that torch's own `_grouped_mm` lacks; its kernel runs."""
    register_ops()
    result: Tensor = torch.ops.transformers.grouped_mm_fallback(input, weight, offs)
    return result
