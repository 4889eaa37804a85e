"""A model on devices: how many stages, how many copies, whether it fits, and how many explanations an hour that makes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from lxt_fx.passes.segments.balanced import balanced
from lxt_fx.planning.devices import GIGA, Devices
from lxt_fx.planning.measured import Measured
from lxt_fx.planning.schedule import Times, times_of
from lxt_fx.planning.stage_costs import Schedule, StageCost, cost_alone, pieces_of, stage_costs
from lxt_fx.planning.weights import Weights

USABLE = 0.9
"""The share of a device's memory that a plan fills: the rest is for the driver, workspaces and what the allocator cannot
give to anything else."""

HOST, DISK = 25 * GIGA, 3 * GIGA
"""Bytes a second at which weights are read from the memory of the machine (16 lanes of PCIe 4) and from a disk (NVMe)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What runs: texts of a micro-batch, targets of each text, micro-batches of a run. `efficiency` is the share of a
    device's flops that is reached, `schedule` that of a pipeline."""

    batch: int
    targets: int
    micro_batches: int
    efficiency: float
    dtype: torch.dtype
    schedule: Schedule = "1f1b"


@dataclass(frozen=True, slots=True)
class Arrangement:
    """A model dealt to stages, with `copies` of all stages. `explanations` are those of one run of one copy, `per_hour`
    those of all copies. `room` are the bytes of a device that are filled at most."""

    stages: tuple[StageCost, ...]
    copies: int
    micro_batches: int
    times: Times
    explanations: int
    per_hour: float
    room: int

    @property
    def peak(self) -> int:
        """The peak of the fullest stage, in bytes."""
        return max(stage.peak for stage in self.stages)

    @property
    def fits(self) -> bool:
        """Whether every stage has room on its device."""
        return self.peak <= self.room


@dataclass(frozen=True, slots=True)
class Remedy:
    """What would make a model fit: the peak, the explanations an hour and whether it fits then."""

    what: str
    peak: int
    per_hour: float
    fits: bool


def arranged(measured: Measured, weights: Weights, devices: Devices, load: Load, stages: int) -> Arrangement:
    """The model in so many stages, with as many copies as there are devices for. In one stage one micro-batch is saved at a
    time, and k targets of a text are k backwards of one forward (`relevance_of`); in several, targets are micro-batches."""
    alone = stages == 1
    runs = 1 if alone else load.micro_batches
    if alone:
        costs: tuple[StageCost, ...] = (cost_alone(measured, weights, load.targets),)
    else:
        by_layer = list(measured.by_layer)
        by_layer[0] |= weights.in_first
        by_layer[-1] |= {*measured.head}
        sizes = [sum(weights.bytes_of({path}) for path in paths) for paths in by_layer]
        costs = stage_costs(measured, weights, balanced(sizes, stages), runs, load.schedule)
    times = times_of(costs, devices.each, load.dtype, load.efficiency, runs, load.targets if alone else 1)
    explanations = load.batch * (load.targets if alone else load.micro_batches)
    copies = max(devices.count // stages, 1)
    rate = copies * 3600 * explanations / times.total
    return Arrangement(costs, copies, runs, times, explanations, rate, int(USABLE * devices.each.memory))


def best(measured: Measured, weights: Weights, devices: Devices, load: Load) -> Arrangement:
    """Of all numbers of stages for which there are devices, the one with the most explanations an hour among those that
    fit; the one with the lowest peak if none does."""
    most = min(devices.count, len(pieces_of(measured)))
    found = [arranged(measured, weights, devices, load, stages) for stages in range(1, most + 1)]
    fitting = [each for each in found if each.fits]
    return max(fitting, key=lambda each: each.per_hour) if fitting else min(found, key=lambda each: each.peak)


def fewer_micro_batches(measured: Measured, weights: Weights, devices: Devices, load: Load) -> Iterator[Remedy]:
    """The most micro-batches with which the model fits, if there are fewer that do."""
    for count in range(load.micro_batches - 1, 0, -1):
        made = best(measured, weights, devices, replace(load, micro_batches=count))
        if made.fits and len(made.stages) > 1:
            yield Remedy(f"{count} micro-batch{'es' * (count > 1)}", made.peak, made.per_hour, True)
            return


def more_devices(measured: Measured, weights: Weights, devices: Devices, load: Load) -> Iterator[Remedy]:
    """The smallest number of stages in which the model fits, if it needs more devices than there are."""
    for count in range(devices.count + 1, len(pieces_of(measured)) + 1):
        more = Devices(count, devices.each)
        made = arranged(measured, weights, more, load, count)
        if made.fits:
            yield Remedy(f"{more}", made.peak, made.per_hour, True)
            return


def offloaded(measured: Measured, weights: Weights, devices: Devices, load: Load) -> Iterator[Remedy]:
    """One device that holds two layers at a time, the one that runs and the one that is read ahead, with the weights in the
    memory of the machine or on disk: all are read once forward and once backward."""
    alone = arranged(measured, weights, devices, load, 1)
    (stage,) = alone.stages
    pieces = pieces_of(measured)
    sizes = [weights.bytes_of({path for part in piece for path in part.weights}) for piece in pieces]
    pairs = [sum(sizes[at : at + 2]) for at in range(max(len(sizes) - 1, 1))]
    peak = stage.peak - stage.weights + max(pairs)
    for bandwidth, where in ((HOST, "in the memory of the machine"), (DISK, "on disk")):
        read = (1 + load.targets) * stage.weights / bandwidth
        seconds = max(alone.times.total, read)
        rate = devices.count * 3600 * alone.explanations / seconds
        yield Remedy(f"weights {where}, a copy on each device", peak, rate, peak <= alone.room)
