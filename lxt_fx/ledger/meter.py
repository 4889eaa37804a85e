"""What the taps of an audit read, by node and by edge, for each explained number."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lxt_fx.ledger.causes import Cause

K = TypeVar("K", bound=Hashable)


class Edge(NamedTuple):
    """An edge of the graph: the node that is read, its reader, the argument name, and the number of the operand."""

    producer: str
    consumer: str
    argument: str
    order: int


@dataclass(frozen=True, slots=True, eq=False)
class Readings:
    """What was read, each [examples, ...] in float64 on the CPU.

    `reaching` is <output, gradient> of each node, `passing` is <operand, gradient> of each edge, and `taken` is the share
    of each (node, cause, name). `heads` splits the edges and outputs of attentions by head, `positions` splits (node, query
    | key | value) by token, `profile` splits the output of each layer by dimension 1 (tokens).
    """

    reaching: Mapping[str, Tensor]
    passing: Mapping[Edge, Tensor]
    taken: Mapping[tuple[str, Cause, str], Tensor]
    heads: Mapping[Edge | str, Tensor]
    positions: Mapping[tuple[str, str], Tensor]
    profile: Mapping[str, Tensor]


@dataclass(slots=True)
class Meter:
    """Where the taps write, for the example that is being explained; the fields are those of `Readings`."""

    example: int = 0
    reaching: dict[str, list[Tensor]] = field(default_factory=dict)
    passing: dict[Edge, list[Tensor]] = field(default_factory=dict)
    taken: dict[tuple[str, Cause, str], list[Tensor]] = field(default_factory=dict)
    heads: dict[Edge | str, list[Tensor]] = field(default_factory=dict)
    positions: dict[tuple[str, str], list[Tensor]] = field(default_factory=dict)
    profile: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, amounts: dict[K, list[Tensor]], key: K, amount: Tensor) -> None:
        """Adds to the amount of the example that is being explained."""
        found = amounts.setdefault(key, [])
        found += [torch.zeros_like(amount)] * (self.example + 1 - len(found))
        found[self.example] = found[self.example] + amount

    def readings(self, examples: int) -> Readings:
        """All that was read for so many examples; 0 for those without a reading."""

        def closed(amounts: Mapping[K, list[Tensor]]) -> dict[K, Tensor]:
            return {key: by_example(found, examples) for key, found in amounts.items()}

        return Readings(
            closed(self.reaching),
            closed(self.passing),
            closed(self.taken),
            closed(self.heads),
            closed(self.positions),
            closed(self.profile),
        )


def by_example(amounts: Sequence[Tensor], examples: int) -> Tensor:
    """[examples, ...] on the CPU in float64; 0 for examples without a reading."""
    stacked = torch.stack([amount.detach().double().cpu() for amount in amounts])
    return torch.cat([stacked, stacked.new_zeros(examples - len(stacked), *stacked.shape[1:])])


def joined(parts: Sequence[Readings], layers: Mapping[str, str]) -> Readings:
    """The readings of a graph whose parts ran one by one, the last part first. `layers` are those of `profile`, by node.

    A part that reads a value of another one sends back a gradient, 0 where the explained numbers do not depend on the
    value. So what no edge connects with the output is left out: in one run, nothing is read there.
    """
    whole = Readings(
        _one([part.reaching for part in parts]),
        _one([part.passing for part in parts]),
        _one([part.taken for part in parts]),
        _one([part.heads for part in parts]),
        _one([part.positions for part in parts]),
        _one([part.profile for part in parts]),
    )
    reached, outputs = _reached(whole.passing), {layer: node for node, layer in layers.items()}
    return Readings(
        {node: found for node, found in whole.reaching.items() if node in reached},
        {edge: found for edge, found in whole.passing.items() if edge.consumer in reached},
        {key: found for key, found in whole.taken.items() if key[0] in reached},
        {key: found for key, found in whole.heads.items() if (key if isinstance(key, str) else key.consumer) in reached},
        {key: found for key, found in whole.positions.items() if key[0] in reached},
        {layer: found for layer, found in whole.profile.items() if outputs[layer] in reached},
    )


def _one(parts: Sequence[Mapping[K, Tensor]]) -> dict[K, Tensor]:
    found: dict[K, Tensor] = {}
    for part in parts:
        assert (twice := found.keys() & part.keys()) == set(), f"read in two parts: {sorted(map(str, twice))[:3]}"
        found |= part
    return found


def _reached(edges: Mapping[Edge, Tensor]) -> set[str]:
    """The output, and all nodes from which edges that were read lead there."""
    producers: dict[str, list[str]] = {}
    for edge in edges:
        producers.setdefault(edge.consumer, []).append(edge.producer)
    found, todo = {"output"}, ["output"]
    while todo:
        new = set(producers.get(todo.pop(), ())) - found
        found |= new
        todo += new
    return found
