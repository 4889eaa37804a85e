"""A device map for an explained module: which path goes where, checked against the weights that the module has."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.named_tensors import named_tensors
from lxt_fx.base.nodes import module_stack
from lxt_fx.base.streamed_weight import StreamedWeight
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.saved_tensors import made_owner
from lxt_fx.ops.packed import packed_layer_of
from lxt_fx.passes.placement.from_file import from_file
from lxt_fx.passes.segments.find_segments import segments_of

Device = str | int | torch.device
DeviceMap = Device | Mapping[str, Device]
"""A device, `"auto"`, or devices (and `"disk"`) by module path."""

_ELSEWHERE = ("cpu", "disk")


@dataclass(frozen=True, slots=True)
class Places:
    """Where each weight goes, by path: the device that computes with it, or `"disk"`. `inputs` is the device of inputs and
    outputs, and computes with what lies on no computing device. `weights` are those of the module by path, and `folder` is
    where those on disk are written."""

    where: Mapping[str, torch.device | str]
    inputs: torch.device
    weights: Mapping[str, Tensor]
    folder: Path | None
    devices: dict[int, torch.device] = field(default_factory=dict)

    def tensors(self) -> dict[int, Tensor]:
        """What each weight becomes, by its identity; those of `devices` get the device that computes with them."""
        found: dict[int, Tensor] = {}
        for path, tensor in self.weights.items():
            if id(tensor) not in found:
                found[id(tensor)] = made = self._there(path, tensor)
                where = self.where[path]
                computes = isinstance(where, torch.device) and not self._is_offloaded(path, tensor)
                self.devices[id(made)] = where if computes and isinstance(where, torch.device) else self.inputs
        return found

    def _is_offloaded(self, path: str, tensor: Tensor) -> bool:
        where = self.where[path]
        cpu = isinstance(where, torch.device) and where.type == "cpu" and self.inputs.type != "cpu"
        return where == "disk" or cpu

    def _there(self, path: str, tensor: Tensor) -> Tensor:
        where = self.where[path]
        if not self._is_offloaded(path, tensor) or not isinstance(tensor, nn.Parameter):
            device = where if isinstance(where, torch.device) and not self._is_offloaded(path, tensor) else self.inputs
            if device == tensor.device or device.type == tensor.device.type == "cpu":
                return tensor
            moved = tensor.detach().to(device)
            return nn.Parameter(moved, requires_grad=False) if isinstance(tensor, nn.Parameter) else moved
        if isinstance(where, torch.device):
            held = tensor.detach().to(where)
            return StreamedWeight(tensor, lambda: held, self.inputs, path)
        return StreamedWeight(tensor, self._written(path, tensor), self.inputs, path)

    def _written(self, path: str, tensor: Tensor) -> Any:
        from safetensors.torch import save_file

        assert self.folder is not None
        file = self.folder / f"{path}.safetensors"
        save_file({path: tensor.detach().cpu().contiguous()}, file)
        return partial(from_file, file, path)


def places_by(
    explained: Explained,
    device_map: DeviceMap,
    folder: str | Path | None,
    max_memory: Mapping[int | str, int | str] | None,
) -> Places:
    """Where each weight of the module goes. Raises InputError where the map does not fit it; nothing is written before all
    is checked."""
    weights = dict(_weights(explained))
    if device_map == "auto":
        device_map = _divided(explained, weights, max_memory)
    elif max_memory is not None:
        raise InputError('place: max_memory is for device_map="auto"; a map of your own says where each part goes')
    given = dict(device_map) if isinstance(device_map, Mapping) else {"": device_map}
    asked = {path: _device(where, path) for path, where in given.items()}
    _check_paths(explained, weights, asked)
    where = {path: _longest(path, asked) for path in weights}
    if "disk" in where.values():
        folder = _empty(folder)
    computing = [each for each in asked.values() if isinstance(each, torch.device) and each.type != "cpu"]
    on_cpu = [each for each in asked.values() if isinstance(each, torch.device)]
    inputs = next(iter(computing), next(iter(on_cpu), torch.device("cpu")))
    return Places(where, inputs, weights, None if folder is None else Path(folder))


def _weights(explained: Explained) -> Iterator[tuple[str, Tensor]]:
    """The parameters and buffers of the module, and of what computes its leaves, by path."""
    modules = (explained, *(front.module for front in explained._fronts))
    for name, tensor in chain.from_iterable(map(named_tensors, modules)):
        if packed_layer_of(tensor) is not None:
            raise InputError(
                f"place: {name} is a packed (quantised) weight, whose kernel runs where its layer lies; load the model "
                "with device_map=... and its quantization_config, and transform that"
            )
        yield name, tensor


def _device(where: Device, path: str) -> torch.device | str:
    """A device of the map, which can hold a tensor. Raises InputError for one that is not there."""
    if where == "disk":
        return "disk"
    try:
        device = torch.device(where)
        if device.type == "meta":
            raise RuntimeError("tensors there have no values")
        found = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"place: the map puts {path or 'the model'!r} on {where!r}, and no tensor can be made there ({said}); give a "
            'device that torch has, or "disk"'
        ) from error
    return device if device.type == "cpu" else found


def _check_paths(explained: Explained, weights: Mapping[str, Tensor], asked: Mapping[str, Any]) -> None:
    """Raises InputError for a path that is none of the module's, and for weights that no path covers."""
    stacks = (module_stack(node) for node in explained.record.stages["canonical"].graph.nodes)
    known = {path for stack in stacks for path, _ in stack} | {""}
    for name in weights:
        parts = name.split(".")
        known |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    for path in asked:
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.0)
            raise InputError(
                f"place: the module has nothing at {path!r}; did you mean {near[0]!r}? A path is that of a module or "
                'weight of the model, and "" is all of it'
            )
    lost = [name for name in weights if _longest(name, asked) is None]
    if lost:
        more = f" and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise InputError(
            f"place: the map says nothing of {', '.join(lost[:3])}{more}; "
            'add their modules, or "" for all that is not named'
        )


