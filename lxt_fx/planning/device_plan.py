"""The plan of a model on devices, as a result: numbers, tables, JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lxt_fx.base.json_file import write_json
from lxt_fx.base.one_line import one_line
from lxt_fx.planning.arrangement import USABLE, Arrangement, Load, Remedy
from lxt_fx.planning.devices import GIGA, Devices
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True, slots=True)
class PartRow:
    """A part of the model and what one forward and backward of it cost for one micro-batch: flops, and bytes that are saved
    for the backward. `weights` are the bytes of its parameters and buffers. `recomputed` says whether the backward runs the
    forward again, which `backward_flops` has in it then."""

    name: str
    parameters: int
    weights: int
    forward_flops: int
    backward_flops: int
    saved: int
    recomputed: bool


@dataclass(frozen=True, slots=True)
class DevicePlan(Listed):
    """The result of `plan`. `print` gives all of it.

    `parameters` and `weights` (bytes) are those of the model, each once. `parts` are its parts in the order in which they
    run. `arrangement` has the stages, their peaks in bytes, the times, and the explanations an hour of all devices.
    `remedies` say what would fit, where the model does not. `sizes` are those of the inputs of one micro-batch."""

    model: str
    table: str
    dtype: str
    parameters: int
    weights: int
    sizes: str
    load: Load
    checkpoint: str
    bits: int | None
    devices: Devices
    parts: tuple[PartRow, ...]
    arrangement: Arrangement
    remedies: tuple[Remedy, ...]

    def __repr__(self) -> str:
        fits = f"{self.per_hour:,.0f} explanations an hour" if self.fits else "does not fit"
        return f"DevicePlan({one_line(self.model, 60)} on {one_line(str(self.devices), 40)}: {fits})"

    @property
    def fits(self) -> bool:
        """Whether every stage has room on its device."""
        return self.arrangement.fits

    @property
    def per_hour(self) -> float:
        """Explanations an hour, of all copies."""
        return self.arrangement.per_hour

    @property
    def layers_per_stage(self) -> tuple[int, ...]:
        """How many layers each stage has, as `stages=` of a pipeline takes them."""
        return tuple(len(stage.layers) for stage in self.arrangement.stages)

    def __rich__(self) -> RenderableType:
        """Sentences and tables."""
        from rich.console import Group
        from rich.text import Text

        title = Text(f"Plan of {self.model}, rules {self.table}, on {self.devices}", style="bold")
        said: list[RenderableType] = [title, Text(self._given()), "", self._parts(), "", self._stages(), ""]
        said += [Text(self._verdict(), style="bold" if self.fits else "bold red")]
        if self.remedies:
            said += ["", self._remedies()]
        return Group(*said, "", *(Text(f"- {line}") for line in self.assumptions()))

    def _given(self) -> str:
        load, packed = self.load, f", weights of the layers in {self.bits} bits" if self.bits else ""
        return (
            f"{_many(self.parameters)} parameters, {_bytes(self.weights)} in {self.dtype}{packed}. A micro-batch is "
            f"{self.sizes}. {load.micro_batches} micro-batches, {load.targets} target{'s' * (load.targets > 1)} a text, "
            f"checkpoint {self.checkpoint}."
        )

    def _verdict(self) -> str:
        found = self.arrangement
        ranks, borders = len(found.stages), f" The bubble is {found.times.bubble:.0%}." if len(found.stages) > 1 else ""
        if not self.fits:
            fullest = "it" if ranks == 1 else f"the fullest of {ranks} stages"
            return f"It does not fit: {fullest} needs {_bytes(found.peak)}, and a device has {_bytes(found.room)} to fill."
        return (
            f"It fits: {ranks} stage{'s' * (ranks > 1)}, {found.copies} cop{'ies' if found.copies > 1 else 'y'}, "
            f"{found.per_hour:,.0f} explanations an hour ({found.times.total:.3g} s for {found.explanations}).{borders}"
        )

    def _parts(self) -> RenderableType:
        table = _table("part", "parameters", "weights", "forward", "backward", "saved")
        for _, alike in groupby(self.parts, key=lambda part: _without_name(part)):
            rows = list(alike)
            one, names = rows[0], rows[0].name if len(rows) == 1 else f"{rows[0].name} to {rows[-1].name}, each"
            table.add_row(
                names, _many(one.parameters), _bytes(one.weights), _flops(one.forward_flops), _flops(one.backward_flops),
                _bytes(one.saved),
            )  # fmt: skip
        return table

    def _stages(self) -> RenderableType:
        table = _table("stage", "layers", "weights", "saved", "buffers", "peak", "forward", "backward", "sends")
        for stage, forward, backward in zip(
            self.arrangement.stages, self.arrangement.times.forward, self.arrangement.times.backward, strict=True
        ):
            table.add_row(
                str(stage.index), str(len(stage.layers)), _bytes(stage.weights), _bytes(stage.saved),
                _bytes(stage.buffers) if stage.buffers else "", _bytes(stage.peak), f"{1000 * forward:.3g} ms",
                f"{1000 * backward:.3g} ms", _bytes(stage.sends) if stage.sends else "",
            )  # fmt: skip
        return table

    def _remedies(self) -> RenderableType:
        table = _table("what would change that", "peak", "fits", "an hour")
        for each in self.remedies:
            table.add_row(each.what, _bytes(each.peak), "yes" if each.fits else "no", f"{each.per_hour:,.0f}")
        return table

    def assumptions(self) -> list[str]:
        """What the numbers rest on, in sentences."""
        each, load = self.devices.each, self.load
        speed = each.flops(load.dtype)
        found = self.arrangement
        lines = [
            f"A device reaches {load.efficiency:.0%} of {speed / 1e12:g} Tflop/s, its link {each.link_bandwidth / GIGA:g} "
            f"GB/s, and {USABLE:.0%} of its memory is filled ({each.source}).",
            "Flops, saved bytes and peaks were counted on tensors without values, with the kernels of a CPU; workspaces "
            "inside a kernel are not in the peaks.",
            "The head computes logits at the targets alone, as relevance_of and a pipeline do.",
        ]
        if len(found.stages) > 1:
            lines.append(
                f"The schedule is {load.schedule}: the first stage has {found.stages[0].in_flight} micro-batches saved at "
                f"its peak. Buffers for what neighbours send are those of all {found.micro_batches}, as "
                "torch.distributed.pipelining makes them."
            )
        elif load.targets > 1:
            lines.append(
                "The peak is that of one target after another (chunk=1); relevance_of runs several backwards at once, "
                "as far as about 1 GiB of gradients allows."
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for `json.dumps`; sizes in bytes, times in seconds."""
        found = self.arrangement
        stages = [
            asdict(stage) | {"layers": list(stage.layers), "forward_seconds": forward, "backward_seconds": backward}
            for stage, forward, backward in zip(found.stages, found.times.forward, found.times.backward, strict=True)
        ]
        each = {name: value if math.isfinite(value) else None for name, value in _numbers(self.devices.each).items()}
        device = each | {"name": self.devices.each.name, "source": self.devices.each.source}
        load = asdict(self.load) | {"dtype": self.dtype, "inputs": self.sizes}
        return {
            "model": self.model, "table": self.table, "parameters": self.parameters, "weights": self.weights,
            "bits": self.bits, "checkpoint": self.checkpoint, "load": load, "devices": self.devices.count, "device": device,
            "parts": [asdict(part) for part in self.parts], "stages": stages, "copies": found.copies,
            "layers_per_stage": list(self.layers_per_stage), "peak": found.peak, "room": found.room, "fits": self.fits,
            "seconds": found.times.total, "transfer_seconds": found.times.transfer, "bubble": found.times.bubble,
            "explanations": found.explanations, "per_hour": found.per_hour,
            "remedies": [asdict(remedy) for remedy in self.remedies], "assumptions": self.assumptions(),
        }  # fmt: skip

    def to_json(self, path: str | Path) -> None:
        """Writes `to_dict()` to a file, UTF-8."""
        write_json(self.to_dict(), path)


def _without_name(part: PartRow) -> tuple[Any, ...]:
    """What parts that are alike share."""
    return tuple(value for name, value in asdict(part).items() if name != "name")


def _numbers(found: Any) -> dict[str, float]:
    return {name: value for name, value in asdict(found).items() if isinstance(value, (int, float))}


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _scaled(value: float, units: Sequence[str], step: float = 1000) -> str:
    place = 0
    while abs(value) >= step and place < len(units) - 1:
        value, place = value / step, place + 1
    return f"{value:.3g} {units[place]}".rstrip() if value < 999.5 else f"{value:.0f} {units[place]}".rstrip()


def _bytes(value: float) -> str:
    return _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def _flops(value: float) -> str:
    return _scaled(value, ("", "k", "M", "G", "T", "P"))


def _many(value: float) -> str:
    return _scaled(value, ("", "k", "M", "B"))
