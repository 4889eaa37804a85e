"""What the engine runs at one rank: the graph of a stage, with the micro-batches of a call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lxt_fx.base.torch_internals import copied_graph, set_forward
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.conversions import move_graph
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.segments.by_segments import Segments, forward_by_segments
from lxt_fx.passes.segments.recompute import recomputing
from lxt_fx.passes.segments.stages import Stage

End = Callable[[int, tuple[Tensor, ...]], Tensor]
"""The number that the backward of a micro-batch starts at, [], from its number and the outputs of the last stage."""

Run = Callable[[int, Sequence[Tensor]], Sequence[Tensor]]
"""What the graph of a stage returns for a micro-batch, from its number and the values of the placeholders."""

Lookups = Mapping[str, tuple[Front, GraphModule]]
"""What computes a leaf from the inputs, by the name of the leaf."""


@dataclass(slots=True, eq=False)
class Found:
    """What a stage found, by micro-batch: relevance and values of places by the number of their output, and the leaves."""

    relevance: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    activation: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    leaves: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    failed: Exception | None = None


class StageModule(nn.Module):
    """Takes what the stage before gives, and the number of a micro-batch; gives what the next stage takes. The last one
    gives the explained number, [1]. `lookups` compute leaves from the inputs, in the first stage."""

    def __init__(self, run: Run, stage: Stage, lookups: Lookups, form: str, end: End | None) -> None:
        super().__init__()
        self.run, self.stage, self.form, self.end = run, stage, form, end
        self.lookups = dict(lookups)
        self.inputs: Sequence[Mapping[str, Tensor]] = ()
        self.leaves: frozenset[str] = frozenset()
        self.found = Found()

    def begin(self, inputs: Sequence[Mapping[str, Tensor]], leaves: frozenset[str]) -> None:
        """Sets the inputs of each micro-batch, and the names of the inputs that relevance is read at."""
        self.inputs, self.leaves, self.found = inputs, leaves, Found()

    def forward(self, *taken: Tensor, number: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One micro-batch."""
        try:
            return self._forward(int(number), taken)
        except Exception as error:
            self.found.failed = error
            raise

    def _forward(self, number: int, taken: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
        inputs = dict(self.inputs[number])
        if self.stage.index == 0:
            inputs |= self._leaves(number, inputs)
        made = self.run(number, (*taken, *(inputs[name] for name in self.stage.inputs)))
        gives, rest = made[: len(self.stage.gives)], made[len(self.stage.gives) :]
        for output, value in zip(self.stage.stays, rest[len(self.stage.outputs) :], strict=True):
            self._watch(number, output, value)
        if self.end is None:
            return tuple(gives)
        return torch.stack([self.end(number, tuple(rest[: len(self.stage.outputs)]))])

    def _leaves(self, number: int, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """New tensors that relevance is read at; those that are looked up are computed from their tokens."""
        made: dict[str, Tensor] = {}
        for name in sorted(self.leaves):
            if name in inputs:
                value = inputs[name]
            else:
                front, module = self.lookups[name]
                with torch.no_grad():
                    (value,) = module(*(inputs[read] for read in front.reads))
            made[name] = value.detach().clone().requires_grad_(True)
        self.found.leaves[number] = made
        return made

    def _watch(self, number: int, output: int, value: Tensor) -> None:
        """Records the value of a place and, in the backward, its relevance."""
        key, kept = (number, output), value.detach()
        self.found.activation[key] = kept.cpu()
        self.found.relevance[key] = torch.zeros_like(at_least_float32(kept), device="cpu")
        if value.requires_grad:

            def record(gradient: Tensor) -> None:
                wide = at_least_float32(gradient)
                self.found.relevance[key] = (kept * wide if self.form == "gradient" else wide).cpu()

            value.register_hook(record)  # type: ignore[no-untyped-call]


def graph_module(
    tensors: Mapping[str, Tensor], graph: Graph, device: torch.device, segments: Segments | None = None
) -> GraphModule:
    """A module that runs the graph with these tensors on a device. With segments, the backward computes each of them
    again."""
    moved = copied_graph(graph)
    move_graph(moved, device)
    module = GraphModule(dict(tensors), moved)
    if segments is not None:
        names = {node.name for node in moved.nodes}
        starts = tuple(name for name in segments.starts if name in names)
        if starts:
            end = segments.end if segments.end in names else "output"
            set_forward(module, forward_by_segments(moved, Segments(starts, end, starts), recomputing))
    return module


def on_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same shapes, without values."""
    return {name: x.detach().to("meta") for name, x in tensors.items()}


def borders(
    stages: Sequence[Stage], tensors: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> list[tuple[Tensor, ...]]:
    """What each stage gives, as tensors on the meta device that say whether they require a gradient: the stages run there,
    for inputs on the meta device."""
    carried: dict[str, Tensor] = {}
    found = []
    for stage in stages:
        paths = {str(node.target) for node in stage.graph.nodes if node.op == "get_attr"}
        body = graph_module({path: tensors[path] for path in paths}, stage.graph, torch.device("meta"))
        made = body(*(carried[name] for name in stage.takes), *(inputs[name] for name in stage.inputs))
        carried = dict(zip(stage.gives, made, strict=False))
        kept = [torch.empty_like(x).requires_grad_(x.requires_grad) for x in carried.values()]
        found.append(tuple(kept))
        carried = dict(zip(stage.gives, kept, strict=True))
    return found
