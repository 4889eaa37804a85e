"""Models on the `meta` device: shapes without values, so nothing can be run and compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lxt_fx.base.torch_internals import pytree

NOT_COMPARED = "not compared: meta device"


def on_meta(model: nn.Module, inputs: Any = ()) -> bool:
    """Whether a parameter, a buffer or an input has a shape and no values."""
    tensors = (*model.parameters(), *model.buffers(), *pytree.tree_leaves(inputs))
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors)
