"""Runs what follows the body of a model, on tensors without values: its head at the positions of targets, by the functions
that `relevance_of` and the last stage of a pipeline run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.utils.flop_counter import FlopCounterMode

from lxt_fx.attribution.many_entries import Entries
from lxt_fx.attribution.many_targets import Seeds, ends_at_hidden, ends_at_output, one_number
from lxt_fx.attribution.split_head import SplitModel
from lxt_fx.base.torch_internals import copied_graph
from lxt_fx.planning.flop_formulas import Formula
from lxt_fx.planning.live_bytes import LiveBytes


@dataclass(frozen=True, slots=True)
class AnyEntries:
    """So many entries of the logits of each text, no matter which: these `Numbers` need no values."""

    count: int

    @property
    def entries_only(self) -> bool:
        """They are entries."""
        return True

    def places(self, count: int, batch: int) -> Tensor:
        """The first position for each, [batch, targets]."""
        return torch.zeros(batch, self.count, dtype=torch.long)

    def entries(self, logits: Tensor, part: range) -> Entries:
        """The first entry for each of these targets."""
        return Entries(torch.zeros(len(logits), len(part), dtype=torch.long), None)

    def totals(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """The first number of each example for each target, summed over the examples, [targets]; and all of them."""
        flat = output.reshape(len(output) if output.dim() else 1, -1)
        picked = flat.gather(1, torch.zeros(len(flat), self.count, dtype=torch.long)).T
        return picked.sum(1), picked


@dataclass(frozen=True, slots=True)
class EndCost:
    """What targets cost behind the body: flops and peaks, and the bytes that are alive after the forward. `through` says
    whether these, and the value that the backward starts at, are alive until the backward of the whole body has ended, and
    not only until its own."""

    forward_flops: int
    backward_flops: int
    saved: int
    through: bool
    forward_peak: int
    backward_peak: int


End = tuple[list[Tensor], list[Seeds], Tensor]
"""What a backward starts at, with what, and the explained numbers."""


@dataclass(frozen=True, slots=True, eq=False)
class Behind:
    """What is behind the parts: `output` is the node whose value targets are computed from, by the head of `split` if there
    is one, and `many` are those of each text."""

    output: Node
    split: SplitModel | None
    form: str
    many: int
    formulas: Mapping[Any, Formula]

    @property
    def weights(self) -> tuple[str, ...]:
        """The paths that the head reads."""
        return () if self.split is None else tensor_paths(self.split.head.graph)

    def with_head_of(self, weights: Mapping[str, Tensor]) -> Behind:
        """The same with other tensors in the head, by path."""
        if self.split is None:
            return self
        head = GraphModule(dict(weights), copied_graph(self.split.head.graph))
        forward = cast("GraphModule", head.forward)  # a counter of flops puts hooks on modules that are called
        return replace(self, split=replace(self.split, head=forward))

    def targets(self, count: int) -> Callable[[Tensor], End]:
        """What computes so many targets of each text from the value behind the parts."""
        form, split, asked = self.form, self.split, AnyEntries(count)
        if split is None:
            return lambda output: ends_at_output(form, output, asked, "plan")
        return lambda hidden: ends_at_hidden(form, split, hidden, asked)


def tensor_paths(graph: Graph) -> tuple[str, ...]:
    """The paths of the tensors that a graph reads."""
    return tuple(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == "get_attr"))


def end_in_pipeline(
    end: Callable[[Tensor], End], value: Tensor, live: LiveBytes, counters: Sequence[FlopCounterMode]
) -> EndCost:
    """The cost of one target in the last stage of a pipeline: its forward makes a number, and the backward starts there."""

    def number() -> Tensor:
        ends, seeds, _ = end(value)
        return one_number(ends, seeds)

    with live, counters[0]:
        made = number()
    saved, peak = live.now, live.peak
    live.from_here()
    with live, counters[1]:
        torch.autograd.grad(made, value, torch.empty_like(made), allow_unused=True)
    forward, backward = (int(counter.get_total_flops()) for counter in counters)
    return EndCost(forward, backward, saved, False, peak, live.peak)


def end_alone(
    end: Callable[[Tensor], End], value: Tensor, live: LiveBytes, counters: Sequence[FlopCounterMode]
) -> EndCost:
    """The cost of all targets in `relevance_of`, which holds what the backward of a target starts with until its end."""
    with live, counters[0]:
        ends, made, _ = end(value)
        seeds = [seed(0, 1)[0] for seed in made]
    saved, peak, through = live.now, live.peak, ends[0] is value
    live.from_here()
    if not through:
        with live, counters[1]:
            torch.autograd.grad(ends, value, seeds, allow_unused=True)
    forward, backward = (int(counter.get_total_flops()) for counter in counters)
    return EndCost(forward, backward, saved, through, peak, live.peak)
