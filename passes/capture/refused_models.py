"""Models whose parameters are no tensors of this process, or lie where their kernel cannot be captured: refused by name,
with the way out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from lxt_fx.base.errors import InputError
from lxt_fx.packed.known import is_packed
from lxt_fx.passes.capture.offloaded import is_offloaded

_WAY_OUT = (
    "To go on, give the model as it was before, or load it with from_pretrained(device_map=...): that runs on several "
    "devices of one process, and reads weights that do not fit (docs/placement.md)"
)


def refuse_model(model: nn.Module, function: str) -> None:
    """Raises InputError, in the name of `function`, for a model that FSDP, tensor parallelism or DeepSpeed ZeRO-3 has
    divided over ranks, and for packed (quantised) layers that are offloaded. Classes are known by name, so that no package
    is imported."""
    for path, module in model.named_modules():
        if (why := _sharded(module)) is not None:
            raise InputError(f"{function}: {path or type(model).__name__} {why}. {_WAY_OUT}")
    if is_offloaded(model):
        for path, module in model.named_modules():
            if is_packed(module):
                raise InputError(
                    f"{function}: {path} ({type(module).__name__}) is quantised, and weights of the model are offloaded: "
                    "its kernel wants its packed weights on its device, in one piece. Give device_map devices that hold "
                    "the whole quantised model, or load it without quantization_config and offload that"
                )


def _sharded(module: nn.Module) -> str | None:
    """What has divided the parameters of this module; None if nothing has."""
    names = {f"{each.__module__}.{each.__name__}" for each in type(module).__mro__}
    if any(name.startswith("torch.distributed.fsdp.") and name.endswith(".FullyShardedDataParallel") for name in names):
        return (
            "is wrapped in FullyShardedDataParallel (FSDP), which flattens its parameters, divides them over the ranks, "
            "and gathers them by hooks when it is called; a captured graph would hold this rank's part of them"
        )
    if any(name.startswith("torch.distributed.") and name.endswith(".FSDPModule") for name in names):
        return (
            "was given to fully_shard (FSDP2), which divides its parameters over the ranks and gathers them by hooks when "
            "it is called; a captured graph would hold this rank's part of them"
        )
    return next((why for tensor in _own(module) if (why := _divided(tensor)) is not None), None)


def _own(module: nn.Module) -> Iterator[Any]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _divided(tensor: Any) -> str | None:
    kind = type(tensor)
    if kind.__name__ == "DTensor" and kind.__module__.startswith("torch.distributed."):
        return (
            "has DTensor parameters (tensor parallelism), each rank with a part of every weight; the rules run in ops of "
            "lxt_fx, and torch knows how to divide none of them nor their backward: each would need a sharding strategy "
            "(torch.distributed.tensor.experimental.register_sharding)"
        )
    if hasattr(tensor, "ds_id") and hasattr(tensor, "ds_status"):
        return (
            "has parameters that DeepSpeed ZeRO-3 has divided over the ranks; between calls each of them is empty here, "
            "and a captured graph would hold that"
        )
    return None
