"""One explanation over several processes: each holds some layers of the model, and torch's pipeline runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lxt_fx.attribution.leaf_call import LeafCall, leaves_read
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetsLike, several_targets
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import texts_of_logits
from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.errors import InputError, NonFiniteError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.explained import Explained, check_explained
from lxt_fx.distributed.audited_stage import AuditedPart, AuditedStage, batches_of_audit, ledger_of
from lxt_fx.distributed.built_stage import AskedTargets, BuiltStage
from lxt_fx.distributed.engine_stage import EngineStage, Plan
from lxt_fx.distributed.micro_batches import BatchedCall, MicroBatch, batched_call, check_apart, micro_batches
from lxt_fx.distributed.peers import Peers
from lxt_fx.distributed.weights import Weights
from lxt_fx.ledger.goals import Asked, check_form
from lxt_fx.ledger.ledger import Ledger
from lxt_fx.ops.moves import to_device
from lxt_fx.passes.segments.stages import Cut, Stage
from lxt_fx.planning.stage_costs import Schedule, check_schedule

S = TypeVar("S", bound=EngineStage)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class PipelineRelevance:
    """What one call of a pipeline found. At the first rank: `relevance` [targets, batch, tokens], at least float32, as
    `relevance_of` returns it, and `leaves`, that of each leaf [targets, *leaf]; None and empty at the other ranks. `values`
    [targets, batch] are the explained numbers, at every rank; [targets, batch] of functions are sums of a micro-batch.

    `inside` and `activation` are relevance [targets, batch, ...] and value [batch, ...] of the places that this rank
    computes, on the CPU, and `ranks` says which rank has each place. `sent` are the bytes that this rank sent to its
    neighbours, in the forward and in the backward.
    """

    relevance: Tensor | None
    values: Tensor
    leaves: Mapping[str, Tensor]
    inside: Mapping[str, Tensor]
    activation: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    sent: int
    _peers: Peers = field(repr=False)

    def gathered(self) -> dict[str, Tensor]:
        """The relevance at all places, by name, at every rank. Every rank must call it."""
        found: dict[str, Tensor] = {}
        for each in self._peers.gathered(dict(self.inside)):
            found |= each
        return {name: found[name] for name in self.ranks}


class Pipeline:
    """The stage of an explained module that this rank holds, with its weights (`lxt_fx.distributed.pipeline`). `stages` are
    all of them, `stage` that of this rank."""

    def __init__(
        self, explained: Explained, weights: Weights, peers: Peers, cut: Cut, device: torch.device, schedule: Schedule
    ) -> None:
        self.explained, self.device = explained, device
        self._weights, self._peers, self._schedule = weights, peers, schedule
        plan = Plan.of(explained, {}, cut, entries_only=True)
        if len(plan.stages) != peers.count:
            raise InputError(f"pipeline: {len(plan.stages)} stages for {peers.count} ranks; each rank has one stage")
        self.stages: tuple[Stage, ...] = plan.stages
        self._cut: Cut = [len(s.layers) for s in plan.stages] if _by_layers(cut) else cut
        self._built: tuple[Any, Any] | None = None
        plan.load(weights, peers.rank)

    @property
    def stage(self) -> Stage:
        """The stage of this rank."""
        return self.stages[self._peers.rank]

    @property
    def size(self) -> int:
        """The bytes of the weights of this rank."""
        return self._weights.size

    def __repr__(self) -> str:
        record = self.explained.record
        rows = [
            f"Pipeline({record.model_class}, rules {record.table_name}, rank {self._peers.rank} of {self._peers.count})"
        ]
        for stage in self.stages:
            layers = f"{stage.layers[0]} to {stage.layers[-1]}" if len(stage.layers) > 1 else "".join(stage.layers)
            rows.append(f"  stage {stage.index}: {layers}, {stage.size / 2**20:.1f} MiB, sends {len(stage.gives)} values")
        return "\n".join(rows)

    def relevance_of(
        self,
        inputs: Tensor | Mapping[str, Any],
        targets: TargetsLike,
        places: str | Sequence[str] = (),
        *,
        tokenizer: Tokenizer | None = None,
        labels: Sequence[str] | None = None,
        leaf: str | None = None,
        size: int | None = None,
    ) -> PipelineRelevance:
        """The relevance of every target, as `lxt_fx.relevance_of` gives it. Every rank must make the same call.

        `inputs`, `targets`, `tokenizer`, `labels` and `leaf` are as there; `places` are as in `lxt_fx.latent`. The examples
        of the batch are cut into micro-batches of `size` examples, for one target after the other; None makes about four
        micro-batches for each stage. One text with many targets is one micro-batch for each target.

        Raises InputError and CallError for what does not fit, NonFiniteError where a number or its relevance is not finite,
        and CallError at all living ranks where one of them fails, is killed, or does not answer within the time-out.
        """
        with gradients_on():
            wanted = several_targets(targets, "pipeline")
            if callable(wanted):
                raise InputError("pipeline: one function that returns all numbers is not known to be so many; give a list")
            call = batched_call(self.explained, inputs, self.device)
            call.explained._refuse_hooks("pipeline")
            chosen = leaves_read(call.module, leaf, "pipeline")
            found = places_at(call.module, places, "pipeline") if places else {}
            batches = micro_batches(call.examples, len(wanted), self._peers.count, size)
            check_apart(call, batches)
            texts = texts_of_logits(call.named, {**call.given, **call.leaves}, tokenizer)
            asked = AskedTargets(Reading.of("pipeline", call.module, labels), wanted, texts, batches)
            return self._run(call, asked, found, chosen)

    def _run(
        self, call: BatchedCall, asked: AskedTargets, places: Mapping[str, InsidePlace], chosen: Sequence[str]
    ) -> PipelineRelevance:
        def made() -> BuiltStage:
            plan = Plan.of(call.module, places, self._cut, entries_only=asked.entries_only)
            return BuiltStage(plan, call, self._weights, self._peers, self._schedule, asked.batches)

        built = self._stage_for(call, asked.batches, (tuple(places), asked.entries_only), made)

        def work() -> list[Any]:
            built.run(call, asked.batches, asked.of, self._peers.group)
            return self._peers.gathered((built.values(asked.batches), built.not_finite()))

        ends = self._together(built, work)
        self._check_finite([problem for _, problem in ends])
        inside, activation = built.inside(places, asked.batches, call)
        leaves = built.leaf_relevance(asked.batches, call) if self.stage.index == 0 else {}
        relevance = None
        if self.stage.index == 0:
            read = {name: leaf for name, leaf in call.leaves.items() if name in chosen}
            at = LeafCall(call.explained, call.module, call.named, call.given, read)
            relevance = at.by_token([leaves[name] for name in read])
        ranks = {name: self._peers.ranks[rank] for name, rank in built.plan.ranks(places).items()}
        return PipelineRelevance(relevance, ends[-1][0], leaves, inside, activation, ranks, built.sent, self._peers)

    def _together(self, built: EngineStage, work: Callable[[], T]) -> T:
        """What `work` returns, which every rank does at once. Raises CallError where another rank failed or is gone."""
        beats = self._peers.begin()
        try:
            return work()
        except Exception as error:
            self._built, own = None, built.close()
            raise self._peers.failure(error, own) from None
        finally:
            beats.stop()

    def _check_finite(self, problems: Sequence[str | None]) -> None:
        said = [f"rank {self._peers.ranks[rank]}: {problem}" for rank, problem in enumerate(problems) if problem]
        if said:
            raise NonFiniteError(f"pipeline: {said[0]}; lxt_fx.watch shows where, in a module that fits one process")

    def _stage_for(self, call: BatchedCall, batches: Sequence[MicroBatch], kind: Any, made: Callable[[], S]) -> S:
        """The stage of this rank for calls of this kind and shape, the last one again if it is the same."""
        rows = call.rows(batches[0].examples)
        shapes = tuple((name, tuple(x.shape), x.dtype) for name, x in rows.items())
        key = (kind, id(call.module), shapes, len(batches), tuple(call.leaves))
        if self._built is None or self._built[0] != key:
            self._built = key, made()
        found: S = self._built[1]
        return found

    def audit(
        self,
        inputs: Tensor | Mapping[str, Any],
        target: TargetsLike = None,
        *,
        tokenizer: Tokenizer | None = None,
        labels: Sequence[str] | None = None,
    ) -> Ledger | None:
        """Where all relevance went, as `lxt_fx.audit` says it: its `Ledger` at the first rank, None at the others. Every
        rank must make the same call.

        `inputs`, `target`, `tokenizer` and `labels` are as there. Each rank measures the nodes of its stage. Each example
        is a micro-batch: forward and backward run on the whole batch for each of them.

        Raises what `lxt_fx.audit` raises; InputError where a function returns one number for several examples; and
        CallError at all living ranks where one of them fails, is killed, or does not answer within the time-out.
        """
        with gradients_on(), autocast_off():
            call = batched_call(self.explained, inputs, self.device)
            call.explained._refuse_hooks("audit")
            check_form(call.module)
            texts = texts_of_logits(call.named, {**call.given, **call.leaves}, tokenizer)
            asked = Asked(Reading.of("audit", call.module, labels), target, texts)
            built, parts = self._audited(call, asked)
            return ledger_of(call, parts, built.leaf_relevance(call), tokenizer) if parts else None

    def _audited(self, call: BatchedCall, asked: Asked) -> tuple[AuditedStage, list[AuditedPart]]:
        """What all stages found, at the first rank."""
        batches = batches_of_audit(call)

        def made() -> AuditedStage:
            plan = Plan.audited(call.module, self._cut)
            return AuditedStage(plan, call, self._weights, self._peers, self._schedule, batches)

        built = self._stage_for(call, batches, "audit", made)

        def work() -> tuple[list[str | None], list[AuditedPart]]:
            part = built.run(call, batches, asked, self._peers.group)
            problems = self._peers.gathered(part.problem)
            return problems, [] if any(problems) else self._peers.at_first(part)

        problems, parts = self._together(built, work)
        self._check_finite(problems)
        return built, parts


def _by_layers(cut: Cut) -> bool:
    return isinstance(cut, int) or all(isinstance(each, int) for each in cut)


def pipeline(
    explained: nn.Module,
    weights: str | Path | None = None,
    *,
    stages: Cut | None = None,
    device: torch.device | str = "cpu",
    group: Any = None,
    schedule: Schedule = "1f1b",
    timeout: float = 600.0,
    ignore: Sequence[str] = (),
    buffers: Mapping[str, Tensor] | None = None,
) -> Pipeline:
    """A pipeline over the ranks of `torch.distributed`: each holds the weights of some layers, so none needs memory for all
    of them. Every rank calls it, in a script that `torchrun` starts:

        torch.distributed.init_process_group("gloo")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config).eval()
        pipe = lxt_fx.distributed.pipeline(lxt_fx.transform(model), "folder/of/safetensors")
        found = pipe.relevance_of({"input_ids": ids, "attention_mask": mask}, [token])
        found.relevance     # at the first rank: [targets, batch, tokens]
        ledger = pipe.audit({"input_ids": ids}, token)    # at the first rank: where all relevance went

    `explained` is what `transform` made of the model on the meta device, `weights` is a folder of safetensors. Of it each
    rank reads the tensors of its own stage only, in the dtype that the model has. Buffers that no checkpoint has are made
    again by the model's class, or given as `buffers`. Without `weights`, the module must have values itself.

    `stages` is None for one stage of about equal bytes for each rank, or how many layers each stage has, or the module that
    each stage but the first begins with. `group` is the process group whose ranks take part, in this order; None means all.
    The engine is `torch.distributed.pipelining`, with the `schedule` `Schedule1F1B` or `ScheduleGPipe`. A rank that waits
    for a neighbour longer than `timeout` seconds raises CallError.

    Raises InputError for a module that cannot be cut, for names of the checkpoint that are not the model's, and for weights
    that are packed or sharded.
    """
    module = check_explained(explained, "distributed.pipeline")
    check_schedule(schedule, "pipeline")
    if module._steers or module._watches:
        raise InputError("pipeline: the module is steered or watched, which one process does; end that block first")
    if any(node.target is to_device for node in module.graph.nodes):
        raise InputError(
            "pipeline: the module lies on several devices of one process (device_map, lxt_fx.place); each rank has one "
            "device: transform the model on the meta device"
        )
    peers, place = Peers(group, timeout), torch.device(device)
    tensors = Weights(module, weights, place, ignore, buffers or {})
    return Pipeline(module, tensors, peers, peers.count if stages is None else stages, place, schedule)
