"""The stage of one rank for relevance at leaves and places: what it runs, and what a run found."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.many_entries import BatchTargets
from lxt_fx.attribution.many_targets import ends_at_hidden, ends_at_output, one_number
from lxt_fx.attribution.places import InsidePlace
from lxt_fx.attribution.split_head import SplitModel
from lxt_fx.attribution.target import TargetFunction, Wanted
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import TextInput
from lxt_fx.base.errors import InputError
from lxt_fx.base.wide import at_least_float32
from lxt_fx.distributed.engine_stage import EngineStage
from lxt_fx.distributed.micro_batches import BatchedCall, MicroBatch
from lxt_fx.distributed.stage_module import End, Lookups, StageModule
from lxt_fx.distributed.weights import Weights


@dataclass(frozen=True, slots=True, eq=False)
class AskedTargets:
    """The targets, and the micro-batches that they are explained in."""

    reading: Reading
    targets: Sequence[Wanted | TargetFunction]
    texts: Sequence[TextInput]
    batches: Sequence[MicroBatch]

    @property
    def entries_only(self) -> bool:
        return all(isinstance(target, Wanted) for target in self.targets)

    def of(self, number: int) -> BatchTargets:
        """The target of a micro-batch, with the texts of its examples."""
        batch = self.batches[number]
        texts = [self.texts[example] for example in batch.examples] if self.texts else []
        return BatchTargets(self.reading, [self.targets[batch.target]], texts)


class BuiltStage(EngineStage):
    """The stage of this rank for calls of one shape that ask for relevance."""

    _asked: Callable[[int], BatchTargets]
    _values: dict[int, Tensor]
    _split: SplitModel | None = None

    def _made(self, weights: Weights, lookups: Lookups, end: End | None) -> StageModule:
        module, split = self.plan.module, self.plan.split
        if end is not None and split is not None:
            self._split = replace(split, head=self._graph(weights, split.head, split.head.graph))
        body = self._graph(weights, module, self.stage.graph, module.segments)
        return StageModule(lambda _, given: body(*given), self.stage, lookups, module.record.form, end)

    def run(
        self, call: BatchedCall, batches: Sequence[MicroBatch], asked: Callable[[int], BatchTargets], group: Any
    ) -> None:
        """The forward and backward of all micro-batches."""
        self._asked, self._values = asked, {}
        self.step(call, batches, group)

    def _end(self, number: int, outputs: tuple[Tensor, ...]) -> Tensor:
        asked, form = self._asked(number), self.plan.module.record.form
        if self._split is not None:
            ends, seeds, values = ends_at_hidden(form, self._split, outputs[0], asked)
        else:
            ends, seeds, values = ends_at_output(form, self._output(outputs), asked, "pipeline")
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
