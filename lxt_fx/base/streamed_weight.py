"""A weight that lies outside of memory and is read for each use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import CallError
from lxt_fx.base.named_tensors import named_tensors


class StreamedWeight(nn.Parameter):
    """The place of a weight that is not in memory: a tensor on the meta device with the shape and dtype of the weight.
    `read` gives the values, in memory of their own or mapped from a file, and `used_on` is the device that computes with
    them."""

    read: Callable[[], Tensor]
    used_on: torch.device
    path: str

    def __new__(cls, like: Tensor, read: Callable[[], Tensor], used_on: torch.device, path: str) -> Self:
        made = super().__new__(cls, like.detach().to("meta"), False)
        made.read, made.used_on, made.path = read, used_on, path
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> StreamedWeight:
        return self  # it has no values that a copy could change

    def load(self) -> Tensor:
        """The weight, in the dtype of its place and on its device. Raises CallError where what is read has another
        shape."""
        with torch.no_grad():
            found = self.read().detach()
            if found.shape != self.shape:
                raise CallError(
                    f"{self.path} was offloaded as {list(self.shape)}, and {list(found.shape)} is read for it now; its "
                    "file changed after the model was loaded: load it and transform it again"
                )
            return found.to(self.used_on, self.dtype)


def loaded(value: Any) -> Any:
    """The weight that a streamed one stands for; anything else as it is."""
    return value.load() if isinstance(value, StreamedWeight) else value


def device_of(tensor: Tensor) -> torch.device:
    """Where a tensor is computed with."""
    return tensor.used_on if isinstance(tensor, StreamedWeight) else tensor.device


def streamed_weights(module: nn.Module) -> Iterator[tuple[str, StreamedWeight]]:
    """The streamed weights of a module by path."""
    return ((path, tensor) for path, tensor in named_tensors(module) if isinstance(tensor, StreamedWeight))


def is_streamed(module: nn.Module) -> bool:
    """Whether weights of the module are read for each use."""
    return any(True for _ in streamed_weights(module))
