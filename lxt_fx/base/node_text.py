"""Ops and dtypes as they are printed."""

from __future__ import annotations

import torch
from torch.fx import Node

from lxt_fx.base.torch_internals import OpOverload, base_name

_DTYPES = {
    torch.float64: "f64", torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int64: "i64",
    torch.int32: "i32", torch.int16: "i16", torch.int8: "i8", torch.uint8: "u8", torch.bool: "bool",
    torch.complex64: "c64", torch.complex128: "c128",
}  # fmt: skip


def dtype_name(dtype: torch.dtype) -> str:
    """`f32` for torch.float32."""
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def op_name(node: Node) -> str:
    """`add` for aten.add.Tensor, `lxt_fx.sdpa` for an op of lxt_fx."""
    if not isinstance(node.target, OpOverload):
        return getattr(node.target, "__name__", str(node.target))
    name = base_name(node.target)
    return name if node.target.namespace == "aten" else f"{node.target.namespace}.{name}"
