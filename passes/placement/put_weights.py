"""Transform: the tensors of a graph that was captured without values become those that have them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.streamed_weight import StreamedWeight
from lxt_fx.base.torch_internals import is_persistent


def put_weights(gm: nn.Module, tensors: Mapping[int, Tensor]) -> int:
    """Transform: each parameter and buffer that `tensors` names, by its identity, becomes what that has for it.
    Returns how many became another.

    Raises InputError for a tensor on the meta device that has nothing to stand for: its values were lost in capture.
    """
    edits = 0
    for path, module in gm.named_modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            found = tensors.get(id(tensor))
            if found is None and tensor.is_meta and not isinstance(tensor, StreamedWeight):
                raise InputError(
                    f"transform: {path}{'.' if path else ''}{name} is a constant that the model's code makes on the device "
                    "of its weights, and the weights of this model are offloaded, so capture did not see its values; load "
                    "the model without offload, or make the constant a buffer of its module"
                )
            if found is not None and found is not tensor:
                _put(module, name, found)
                edits += 1
    return edits


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    persistent = is_persistent(module, name)
    delattr(module, name)
    if isinstance(tensor, nn.Parameter):
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor, persistent)
