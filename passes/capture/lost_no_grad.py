"""Analysis: would `torch.export` lose a `no_grad` of the model?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from lxt_fx.base.errors import CaptureError
from lxt_fx.base.torch_internals import grad_mode_switch


class RefuseLostNoGrad(TorchFunctionMode):
    """Raises CaptureError where the model switches gradients off inside a `torch.autocast` block.

    `torch.export` (2.6 to 2.13) splits such a block where gradients are switched, begins each part with autocast, and then
    no longer finds the switch: the part computes with gradients, and relevance would pass through it. make_fx records
    both."""

    def __init__(self) -> None:
        super().__init__()
        self.outside, self.switch = _nesting(), grad_mode_switch()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is self.switch and not args[0] and _nesting() > self.outside:
            raise CaptureError("gradients are switched off inside a torch.autocast block, which torch.export loses")
        return func(*args, **(kwargs or {}))


def _nesting() -> int:
    """How many autocast blocks this thread is in."""
    nesting: int = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    return nesting