def _longest(name: str, asked: Mapping[str, Any]) -> Any:
    """What the longest path says that a weight lies below; None if there is none."""
    parts = name.split(".")
    paths = (".".join(parts[:count]) for count in range(len(parts), -1, -1))
    return next((asked[path] for path in paths if path in asked), None)


def _empty(folder: str | Path | None) -> Path:
    if folder is None:
        raise InputError('place: the map has "disk"; give offload_folder=..., a folder where the weights are written')
    made = Path(folder)
    if made.exists() and (not made.is_dir() or any(made.iterdir())):
        raise InputError(
            f"place: offload_folder={str(folder)!r} is not empty, and another module may read what is there; give a new one"
        )
    made.mkdir(parents=True, exist_ok=True)
    return made


class _Layer(nn.Module):
    """A layer, which accelerate is told not to divide."""


def _divided(
    explained: Explained, weights: Mapping[str, Tensor], max_memory: Mapping[int | str, int | str] | None
) -> dict[str, Device]:
    """The map that accelerate makes of the module's weights, with whole layers."""
    try:
        from accelerate import infer_auto_device_map  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError(
            'place: device_map="auto" is made by accelerate, which is not installed; install it, or give a map'
        ) from error
    root = nn.Module()
    tied: dict[int, Any] = {}
    for path, tensor in weights.items():
        owner, name = made_owner(root, path)
        stands = tied.setdefault(id(tensor), nn.Parameter(tensor.detach().to("meta"), requires_grad=False))
        setattr(owner, name, stands)
    paths = {path for path, _ in root.named_modules()}
    for place in segments_of(explained, explained.fused, "layers").places:
        if place in paths:
            root.get_submodule(place).__class__ = _Layer
    given = None if max_memory is None else dict(max_memory)
    found: dict[str, Device] = infer_auto_device_map(root, max_memory=given, no_split_module_classes=[_Layer.__name__])
    return found
