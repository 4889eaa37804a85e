"""`explained.to(...)`, `.half()`, `.cuda()` and their like: they do nothing, or refuse, so that no model is changed with
its explained module. A module that was loaded from a file has tensors of its own and can be moved to another device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph
from torch.fx.node import map_aggregate

from lxt_fx.base.errors import InputError
from lxt_fx.base.streamed_weight import StreamedWeight, device_of

Convert = Callable[[Tensor], Tensor]
"""What torch applies to every tensor of a module that is converted."""


def check_conversion(module: nn.Module, convert: Convert, name: str) -> None:
    """Raises InputError, in the name of the model's class, if the conversion would give the module other tensors."""
    probes = [torch.empty(0, dtype=dtype, device=device) for dtype, device in _kinds(module)]
    held = (tensor for tensor in _tensors(module) if not isinstance(tensor, StreamedWeight))
    for tensor in chain(probes, held):  # a probe says at once, without converting a whole weight
        converted = convert(tensor)
        if converted is not tensor:
            before, after = _shown(tensor), _shown(converted)
            change = f"converted from {before} to {after}" if after != before else "given other tensors"
            raise InputError(
                f"{name}: an explained module cannot be {change}: its parameters are those of the model, and their dtype "
                "and device are written into its graph; convert the model and transform it again"
            )


def new_device(module: nn.Module, convert: Convert) -> torch.device | None:
    """The device to which the conversion moves the whole module; None if it does anything else."""
    devices: set[torch.device] = set()
    for dtype, device in _kinds(module):
        converted = convert(torch.empty(0, dtype=dtype, device=device))
        if converted.dtype != dtype:
            return None
        devices.add(converted.device)
    moved = devices != {device for _, device in _kinds(module)}
    return devices.pop() if moved and len(devices) == 1 else None


def move_graph(graph: Graph, device: torch.device) -> int:
    """Transform: constants that the graph makes are made on this device."""
    edits = 0

    def on_device(value: Any) -> Any:
        nonlocal edits
        edits += isinstance(value, torch.device)
        return device if isinstance(value, torch.device) else value

    for node in graph.nodes:
        node.args, node.kwargs = map_aggregate(node.args, on_device), map_aggregate(node.kwargs, on_device)
    return edits


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())


def _kinds(module: nn.Module) -> set[tuple[torch.dtype, torch.device]]:
    return {(tensor.dtype, device_of(tensor)) for tensor in _tensors(module)}


def _shown(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"
