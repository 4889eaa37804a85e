"""The stage of one rank, ready to run: its module, the engine's stage and schedule, and what a run found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lxt_fx.attribution.many_entries import BatchTargets
from lxt_fx.attribution.many_targets import ends_at_hidden, ends_at_output, one_number
from lxt_fx.attribution.places import InsidePlace
from lxt_fx.attribution.split_head import SplitModel, split_model
from lxt_fx.attribution.tapped import tapped
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.explained import Explained
from lxt_fx.distributed.micro_batches import BatchedCall, MicroBatch
from lxt_fx.distributed.peers import Peers
from lxt_fx.distributed.stage_module import StageModule, borders, graph_module, on_meta
from lxt_fx.distributed.weights import Weights
from lxt_fx.passes.segments.by_segments import Segments
from lxt_fx.passes.segments.stages import Cut, Stage, stages_of


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """How a module is cut for a kind of call: the stages of a graph whose outputs are hidden states (with a head beside
    it), or the model's own, then the values of `places`."""

    module: Explained
    stages: tuple[Stage, ...]
    split: SplitModel | None
    outputs: int

    @classmethod
    def of(cls, module: Explained, places: Mapping[str, InsidePlace], cut: Cut, *, entries_only: bool) -> Plan:
        """The plan for a call with these places, for entries of the logits only or for any function of the output."""
        tap = tapped(module, places) if places else None
        split: SplitModel | None = None
        if entries_only:
            split = split_model(module) if tap is None else tap.split
        graph: Graph = split.body.graph if split is not None else (module if tap is None else tap.module).fused
        flat = len(pytree.tree_leaves(graph.output_node().args[0])) - len(places)
        stays = range(flat, flat + len(places))
        lookups = {path: x for front in module._fronts for path, x in _tensors(front.module, front.module.graph).items()}
        ends = {} if split is None else _tensors(split.head, split.head.graph)
        stages = stages_of(module, graph, cut, stays=stays, in_first=lookups, in_last=ends)
        return cls(module, stages, split, flat)

    def load(self, weights: Weights, rank: int) -> None:
        """Reads all tensors that a rank needs."""
        parts: list[tuple[nn.Module, Graph]] = [(self.module, self.stages[rank].graph)]
        parts += [(front.module, front.module.graph) for front in (self.module._fronts if rank == 0 else ())]
        parts += (
            [(self.split.head, self.split.head.graph)] if self.split is not None and rank == len(self.stages) - 1 else []
        )
        for owner, graph in parts:
            weights.of(owner, _paths(graph))

    def ranks(self, places: Mapping[str, InsidePlace]) -> dict[str, int]:
        """The stage that computes each place."""
        own = {output: stage.index for stage in self.stages for output in stage.stays}
        return {name: own[self.outputs + number] for number, name in enumerate(places)}


def _paths(graph: Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "get_attr"}


def _tensors(owner: nn.Module, graph: Graph) -> dict[str, Tensor]:
    return {path: attrgetter(path)(owner) for path in sorted(_paths(graph))}


