"""How long stages take: forward and backward of each, the wait for the first and last micro-batch, and what crosses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lxt_fx.planning.devices import DeviceClass
from lxt_fx.planning.stage_costs import StageCost


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds of one run of all micro-batches through all stages: `forward` and `backward` of each stage for one
    micro-batch, `transfer` over the slowest border in one direction, `total`, and `bubble`, the share of `total` in which
    the slowest stage has no work."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    transfer: float
    total: float
    bubble: float


def times_of(
    stages: Sequence[StageCost], device: DeviceClass, dtype: torch.dtype, efficiency: float, micro_batches: int,
    backwards: int = 1,
) -> Times:  # fmt: skip
    """The times of GPipe (Huang et al. 2019): the forwards of all micro-batches, then their backwards. A stage takes
    flops / (efficiency * peak), or as long as it takes to read its weights once, if that is longer. A micro-batch is in one
    stage at a time, and a stage has one micro-batch at a time, so M micro-batches take the sum over stages and M - 1 times
    the slowest one: (M + P - 1) times a stage, where all P are equal. `backwards` are the backwards of one forward."""
    speed = efficiency * device.flops(dtype)

    def seconds(flops: float, weights: float) -> float:
        return max(flops / speed, weights / device.memory_bandwidth)

    forward = tuple(seconds(stage.forward_flops, stage.weights) for stage in stages)
    backward = tuple(backwards * seconds(stage.backward_flops, stage.weights) for stage in stages)
    transfer = max(stage.sends for stage in stages) / device.link_bandwidth
    borders = len(stages) - 1
    waits = 2 * transfer * (borders + micro_batches - 1) if borders else 0.0
    total = sum(map(sum, (forward, backward))) + (micro_batches - 1) * (max(forward) + max(backward)) + waits
    work = micro_batches * max(a + b for a, b in zip(forward, backward, strict=True))
    return Times(forward, backward, transfer, total, 1 - work / total)
