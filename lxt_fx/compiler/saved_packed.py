"""Packed layers in a file: which layers of which model, and not their weights. The user of `load` gives the quantised
model, since only its own code knows what its kernels need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.saved_json import Saved
from lxt_fx.compiler.saved_tensors import is_path, made_owner
from lxt_fx.ops.packed import PackedLayer, packed_layer_of, weight_of
from lxt_fx.packed.known import packed_layer

MOST = 100_000
_NUMBERS, _NEAR = 8, 0.05


def packed_in(modules: Collection[nn.Module]) -> dict[str, PackedLayer]:
    """The packed layers of modules by the path of their weight."""
    named = ((name, x) for module in modules for name, x in module.named_buffers(remove_duplicate=False))
    return {name: layer for name, x in named if (layer := packed_layer_of(x)) is not None}


def encoded_packed(layers: Mapping[str, PackedLayer]) -> dict[str, Any]:
    """Each packed layer by the path of its weight: its scheme, and a sketch of its unpacked weight."""
    return {path: {"scheme": layer.scheme, "sketch": _sketch(layer)} for path, layer in layers.items()}


def packed_paths(saved: Saved | None, others: Collection[str]) -> frozenset[str]:
    """The paths of a header's packed weights. Raises InputError for what is no path, or that of another tensor."""
    found = saved.entries() if saved is not None else {}
    if saved is not None and len(found) > MOST:
        saved.fail(f"has more than {MOST} layers")
    for path, part in found.items():
        meets = any(f"{other}.".startswith(f"{path}.") or path.startswith(f"{other}.") for other in others)
        if not is_path(path) or "." not in path or meets or not _below(path):
            part.fail("is no path of a packed weight")
        part.item("scheme").text(1000)
        for number in part.item("sketch").parts(_NUMBERS + 1):
            number.number()
    return frozenset(found)


def _below(path: str) -> bool:
    """Whether no part of the path is a name that a module uses itself."""
    return frozenset(dir(nn.Module())).isdisjoint(path.split("."))


def given_packed(saved: Saved | None, model: nn.Module | None) -> dict[str, Tensor]:
    """The packed weights that a header names, with the layers of this model. Raises InputError without a model, and for one
    whose layers are others."""
    found = saved.entries() if saved is not None else {}
    if not found:
        return {}
    first = next(iter(found.values()))
    if model is None:
        first.fail(
            f"is one of {len(found)} packed layers ({first.item('scheme').text(1000)}), whose weights and kernels a file "
            "does not hold; load the quantised model and give it: lxt_fx.load(path, packed=model)"
        )
    return {path: _given(path, part, model) for path, part in found.items()}


def _given(path: str, saved: Saved, model: nn.Module) -> Tensor:
    layer, scheme = path.rpartition(".")[0], saved.item("scheme").text(1000)
    try:
        module = model.get_submodule(layer)
    except AttributeError:
        saved.fail(f"is not in the given {type(model).__name__}, which has no module {layer}")
    packed = packed_layer(module, layer)
    if packed is None or packed.scheme != scheme:
        is_now = f"a {type(module).__name__}" + (f" ({packed.scheme})" if packed is not None else "")
        saved.fail(f"was packed by {scheme}, and {layer} of the given model is {is_now}")
    if not _is_near(_sketch(packed), saved.item("sketch")):
        saved.fail(f"has other weights than {layer} of the given model; give the model that was transformed")
    return weight_of(packed, packed.unpacked()[0])


def put_packed(root: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Gives a module these packed weights at their paths."""
    for path, weight in weights.items():
        owner, last = made_owner(root, path)
        owner.register_buffer(last, weight)


def _sketch(packed: PackedLayer) -> list[float]:
    """The norm of the unpacked weight, and its products with a few fixed random vectors: about its norm each, and moved by
    one percent where the weight moves by that."""
    weight = packed.unpacked()[0].detach().double().cpu()
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(_NUMBERS, len(weight), generator=generator, dtype=torch.float64)
    right = torch.randn(weight.shape[1], generator=generator, dtype=torch.float64)
    return [float(weight.norm()), *(left @ weight @ right).tolist()]


def _is_near(found: list[float], saved: Saved) -> bool:
    """Whether two sketches are those of one weight. Kernels of bitsandbytes round its scales when they write it anew."""
    numbers = [part.number() for part in saved.parts(_NUMBERS + 1)]
    limit = _NEAR * found[0]
    return len(numbers) == len(found) and all(abs(a - b) <= limit for a, b in zip(found, numbers, strict=True))