class BuiltStage:
    """The stage of this rank for calls of one shape."""

    def __init__(
        self, plan: Plan, call: BatchedCall, weights: Weights, peers: Peers, schedule: str, batches: Sequence[MicroBatch]
    ) -> None:
        self.plan, self.stage, self.device, self.kind = plan, plan.stages[peers.rank], weights.device, schedule
        self._asked: Callable[[int], BatchTargets] | None = None
        self._values: dict[int, Tensor] = {}
        self._count = len(batches)
        module, last = plan.module, peers.rank == peers.count - 1
        body = self._module(weights, module, self.stage.graph, module.segments)
        fronts = module._fronts if peers.rank == 0 else ()
        lookups = {front.leaf: (front, self._module(weights, front.module, front.module.graph)) for front in fronts}
        self._split: SplitModel | None = None
        if last and plan.split is not None:
            head = plan.split.head
            self._split = replace(plan.split, head=self._module(weights, head, head.graph))
        self.module = StageModule(body, self.stage, lookups, module.record.form, self._end if last else None)
        self.given, self.gives = _borders(plan, call, batches, peers.rank)
        self._engine: Any = None

    def _module(self, weights: Weights, owner: nn.Module, graph: Graph, segments: Segments | None = None) -> GraphModule:
        return graph_module(weights.of(owner, _paths(graph)), graph, self.device, segments)

    @property
    def sent(self) -> int:
        """The bytes that one run sends: the values forward, the gradients of what it was given backward."""
        back = [x for x in self.given if x.requires_grad]
        return self._count * sum(x.numel() * x.element_size() for x in (*self.gives, *back))

    def run(
        self, call: BatchedCall, batches: Sequence[MicroBatch], asked: Callable[[int], BatchTargets], group: Any
    ) -> None:
        """The forward and backward of all micro-batches, by the engine."""
        self._asked, self._values = asked, {}
        self.module.begin([call.rows(batch.examples) for batch in batches], frozenset(call.leaves))
        if self._engine is None or self._engine[0] is not group:
            self._engine = group, self._scheduled(group, len(batches))
        numbers = torch.arange(len(batches))
        self._engine[1].step(number=numbers, target=numbers)

    def _scheduled(self, group: Any, count: int) -> Any:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        ends = self.gives or (torch.empty(1, device="meta", requires_grad=True),)
        stage = PipelineStage(
            self.module, self.stage.index, len(self.plan.stages), self.device, self.given, ends, group=group
        )
        too_few = count < len(self.plan.stages)  # for 1f1b, which could start no backward before the last forward then
        kind = ScheduleGPipe if self.kind == "gpipe" or too_few else Schedule1F1B
        return kind(stage, count, loss_fn=lambda number, _: number.sum())

    def _end(self, number: int, outputs: tuple[Tensor, ...]) -> Tensor:
        """The explained number of a micro-batch as a tensor that the right gradient flows back from."""
        assert self._asked is not None
        asked, form = self._asked(number), self.plan.module.record.form
        if self._split is not None:
            ends, seeds, values = ends_at_hidden(form, self._split, outputs[0], asked)
        else:
            spec = io_of(self.plan.module.graph).out_spec
            flat: list[Any] = [None] * self.plan.outputs
            for index, value in zip(self.stage.outputs, outputs, strict=True):
                flat[index] = value
            output = pytree.tree_unflatten(flat, spec)
            ends, seeds, values = ends_at_output(form, output, asked, "pipeline")
        self._values[number] = at_least_float32(values.detach()).cpu()
        return one_number(ends, seeds)

    def values(self, batches: Sequence[MicroBatch]) -> Tensor | None:
        """The explained numbers, [targets, batch]; None unless this is the last stage."""
        if not self._values:
            return None
        return _by_target(batches, {n: v.reshape(-1) for n, v in self._values.items()})

    def not_finite(self) -> str | None:
        """What is NaN or infinite; None if nothing is."""
        found = self.module.found
        if not all(torch.isfinite(value).all() for value in self._values.values()):
            return "an explained number is not finite"
        if not all(torch.isfinite(value).all() for value in found.relevance.values()):
            return "the relevance at a place is not finite"
        if not all(
            torch.isfinite(x.grad).all() for leaves in found.leaves.values() for x in leaves.values() if x.grad is not None
        ):
            return "the relevance of a leaf is not finite"
        return None

    def leaf_relevance(self, batches: Sequence[MicroBatch], call: BatchedCall) -> dict[str, Tensor]:
        """The relevance of each leaf, [targets, *leaf]."""
        found, gradient = self.module.found.leaves, self.plan.module.record.form == "gradient"
        made: dict[str, Tensor] = {}
        for name in call.leaves:
            parts = {}
            for number, leaves in found.items():
                leaf = leaves[name]
                wide = at_least_float32(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)
                parts[number] = leaf.detach() * wide if gradient else wide
            made[name] = _by_target(batches, parts)
        return made

    def inside(
        self, places: Mapping[str, InsidePlace], batches: Sequence[MicroBatch], call: BatchedCall
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Relevance [targets, batch, ...] and value [batch, ...] of the places of this stage."""
        relevance, activation = {}, {}
        for number, (name, place) in enumerate(places.items(), start=self.plan.outputs):
            if number not in self.stage.stays:
                continue
            at = _batch_axis(place, call)
            parts = [{n: x.movedim(at, 0) for (n, out), x in of.items() if out == number}
                     for of in (self.module.found.relevance, self.module.found.activation)]  # fmt: skip
            relevance[name] = _by_target(batches, parts[0])
            activation[name] = _by_target(batches, parts[1])[0]
        return relevance, activation


def _batch_axis(place: InsidePlace, call: BatchedCall) -> int:
    if "batch" in place.axes:
        return place.axes.index("batch")
    if call.examples > 1:
        raise InputError(
            f"pipeline: the graph does not say which part of {place.name} [{', '.join(place.shape)}] belongs to which "
            "example of the batch; give the examples one at a time"
        )
    return 0


def _by_target(batches: Sequence[MicroBatch], parts: Mapping[int, Tensor]) -> Tensor:
    """[targets, examples, ...] from the parts of all micro-batches, without examples that do not count."""
    rows: dict[int, list[Tensor]] = {}
    for number, batch in enumerate(batches):
        part = parts[number]
        rows.setdefault(batch.target, []).append(part[: batch.count] if len(part) == len(batch.examples) else part)
    return torch.stack([torch.cat(each) for each in rows.values()])


def _borders(
    plan: Plan, call: BatchedCall, batches: Sequence[MicroBatch], rank: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the stage takes and gives, on the meta device."""
    module, inputs = plan.module, on_meta(call.rows(batches[0].examples))
    for name, leaf in call.leaf_rows(len(batches[0].examples)).items():
        inputs[name] = leaf.requires_grad_(True)
    paths = {path for stage in plan.stages for path in _paths(stage.graph)}
    tensors = on_meta({path: attrgetter(path)(module) for path in paths})
    found = borders(plan.stages, tensors, inputs)
    return (found[rank - 1] if rank else ()), found[rank]
