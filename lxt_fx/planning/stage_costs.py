"""Parts dealt to stages: the weights of each stage, its flops, what crosses its borders, and the peak of its memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal, get_args

from lxt_fx.base.errors import InputError
from lxt_fx.planning.live_parts import MicroBatch
from lxt_fx.planning.measured import Measured, PartCost
from lxt_fx.planning.parts import BEFORE, BEHIND
from lxt_fx.planning.weights import Weights

Schedule = Literal["1f1b", "gpipe"]
"""The order of forwards and backwards, as in `lxt_fx.distributed.pipeline`."""


def check_schedule(schedule: str, function: str) -> None:
    """Raises InputError for a name of no schedule."""
    if schedule not in get_args(Schedule):
        raise InputError(f'{function}: schedule must be "1f1b" or "gpipe", got {schedule!r}')


def is_one_by_one(schedule: str, micro_batches: int, stages: int) -> bool:
    """Whether backwards run between forwards. With fewer micro-batches than stages none could begin before the last
    forward, and torch refuses 1f1b; then all forwards run first, as by gpipe."""
    return schedule == "1f1b" and micro_batches >= stages


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage for one micro-batch, in bytes and flops. `layers` names its parts. `sends` are the bytes that go to the
    next stage in the forward; as many come back. `saved` is what its forward saves for its backward, with what it was sent
    and sends. `buffers` are what a run holds of all its micro-batches: room for what neighbours send, and in the first
    stage the leaves with their relevance. `peak` is the most that is alive at a time, weights included, with `in_flight`
    micro-batches between their forward and the end of their backward."""

    index: int
    layers: tuple[str, ...]
    parameters: int
    weights: int
    forward_flops: int
    backward_flops: int
    sends: int
    saved: int
    buffers: int
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


def cost_alone(measured: Measured, weights: Weights, targets: int) -> StageCost:
    """All parts in one process, which explains one micro-batch after another by `relevance_of`."""
    one = MicroBatch(measured, measured.parts, measured.alone, measured.taken, again=targets > 1)
    return _stage(measured, weights, one, 0)


def stage_costs(
    measured: Measured, weights: Weights, counts: Sequence[int], micro_batches: int, schedule: Schedule
) -> tuple[StageCost, ...]:
    """The stages of a pipeline that have so many layers each."""
    pieces = pieces_of(measured)
    edges = [0, *accumulate(counts)]
    assert edges[-1] == len(pieces)
    stages = [[part for piece in pieces[a:b] for part in piece] for a, b in pairwise(edges)]
    borders = [measured.taken, *_crossing(measured, stages), frozenset[str]()]
    one_by_one = is_one_by_one(schedule, micro_batches, len(stages))
    found = []
    for index, parts in enumerate(stages):
        took, gave = borders[index], borders[index + 1]
        end = measured.in_pipeline if index == len(stages) - 1 else None
        cost = _stage(measured, weights, MicroBatch(measured, parts, end, took, gave, took), index)
        in_flight = len(stages) - index if one_by_one else micro_batches
        back = measured.bytes_of(took & measured.carry)
        buffers = micro_batches * (measured.bytes_of(took) + measured.bytes_of(gave & measured.carry))
        others = _of_others(micro_batches, in_flight, cost.saved, back, is_sent=index > 0 and one_by_one)
        found.append(
            replace(
                cost, sends=measured.bytes_of(gave), buffers=buffers, peak=cost.peak + buffers + others, in_flight=in_flight
            )
        )
    return tuple(found)


def _stage(measured: Measured, weights: Weights, one: MicroBatch, index: int) -> StageCost:
    """The cost of a stage that has one micro-batch."""
    parts, ends = one.parts, [] if one.end is None else [one.end]
    paths = {path for part in parts for path in part.weights} | (weights.in_first if index == 0 else set())
    paths |= {*measured.head} if ends else set()
    size = weights.bytes_of(paths)
    shown = tuple(part.name for part in parts if part.name not in (BEFORE, BEHIND)) or tuple(p.name for p in parts)
    forward, backward = (sum(getattr(each, f"{way}_flops") for each in (*parts, *ends)) for way in ("forward", "backward"))
    peak = size + one.peak + weights.largest_unpacked(paths)
    return StageCost(index, shown, weights.parameters_of(paths), size, forward, backward, 0, one.saved, 0, peak, 1)


def _of_others(micro_batches: int, in_flight: int, saved: int, back: int, *, is_sent: bool) -> int:
    """The most bytes that the other micro-batches have beside buffers while one runs: what those in flight saved, and the
    gradients of what was taken of those that are done. Such a gradient is held until it `is_sent`, else until the run
    ends."""

    def held(waiting: int) -> int:
        done = micro_batches - waiting - 1
        return waiting * saved + (min(done, 1) if is_sent else done) * back

    return max(held(in_flight - 1), held(0))


def _crossing(measured: Measured, stages: Sequence[Sequence[PartCost]]) -> list[frozenset[str]]:
    """For each border the values that stages before it have and stages behind it read. Inputs without relevance and shared
    values go to every stage by other ways."""
    given = dict.fromkeys(measured.leaves, 0)
    given |= {name: at for at, parts in enumerate(stages) for part in parts for name in part.gives}
    read: dict[str, int] = {}
    for at, parts in enumerate(stages):
        read.update({name: at for part in parts for name in part.reads})
    read[measured.end] = len(stages) - 1
    return [
        frozenset(name for name, at in given.items() if at <= border < read.get(name, -1))
        for border in range(len(stages) - 1)
    ]
