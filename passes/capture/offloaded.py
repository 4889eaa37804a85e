"""Models whose weights accelerate has offloaded: the weights are on the meta device until a hook loads them for a call."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lxt_fx.base.errors import InputError

_HOOK, _FORWARD = "_hf_hook", "_old_forward"
"""The names under which accelerate puts a hook on a module and saves the forward that the hook runs."""


def with_weights_loaded(model: nn.Module) -> nn.Module:
    """The model itself if no weight is offloaded, else a copy of its modules with all weights in place and without the
    hooks that load them. Weights that were offloaded to the CPU are shared, those on disk are read.

    Raises InputError for a weight that its hook cannot give.
    """
    hooked = [module for module in model.modules() if any(hook.offload for hook in _loading_hooks(module))]
    if not hooked:
        return model
    loaded = _loaded(model)
    twin = copy.deepcopy(model, loaded)
    for module in twin.modules():
        vars(module).pop(_HOOK, None)
        own = vars(module).pop(_FORWARD, None)
        vars(module).pop("forward", None)
        if own is not None and getattr(own, "__func__", None) is not type(module).forward:
            module.forward = own
    return twin


def is_offloaded(model: nn.Module) -> bool:
    """Whether hooks of accelerate load weights of the model for a call."""
    return any(True for module in model.modules() for _ in _loading_hooks(module))


def _loading_hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate on this module that align devices; a SequentialHook has several."""
    hook = getattr(module, _HOOK, None)
    for each in getattr(hook, "hooks", (hook,)):
        if hasattr(each, "offload") and hasattr(each, "weights_map"):
            yield each


def _loaded(model: nn.Module) -> dict[int, Any]:
    """What a copy of the model has in the place of its tensors and hooks, by id: the tensor itself, or the loaded weight of
    one on the meta device; one for weights that are tied."""
    kept: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if not tensor.is_meta}
    tied: dict[Any, Any] = {}
    for path, module in model.named_modules():
        maps = [hook.weights_map for hook in _loading_hooks(module) if hook.weights_map is not None]
        if (hook := getattr(module, _HOOK, None)) is not None:
            kept[id(hook)] = None
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.is_meta and id(tensor) not in kept and maps:
                value = _weight(maps, name, f"{path}.{name}")
                key = (value.data_ptr(), value.shape, value.stride(), type(tensor))
                kept[id(tensor)] = tied.setdefault(key, _like(tensor, value))
    return kept


def _weight(maps: list[Mapping[str, Tensor]], name: str, path: str) -> Tensor:
    for weights in maps:
        try:
            return weights[name]
        except KeyError:
            continue
    raise InputError(
        f"transform: {path} is offloaded by accelerate, and its hook has no weight of that name; load the model without "
        "device_map"
    )


def _like(tensor: Tensor, value: Tensor) -> Tensor:
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(value, requires_grad=tensor.requires_grad)
    return value


__all__ = ["with_weights_loaded"]
