"""The stage of one rank as torch's engine runs it: how a module is cut, its module at this rank, the schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lxt_fx.attribution.places import InsidePlace
from lxt_fx.attribution.split_head import SplitModel, split_model
from lxt_fx.attribution.tapped import tapped
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.distributed.micro_batches import BatchedCall, MicroBatch
from lxt_fx.distributed.peers import Peers
from lxt_fx.distributed.stage_module import End, Lookups, StageModule, borders, graph_module, on_meta
from lxt_fx.distributed.weights import Weights
from lxt_fx.passes.segments.by_segments import Segments
from lxt_fx.passes.segments.stages import Cut, Stage, stages_of
from lxt_fx.planning.stage_costs import is_one_by_one


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
        flat = len(_flat_outputs(graph)) - len(places)
        stays = range(flat, flat + len(places))
        lookups = {path: x for front in module._fronts for path, x in _tensors(front.module, front.module.graph).items()}
        ends = {} if split is None else _tensors(split.head, split.head.graph)
        stages = stages_of(module, graph, cut, stays=stays, in_first=lookups, in_last=ends)
        return cls(module, stages, split, flat)

    @classmethod
    def audited(cls, module: Explained, cut: Cut) -> Plan:
        """The plan for an audit: the stages of the graph that the rules were checked on, with all of its outputs."""
        return cls(module, stages_of(module, module.graph, cut), None, len(_flat_outputs(module.graph)))

    def load(self, weights: Weights, rank: int) -> None:
        """Reads all tensors that a rank needs."""
        parts: list[tuple[nn.Module, Graph]] = [(self.module, self.stages[rank].graph)]
        parts += [(front.module, front.module.graph) for front in (self.module._fronts if rank == 0 else ())]
        parts += (
            [(self.split.head, self.split.head.graph)] if self.split is not None and rank == len(self.stages) - 1 else []
        )
        for owner, graph in parts:
            weights.of(owner, paths_of(graph))

    def ranks(self, places: Mapping[str, InsidePlace]) -> dict[str, int]:
        """The stage that computes each place."""
        own = {output: stage.index for stage in self.stages for output in stage.stays}
        return {name: own[self.outputs + number] for number, name in enumerate(places)}


def _flat_outputs(graph: Graph) -> list[Any]:
    found: list[Any] = pytree.tree_leaves(graph.output_node().args[0])
    return found


def paths_of(graph: Graph) -> set[str]:
    """The paths of the tensors that a graph reads of its module."""
    return {str(node.target) for node in graph.nodes if node.op == "get_attr"}


def _tensors(owner: nn.Module, graph: Graph) -> dict[str, Tensor]:
    return {path: attrgetter(path)(owner) for path in sorted(paths_of(graph))}


class EngineStage:
    """The stage of this rank for calls of one shape. What it runs and what the backward of a micro-batch starts at is that
    of a kind of call: of relevance (`BuiltStage`), of an audit (`AuditedStage`)."""

    module: StageModule

    def __init__(
        self, plan: Plan, call: BatchedCall, weights: Weights, peers: Peers, schedule: str, batches: Sequence[MicroBatch]
    ) -> None:
        self.plan, self.stage, self.device, self.kind = plan, plan.stages[peers.rank], weights.device, schedule
        self._count = len(batches)
        fronts = plan.module._fronts if peers.rank == 0 else ()
        lookups = {front.leaf: (front, self._graph(weights, front.module, front.module.graph)) for front in fronts}
        self.module = self._made(weights, lookups, self._end if peers.rank == peers.count - 1 else None)
        self.given, self.gives = _borders(plan, call, batches, peers.rank)
        self._engine: Any = None

    def _made(self, weights: Weights, lookups: Lookups, end: End | None) -> StageModule:
        raise NotImplementedError

    def _end(self, number: int, outputs: tuple[Tensor, ...]) -> Tensor:
        """The explained number of a micro-batch as a tensor that the right gradient flows back from."""
        raise NotImplementedError

    def _graph(self, weights: Weights, owner: nn.Module, graph: Graph, segments: Segments | None = None) -> GraphModule:
        return graph_module(weights.of(owner, paths_of(graph)), graph, self.device, segments)

    @property
    def sent(self) -> int:
        """The bytes that one run sends: the values forward, the gradients of what it was given backward."""
        back = [x for x in self.given if x.requires_grad]
        return self._count * sum(x.numel() * x.element_size() for x in (*self.gives, *back))

    def step(self, call: BatchedCall, batches: Sequence[MicroBatch], group: Any) -> None:
        """The forward and backward of all micro-batches, by the engine."""
        self.module.begin([call.rows(batch.examples) for batch in batches], frozenset(call.leaves))
        if self._engine is None or self._engine[0] is not group:
            self._engine = group, self._scheduled(group, len(batches))
        numbers = torch.arange(len(batches))
        self._engine[1].step(number=numbers, target=numbers)

    def close(self) -> Exception | None:
        """Lets go of the engine, which holds the process group, and says what failed at this rank."""
        self._engine = None
        return self.module.found.failed

    def _scheduled(self, group: Any, count: int) -> Any:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

        module = self.module

        class NotingStage(PipelineStage):
            """Says that it was this rank where a backward failed, as its module does of a forward."""

            def backward_one_chunk(self, *args: Any, **settings: Any) -> Any:
                try:
                    return super().backward_one_chunk(*args, **settings)
                except Exception as error:
                    cause = error.__cause__
                    module.found.failed = cause if isinstance(cause, Exception) else error
                    raise

        ends = self.gives or (torch.empty(1, device="meta", requires_grad=True),)
        stage = NotingStage(module, self.stage.index, len(self.plan.stages), self.device, self.given, ends, group=group)
        kind = Schedule1F1B if is_one_by_one(self.kind, count, len(self.plan.stages)) else ScheduleGPipe
        return kind(stage, count, loss_fn=lambda number, _: number.sum())

    def _output(self, outputs: tuple[Tensor, ...]) -> Any:
        """The output of the module, at the last stage; None where the model gives no tensor."""
        flat: list[Any] = [None] * self.plan.outputs
        for index, value in zip(self.stage.outputs, outputs, strict=True):
            flat[index] = value
        return pytree.tree_unflatten(flat, io_of(self.plan.module.graph).out_spec)


def _borders(
    plan: Plan, call: BatchedCall, batches: Sequence[MicroBatch], rank: int
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the stage takes and gives, on the meta device."""
    module, inputs = plan.module, on_meta(call.rows(batches[0].examples))
    for name, leaf in call.leaf_rows(len(batches[0].examples)).items():
        inputs[name] = leaf.requires_grad_(True)
    paths = {path for stage in plan.stages for path in paths_of(stage.graph)}
    tensors = on_meta({path: attrgetter(path)(module) for path in paths})
    found = borders(plan.stages, tensors, inputs)
    return (found[rank - 1] if rank else ()), found[rank]
