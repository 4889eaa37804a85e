"""`place`: an explained module whose parts run on the devices of a device map, or whose weights lie in a folder."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.streamed_weight import is_streamed
from lxt_fx.base.torch_internals import copied_graph, io_of, pytree, size_on_example
from lxt_fx.compiler.captured_model import CapturedModel
from lxt_fx.compiler.device_map import DeviceMap, places_by
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.compiler.further_graphs import Source, give_further
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.compiler.placement import Placement
from lxt_fx.compiler.steered_module import unsteered
from lxt_fx.passes.capture.capture import Captured
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.export_once import Copied
from lxt_fx.passes.placement.insert_moves import drop_moves
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof


@torch.inference_mode(False)
def place(
    explained: Explained,
    device_map: DeviceMap,
    *,
    offload_folder: str | Path | None = None,
    max_memory: Mapping[int | str, int | str] | None = None,
) -> Explained:
    """The module with its parts on the devices that `device_map` says: a dict from module paths to devices, as accelerate
    has it (`{"model.layers.0": 0, "model.layers.1": "cpu", "lm_head": "disk"}`; `""` is the whole model, and the longest
    path that fits a weight counts), one device for all, or `"auto"`, which lets accelerate divide the layers by what
    `max_memory` (or the machine) has.

    Values pass from part to part by `lxt_fx.to_device`, which `show` prints; its backward moves the gradient back. Inputs
    and outputs are on the first device of the map that computes. `"disk"` writes weights to files in `offload_folder`,
    which must be empty or new; `"cpu"` beside other devices keeps them in the memory of the CPU. Both are read for each
    use, one part of the model at a time, and layers are recomputed in the backward (docs/placement.md).

    Returns a new module, which shares the weights that stay where they are and has copies of the others; later changes of
    the model's weights are no changes of these. The given module does not change. Raises InputError, before anything is
    moved, for paths that the module does not have, weights that no path covers, devices that are not there, and a module
    that was loaded from a file or has packed or offloaded weights.
    """
    check_explained(explained, "place")
    _refuse(explained)
    places = places_by(explained, device_map, offload_folder, max_memory)
    return _placed(explained, Placement(places.tensors(), places.inputs, places.devices))


def _refuse(explained: Explained) -> None:
    explained._check_model()
    explained._refuse_steering("place")
    record = explained.record
    if record.table is None:
        raise InputError(
            "place: this module was loaded from a file, which does not hold the graph before its rules; move all of it "
            "with explained.to(device), or place the module that transform made"
        )
    if record.merged:
        raise InputError(
            f"place: the table merged batch norms into the layers before them ({record.merged[0]}, ...); give transform a "
            "model that lies on its devices, by from_pretrained(device_map=...)"
        )
    if is_streamed(explained):
        raise InputError(
            "place: weights of this module are offloaded already; load the model with another device_map and transform it"
        )


def _placed(explained: Explained, placement: Placement) -> Explained:
    record = explained.record
    assert record.table is not None and explained._options is not None
    options = replace(explained._options, positions=None)  # they are selected in the canonical graph
    proof = GradientProof(record.gradient_difference, note=record.gradient_note)
    embedding = next(iter(explained._embedding), None)
    captured = Captured(
        _without_moves(explained), _example(explained), record.method, record.specialised, record.guards,
        Copied(record.copied_layers, record.traced_layers),
    )  # fmt: skip
    source = CapturedModel(explained, captured, None, {}, None, [proof], embedding, placement=placement)
    found = compiled_by(source, record.table, options)
    give_further(found, explained, Source(nn.Module(), _further(explained, placement)))
    return found


def _further(explained: Explained, placement: Placement) -> Callable[[Any, Mapping[str, Any]], Explained]:
    """What places a further graph of a module as long as that is alive: it holds weights that the placed one may not."""
    known, name = weakref.ref(explained), explained.record.model_class

    def again(_: Any, inputs: Mapping[str, Any]) -> Explained:
        explained = known()
        if explained is None:
            raise CallError(
                f"{name}: this call needs another graph, and the module that this one was placed from is gone; keep it, or "
                "transform the model on inputs like these and place that"
            )
        with unsteered():
            fitting, _ = explained._prepared((), inputs)
        return _placed(fitting, placement)

    return again


def _without_moves(explained: Explained) -> GraphModule:
    """The canonical graph without the moves of an earlier placement."""
    graph = copied_graph(explained.record.stages["canonical"].graph, explained.graph)
    drop_moves(graph)
    return GraphModule(explained, graph)


def _example(explained: Explained) -> Example:
    """Inputs of the graph without values, in the sizes of the example that it was captured with."""
    io, record = io_of(explained.graph), explained.record
    kinds = [node.meta.get("val") for node in explained.graph.find_nodes(op="placeholder")]
    flat = [_like(kind) if isinstance(kind, Tensor) else kind for kind in kinds]
    _, bound = pytree.tree_unflatten(flat, io.in_spec)
    return Example(dict(bound), dict(record.constants), record.optional, order=record.order)


def _like(kind: Tensor) -> Tensor:
    return torch.empty([size_on_example(size) for size in kind.shape], dtype=kind.dtype, device="meta")
