"""Where the tensors of a captured graph are, and the graph with moves between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import copied_graph, pytree
from lxt_fx.compiler.conversions import move_graph
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example
from lxt_fx.passes.capture.offloaded import Dispatched
from lxt_fx.passes.placement.insert_moves import devices_of, drop_moves, insert_moves
from lxt_fx.passes.placement.put_weights import put_weights

NOT_COMPARED = "not compared: the model's own backward would hold all its offloaded weights"


@dataclass(frozen=True, slots=True)
class Placement:
    """What a captured graph gets in the place of its tensors, by their identity. `device` is where its inputs and outputs
    are. `devices` say where a new tensor is computed with, by its identity, if that is not where it lies. `example` are
    inputs with values, and `expected` is the model's answer to them; without, nothing is compared."""

    tensors: Mapping[int, Tensor]
    device: torch.device
    devices: Mapping[int, torch.device] = field(default_factory=dict)
    example: Example | None = None
    expected: Any = None

    def put(self, gm: GraphModule, fronts: Sequence[Front]) -> tuple[Front, ...]:
        """Gives a graph these tensors, and moves the values between them. Returns what computes its leaves, with these
        tensors too."""
        copies = tuple(replace(front, module=_copied(front.module)) for front in fronts)
        for module in (gm, *(front.module for front in copies)):
            put_weights(module, self.tensors)
            move_graph(module.graph, self.device)
            insert_moves(module.graph, devices_of(module, module.graph, self.devices), self.device)
            module.graph.lint()
            module.recompile()
        return copies


def _copied(module: GraphModule) -> GraphModule:
    """What computes a leaf, without the moves of an earlier placement."""
    made = GraphModule(module, copied_graph(module.graph, module.graph), "Front")
    drop_moves(made.graph)
    return made


def without_values(example: Example) -> Example:
    """An example whose tensors are on the meta device."""
    return replace(example, kwargs=pytree.tree_map_only(Tensor, lambda x: x.to("meta"), dict(example.kwargs)))


def placement_of(dispatched: Dispatched, model: nn.Module, example: Example, captured: Example) -> Placement:
    """The placement of a dispatched model whose twin was captured. The model runs on the example, by its own hooks."""
    found = example.as_captured(captured.kwargs, captured.optional)
    if found is None:
        raise InputError(
            f"transform: {type(model).__name__} is offloaded, and its graph takes other inputs "
            f"({', '.join(captured.kwargs)}) than the example; give the example inputs by these names"
        )
    with torch_state_restored(), torch.no_grad():
        torch.manual_seed(SEED)
        expected = found.call(model)
    return Placement(dispatched.tensors, dispatched.device, example=found, expected=expected)
