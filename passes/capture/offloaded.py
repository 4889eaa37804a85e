"""Models that accelerate has dispatched: their parts compute on several devices, or their weights lie on the meta device
until a hook loads them for a call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.streamed_weight import StreamedWeight
from lxt_fx.passes.placement.from_file import with_pages

_HOOK, _FORWARD = "_hf_hook", "_old_forward"
"""The names under which accelerate puts a hook on a module and saves the forward that the hook runs."""

Read = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Dispatched:
    """What is known of a dispatched model. `twin` is a copy of its modules without hooks, with all tensors on the meta
    device; `tensors` has what stands for each of these, by identity: the model's own tensor, or a streamed weight.
    `device` is where its inputs go."""

    twin: nn.Module
    tensors: Mapping[int, Tensor]
    device: torch.device


def is_dispatched(model: nn.Module) -> bool:
    """Whether hooks of accelerate load weights of the model for a call, or its parts compute on several devices."""
    hooked = any(True for module in model.modules() for _ in _hooks(module))
    return is_offloaded(model) or (hooked and len(devices_of(model)) > 1)


def devices_of(model: nn.Module) -> set[torch.device]:
    """The devices that parameters of a model lie on."""
    return {each.device for each in model.parameters()}


def is_offloaded(model: nn.Module) -> bool:
    """Whether hooks of accelerate load weights of the model for a call."""
    return any(hook.offload for module in model.modules() for hook in _hooks(module))


def input_device(model: nn.Module) -> torch.device:
    """Where the inputs of a model go: to the device of its first parameter, or where that is computed with."""
    first = next((each.device for each in model.parameters()), torch.device("cpu"))
    if first.type != "meta":
        return first
    hooks = [hook for module in model.modules() for hook in _hooks(module)]
    hooks.sort(key=lambda hook: getattr(hook, "execution_device", None) is None)  # those that say it come first
    return _device(hooks[0]) if hooks else first


def dispatched_from(model: nn.Module) -> Dispatched:
    """What capture and placement need of a dispatched model. Weights that are offloaded to the CPU are shared with it,
    those on disk are read for each use by the hook's own map.

    Raises InputError for a weight that its hook cannot give.
    """
    memo: dict[int, Any] = {}
    tensors: dict[int, Tensor] = {}
    for path, module in model.named_modules():
        if (hook := getattr(module, _HOOK, None)) is not None:
            memo[id(hook)] = None
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        for name, tensor in own:
            if id(tensor) not in memo:
                stands = _without_values(tensor)
                memo[id(tensor)] = stands
                tensors[id(stands)] = in_place(model, f"{path}.{name}" if path else name, tensor)
    twin = copy.deepcopy(model, memo)
    for module in twin.modules():
        vars(module).pop(_HOOK, None)
        own_forward = vars(module).pop(_FORWARD, None)
        vars(module).pop("forward", None)
        if own_forward is not None and getattr(own_forward, "__func__", None) is not type(module).forward:
            module.forward = own_forward
    return Dispatched(twin, tensors, input_device(model))


def _without_values(tensor: Tensor) -> Tensor:
    made = tensor.detach().to("meta")
    return nn.Parameter(made, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def in_place(model: nn.Module, full: str, tensor: Tensor) -> Tensor:
    """What stands for the tensor of this name: itself if it has values, else a weight that is read for each use. Offloaded
    buffers are read once. Raises InputError for a weight that no hook has."""
    if not tensor.is_meta:
        return tensor
    path, _, name = full.rpartition(".")
    weights, key, device = _source(model, path, name, full)
    read = _reading(weights, key)
    if isinstance(tensor, nn.Parameter):
        return StreamedWeight(tensor, read, device, full)
    return read().to(device, tensor.dtype)


def _source(model: nn.Module, path: str, name: str, full: str) -> tuple[Mapping[str, Tensor], str, torch.device]:
    """The map that has a weight, its name there, and where it is computed with: those of the hook on its module, or on one
    around it that places what is inside."""
    parts = path.split(".") if path else []
    for count in range(len(parts), -1, -1):
        owner = model.get_submodule(".".join(parts[:count]))
        key = ".".join([*parts[count:], name])
        for hook in _hooks(owner):
            if hook.weights_map is not None and _has(hook.weights_map, key):
                return hook.weights_map, key, _device(hook)
    raise InputError(
        f"transform: {full} is on the meta device, and no hook of accelerate has a weight of that name; load the model "
        "with the files of its weights, or without device_map"
    )


def _has(weights: Mapping[str, Tensor], key: str) -> bool:
    weights, key = _root(weights, key)
    return key in weights


def _root(weights: Any, key: str) -> tuple[Any, str]:
    """A map of accelerate that puts a prefix before each name, as the map behind it and the name there."""
    while hasattr(weights, "dataset") and hasattr(weights, "prefix"):
        weights, key = weights.dataset, f"{weights.prefix}{key}"
    return weights, key


def _reading(weights: Mapping[str, Tensor], key: str) -> Read:
    """What reads a weight by the map of the hook."""
    root, name = _root(weights, key)
    in_memory = isinstance(root, dict) or name in (getattr(root, "state_dict", None) or ())
    return partial(weights.__getitem__, key) if in_memory else partial(_from_file, weights, key)


def _from_file(weights: Mapping[str, Tensor], key: str) -> Tensor:
    return with_pages(weights[key])


def _device(hook: Any) -> torch.device:
    return torch.device(found if (found := getattr(hook, "execution_device", None)) is not None else "cpu")


def _hooks(module: nn.Module) -> Iterator[Any]:
    """The hooks of accelerate on this module that align devices; a SequentialHook has several."""
    hook = getattr(module, _HOOK, None)
    for each in getattr(hook, "hooks", (hook,)):
        if hasattr(each, "offload") and hasattr(each, "weights_map"):
            yield each
