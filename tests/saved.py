"""What a forward saves for its backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(module: nn.Module, inputs: dict[str, Any]) -> int:
    """The bytes that the forward saves for the backward, without parameters; each storage counts once."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = module(**{n: v.clone().requires_grad_(v.is_floating_point()) for n, v in inputs.items()})
    del output
    return sum(found.values())
