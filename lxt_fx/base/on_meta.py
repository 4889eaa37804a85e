"""Models on the `meta` device have shapes and no values, so their forward cannot be compared."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lxt_fx.base.torch_internals import pytree

NOT_COMPARED = "not compared: meta device"


def on_meta(model: nn.Module, inputs: Any = ()) -> bool:
    """Whether a parameter, a buffer or an input is on the meta device."""
    tensors = (*model.parameters(), *model.buffers(), *pytree.tree_leaves(inputs))
    return any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in tensors)
