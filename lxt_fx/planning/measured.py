"""What was counted of the parts of a graph and of the targets behind them, for inputs of some sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from lxt_fx.planning.at_targets import EndCost


@dataclass(frozen=True, slots=True)
class PartCost:
    """What a part costs in one forward and backward. `saved` are the bytes that the forward saves for the backward, beside
    weights and what `saves` names: values that the part reads or gives. `gives` are the bytes of each value that others
    read, `carries` names those that a gradient flows back to. `forward_peak` and `backward_peak` are the most bytes that
    are alive at a time of those that the forward makes, and of those that both make."""

    name: str
    reads: tuple[str, ...]
    gives: Mapping[str, int]
    carries: tuple[str, ...]
    weights: tuple[str, ...]
    forward_flops: int
    backward_flops: int
    saved: int
    saves: tuple[str, ...]
    forward_peak: int
    backward_peak: int


@dataclass(frozen=True)
class Measured:
    """The parts of a graph with their costs. `inputs` are the bytes of its inputs by the names of their nodes, of which
    `leaves` carry relevance, and `shared` those of values that belong to no part. `by_layer` are the paths of the weights
    by which layers are dealt to stages. Behind the parts the targets are computed from the value `end` by the weights
    `head`: one in the last stage of a pipeline (`in_pipeline`), or all of a text in one process (`alone`)."""

    parts: tuple[PartCost, ...]
    end: str
    head: tuple[str, ...]
    in_pipeline: EndCost
    alone: EndCost
    inputs: Mapping[str, int]
    leaves: tuple[str, ...]
    shared: Mapping[str, int]
    by_layer: tuple[frozenset[str], ...]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The bytes of each value that a part reads or gives."""
        return {**self.inputs, **self.shared, **{name: size for part in self.parts for name, size in part.gives.items()}}

    @cached_property
    def carry(self) -> frozenset[str]:
        """The values to which a gradient flows back."""
        return frozenset({*self.leaves, *(name for part in self.parts for name in part.carries)})

    @property
    def taken(self) -> frozenset[str]:
        """The leaves, with which the first part begins."""
        return frozenset(self.leaves)

    def bytes_of(self, names: Iterable[str]) -> int:
        """The bytes of these values."""
        return sum(self.sizes[name] for name in names)
