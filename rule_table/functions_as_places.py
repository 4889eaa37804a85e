"""Functions as places of a composite: for each, the ATen ops that it becomes in a canonical graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F

from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import norms
from lxt_fx.ops.activations import ACTIVATIONS
from lxt_fx.ops.packed import packed_linear

_ADD, _SUB, _MUL = (aten.add.Tensor,), (aten.sub.Tensor,), (aten.mul.Tensor,)
_DIV, _MATMUL = (aten.div.Tensor,), (aten.matmul.default,)

FUNCTIONS: Mapping[Callable[..., Any], tuple[Any, ...]] = {
    operator.add: _ADD,
    torch.add: _ADD,
    operator.sub: _SUB,
    torch.sub: _SUB,
    operator.mul: _MUL,
    torch.mul: _MUL,
    operator.truediv: _DIV,
    torch.div: _DIV,
    operator.matmul: _MATMUL,
    torch.matmul: _MATMUL,
    torch.bmm: _MATMUL,
    torch.einsum: (aten.einsum.default,),
    torch.softmax: (aten.softmax.int,),
    F.softmax: (aten.softmax.int,),
    torch.sum: (aten.sum.default, aten.sum.dim_IntList),
    torch.mean: (aten.mean.default, aten.mean.dim),
    torch.cat: (aten.cat.default,),
    F.linear: (aten.linear.default, packed_linear),
    F.batch_norm: (aten.batch_norm.default,),
    F.conv1d: (aten.conv1d.default, aten.conv1d.padding),
    F.conv2d: (aten.conv2d.default, aten.conv2d.padding),
    F.conv3d: (aten.conv3d.default, aten.conv3d.padding),
    F.scaled_dot_product_attention: (aten.scaled_dot_product_attention.default,),
    **{function: (activation.aten,) for activation in ACTIVATIONS for function in activation.callers},
    **{function: (op,) for op, norm in norms.OF.items() for function in norm.functions},
}
