"""Parts dealt to stages: the weights of each stage, its flops, what crosses its borders, and the peak of its memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from lxt_fx.planning.measured_parts import Measured, PartCost
from lxt_fx.planning.parts import BEFORE, BEHIND
from lxt_fx.planning.weights import Weights


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage for one micro-batch, in bytes and flops. `layers` names its parts. `sends` are the bytes that go to the
    next stage in the forward; as many come back. `saved` is what its forward saves for its backward, with what it was sent
    and sends. `peak` is the most that is alive at a time, weights included, with `in_flight` micro-batches saved."""

    index: int
    layers: tuple[str, ...]
    parameters: int
    weights: int
    forward_flops: int
    backward_flops: int
    sends: int
    saved: int
    peak: int
    in_flight: int


def pieces_of(measured: Measured) -> list[list[PartCost]]:
    """The parts that stay together: what is before the layers belongs to the first layer, what is behind to the last."""
    layers = [[part] for part in measured.parts if part.name not in (BEFORE, BEHIND)]
    ends = {part.name: part for part in measured.parts if part.name in (BEFORE, BEHIND)}
    layers = layers or [[]]
    layers[0] = [*([ends[BEFORE]] if BEFORE in ends else []), *layers[0]]
    layers[-1] += [ends[BEHIND]] if BEHIND in ends else []
    return layers


def stage_costs(
    measured: Measured, weights: Weights, counts: Sequence[int], in_flight: int
) -> tuple[StageCost, ...]:
    """The stages that have so many layers each, with `in_flight` micro-batches saved at a time."""
    pieces = pieces_of(measured)
    edges = [0, *accumulate(counts)]
    assert edges[-1] == len(pieces)
    stages = [[part for piece in pieces[a:b] for part in piece] for a, b in pairwise(edges)]
    crossing = _crossing(measured, stages)
    made = []
    for index, parts in enumerate(stages):
        paths = {path for part in parts for path in part.weights} | (weights.in_first if index == 0 else set())
        size = weights.bytes_of(paths)
        sizes = value_sizes(measured)
        took, gave = ((crossing[at] if 0 <= at < len(crossing) else {}) for at in (index - 1, index))
        saved = _saved(parts, sizes, {*took, *gave})
        shown = tuple(part.name for part in parts if part.name not in (BEFORE, BEHIND)) or tuple(p.name for p in parts)
        made.append(
            StageCost(
                index, shown, weights.parameters_of(paths), size, sum(part.forward_flops for part in parts),
                sum(part.backward_flops for part in parts), sum(gave.values()), saved,
                size + (in_flight - 1) * saved + _one(parts, sizes, {*took, *gave}) + weights.largest_unpacked(paths),
                in_flight,
            )
        )  # fmt: skip
    return tuple(made)


def value_sizes(measured: Measured) -> dict[str, int]:
    """The bytes of each value that a part reads or gives."""
    return {**measured.inputs, **measured.shared, **{n: size for part in measured.parts for n, size in part.gives.items()}}


def _crossing(measured: Measured, stages: Sequence[Sequence[PartCost]]) -> list[dict[str, int]]:
    """For each border the values, in bytes, that stages before it have and stages behind it read. Inputs without relevance
    and shared values go to every stage by other ways."""
    given = dict.fromkeys(measured.leaves, 0)
    given |= {name: at for at, parts in enumerate(stages) for part in parts for name in part.gives}
    read: dict[str, int] = {}
    for at, parts in enumerate(stages):
        read.update({name: at for part in parts for name in part.reads})
    sizes = value_sizes(measured)
    return [
        {name: sizes[name] for name, at in given.items() if at <= border < read.get(name, -1)}
        for border in range(len(stages) - 1)
    ]


def _saved(parts: Sequence[PartCost], sizes: Mapping[str, int], held: set[str]) -> int:
    """What one micro-batch leaves behind after the forward of these parts."""
    named = {name for part in parts for name in part.saves} | held
    return sum(part.saved for part in parts) + sum(sizes[name] for name in named)


def _one(parts: Sequence[PartCost], sizes: Mapping[str, int], held: set[str]) -> int:
    """The most bytes that one micro-batch has alive, in the forward and in the backward."""
    found = 0
    for at, part in enumerate(parts):
        before = _saved(parts[:at], sizes, held)
        outside = {name for name in part.saves if name not in part.gives} - held
        outside -= {name for earlier in parts[:at] for name in earlier.saves}
        mine = sum(sizes[name] for name in outside)
        found = max(found, before + mine + max(part.forward_peak, part.backward_peak))
    return found


