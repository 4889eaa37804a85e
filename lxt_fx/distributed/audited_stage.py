"""The stage of one rank for an audit: its nodes run one by one, with a tap on every operand that carries relevance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target_entry import Choice
from lxt_fx.attribution.text_input import texts_by_example
from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import aten, copied_graph
from lxt_fx.base.wide import at_least_float32
from lxt_fx.compiler.conversions import move_graph
from lxt_fx.compiler.explained import Explained
from lxt_fx.distributed.engine_stage import EngineStage, paths_of
from lxt_fx.distributed.micro_batches import BatchedCall, MicroBatch
from lxt_fx.distributed.stage_module import End, Lookups, StageModule
from lxt_fx.distributed.weights import Weights
from lxt_fx.ledger.close_books import close_books
from lxt_fx.ledger.goals import Asked
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.ledger.meter import Meter, Readings, joined
from lxt_fx.ledger.taps import Taps, layer_outputs
from lxt_fx.passes.segments.stage_graph import HANDED_ON
from lxt_fx.passes.segments.stages import Stage


class StageTaps(Taps):
    """Runs the nodes of one stage as nodes of the whole `graph`, so that edges, rules and the origins of constants have the
    names that they have in one process. What hands a value on belongs to no node, and has no tap."""

    def __init__(self, explained: Explained, graph: Graph, stage: Stage, tensors: Mapping[str, Tensor], ends: bool) -> None:
        super().__init__(explained, Meter(), graph)
        self.stage, self.tensors, self.ends = stage, tensors, ends
        self._named: dict[str, Node] = {node.name: node for node in graph.nodes}
        inputs = {str(node.target): node for node in graph.nodes if node.op == "placeholder"}
        self._given = [*(self._named[name] for name in stage.takes), *(inputs[name] for name in stage.inputs)]
        own = (node for node in stage.graph.nodes if node.op in ("get_attr", "call_function"))
        self._own = [node for node in own if node not in _sending(stage)]
        assert all(self._named[node.name].target is node.target or node.op == "get_attr" for node in self._own)

    def values(self, meter: Meter, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the graph of the stage returns, for the values of its placeholders. The taps write to `meter`."""
        self.meter = meter
        try:
            self.env.update(zip(self._given, given, strict=True))
            for node in self._own:
                self.env[self._named[node.name]] = self._value_of(node)
            sent = [self._sent(self.env[self._named[name]]) for name in self.stage.gives]
            flat = self.run_node(self.graph.output_node()) if self.ends else []
            return (*sent, *(flat[index] for index in self.stage.outputs))
        finally:
            self.env.clear()

    def _value_of(self, node: Node) -> object:
        if node.op == "get_attr":
            return self.tensors[str(node.target)]
        if node.target is aten.sym_size.int:  # which may be read of another value here than in the whole graph
            read, dim = node.args
            assert isinstance(read, Node) and isinstance(dim, int)
            return self.env[self._named[read.name]].shape[dim]
        return self.run_node(self._named[node.name])

    def _sent(self, value: Tensor) -> Tensor:
        for op in HANDED_ON:
            value = op(value)
        return value


def _sending(stage: Stage) -> set[Node]:
    """The nodes of a stage that hand values on."""
    found: set[Node] = set()
    outputs = stage.graph.output_node().args[0]
    assert isinstance(outputs, tuple)
    for node in outputs[: len(stage.gives)]:
        for _ in HANDED_ON:
            assert isinstance(node, Node)
            found.add(node)
            node = node.args[0]
    return found


@dataclass(frozen=True, slots=True, eq=False)
class AuditedPart:
    """What the stage of a rank found: its readings; at the last stage, what each example was explained for; what is not
    finite, None if all is."""

    readings: Readings
    goals: Sequence[Choice]
    problem: str | None


class AuditedStage(EngineStage):
    """The stage of this rank for audits of calls of one shape. Each micro-batch is the whole batch, and explains one of its
    examples."""

    _asked: Asked
    _goals: dict[int, Choice]
    _meter: Meter
    _taps: StageTaps

    def _made(self, weights: Weights, lookups: Lookups, end: End | None) -> StageModule:
        module, stage = self.plan.module, self.stage
        graph = copied_graph(module.graph)
        move_graph(graph, self.device)
        self._taps = StageTaps(module, graph, stage, weights.of(module, paths_of(stage.graph)), end is not None)
        return StageModule(self._run, stage, lookups, module.record.form, end)

    def _run(self, number: int, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self._taps.values(replace(self._meter, example=number), given)

    def run(self, call: BatchedCall, batches: Sequence[MicroBatch], asked: Asked, group: object) -> AuditedPart:
        """The forward and backward of all micro-batches."""
        self._asked, self._goals, self._meter = asked, {}, Meter()
        self.step(call, batches, group)
        return AuditedPart(self._meter.readings(len(batches)), list(self._goals.values()), self._problem())

    def _end(self, number: int, outputs: tuple[Tensor, ...]) -> Tensor:
        goals = self._asked.goals(self._output(outputs))
        if len(goals) != self._count:
            raise InputError(
                f"audit: a pipeline explains one number for each of the {self._count} examples, and got {len(goals)}; "
                f"return one for each, [{self._count}], whose ledgers add up to that of their sum, or give one example"
            )
        self._goals[number] = Choice(goals[number].value.detach().cpu(), goals[number].said)
        return at_least_float32(goals[number].value)

    def _problem(self) -> str | None:
        if not all(bool(goal.value.isfinite()) for goal in self._goals.values()):
            return "an explained number is not finite"
        gradients = [leaf.grad for leaves in self.module.found.leaves.values() for leaf in leaves.values()]
        if not all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None):
            return "the relevance of a leaf is not finite"
        return None

    def leaf_relevance(self, call: BatchedCall) -> dict[str, list[Tensor]]:
        """leaf * gradient of each leaf for each example, in float64 on the CPU, at the first stage."""
        found = [leaves for _, leaves in sorted(self.module.found.leaves.items())]
        return {name: [_relevance(leaves[name]).cpu() for leaves in found] for name in call.leaves}


def _relevance(leaf: Tensor) -> Tensor:
    value = leaf.detach().double()
    return torch.zeros_like(value) if leaf.grad is None else value * leaf.grad.double()


def batches_of_audit(call: BatchedCall) -> list[MicroBatch]:
    """A micro-batch for each example of a call: all examples, of which it explains one. Whether they depend on one another
    is measured then, as in one process."""
    every = tuple(range(call.examples))
    return [MicroBatch(example, every, len(every)) for example in every]


def ledger_of(
    call: BatchedCall, parts: Sequence[AuditedPart], relevance: Mapping[str, list[Tensor]], tokenizer: Tokenizer | None
) -> Ledger:
    """The ledger of what all stages read, in their order."""
    module, bound = call.module, {**call.given, **call.leaves}
    readings = joined([part.readings for part in reversed(parts)], layer_outputs(module))
    read = texts_by_example(call.named, bound, tokenizer) if "inputs_embeds" in module.record.inputs else []
    return close_books(module, parts[-1].goals, relevance, readings, [text.tokens for text in read])
