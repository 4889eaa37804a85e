"""Devices that a plan is made for: how many, and what each has."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import torch

from lxt_fx.base.errors import InputError

GIGA, TERA = 10**9, 10**12


@dataclass(frozen=True, slots=True)
class DeviceClass:
    """What one device has: bytes of memory, flops a second in half precision and in float32, bytes a second from its memory
    and to its neighbour in one direction. `source` says where the numbers are from."""

    name: str
    memory: int
    half_flops: float
    float_flops: float
    memory_bandwidth: float
    link_bandwidth: float
    source: str

    def flops(self, dtype: torch.dtype) -> float:
        """Flops a second in this dtype."""
        if dtype is torch.float64:
            return self.float_flops / 2
        return self.half_flops if dtype.itemsize <= 2 else self.float_flops


def _nvidia(name: str, memory: int, half: float, single: float, own: float, link: float) -> DeviceClass:
    return DeviceClass(
        name, memory * GIGA, half * TERA, single * TERA, own * GIGA, link * GIGA, f"NVIDIA, data sheet of the {name}, dense"
    )


CLASSES = {
    each.name: each
    for each in (
        _nvidia("H200", 141, 989, 67, 4800, 450),
        _nvidia("H100", 80, 989, 67, 3350, 450),
        _nvidia("A100", 80, 312, 19.5, 2039, 300),
        _nvidia("A100-40GB", 40, 312, 19.5, 1555, 300),
        _nvidia("L40S", 48, 362, 91.6, 864, 32),
        _nvidia("RTX4090", 24, 165, 82.6, 1008, 32),
    )
}
"""Classes that a plan knows by name. A link is half of the NVLink or PCIe number of both directions."""

BY_MEMORY = {80: "A100", 40: "A100-40GB", 48: "L40S", 24: "RTX4090", 141: "H200"}
"""The class that is meant where only gigabytes are given: of several the slowest."""

_WRITTEN = re.compile(r"(?:(\d+)x)?(?:(\d+(?:\.\d+)?)(G|Gi)B|([A-Za-z][\w-]*))", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Devices:
    """So many devices of a class."""

    count: int
    each: DeviceClass

    def __str__(self) -> str:
        size = f"{self.each.memory / GIGA:g} GB"
        return f"{self.count} x {self.each.name} ({size})" if self.each.name in CLASSES else f"{self.count} x {size}"


def devices_of(written: str, flops: float | None = None, bandwidth: float | None = None) -> Devices:
    """The devices that "8x80GB", "4xH100", "24GB" or "L40S" stands for. `flops` are a device's flops a second, `bandwidth`
    bytes a second between two neighbours; they take the place of those of the class.

    Raises InputError for what is no such text, and for a size without a known class where one of the two is missing.
    """
    read = _WRITTEN.fullmatch(written.strip())
    if read is None:
        raise InputError(f'plan: devices are written like "8x80GB", "4xH100" or "24GB", got {written!r}')
    count, size, unit, name = int(read[1] or 1), read[2], read[3], read[4]
    if count < 1:
        raise InputError(f"plan: {written!r} are no devices; give one or more")
    for number, what in ((flops, "flops"), (bandwidth, "bandwidth")):
        if number is not None and not 0 < number < float("inf"):
            raise InputError(f"plan: {what} must be a number above 0, got {number!r}")
    each = _named(name) if name else _sized(float(size), unit.lower() == "gi", flops, bandwidth)
    if flops is not None:
        each = replace(each, half_flops=flops, float_flops=flops, source=f"{each.source}; flops as given")
    if bandwidth is not None:
        each = replace(each, link_bandwidth=bandwidth, source=f"{each.source}; bandwidth as given")
    return Devices(count, each)


def _named(name: str) -> DeviceClass:
    known = {each.lower(): found for each, found in CLASSES.items()}
    if name.lower() not in known:
        raise InputError(
            f"plan: no device {name!r} is known; known are {', '.join(CLASSES)}. Give the memory, and flops and bandwidth: "
            'devices="8x96GB", flops=4e14, bandwidth=5e10'
        )
    return known[name.lower()]


def _sized(size: float, binary: bool, flops: float | None, bandwidth: float | None) -> DeviceClass:
    memory = int(size * (2**30 if binary else GIGA))
    if not binary and size in BY_MEMORY:
        return CLASSES[BY_MEMORY[int(size)]]
    if flops is None or bandwidth is None:
        raise InputError(
            f"plan: no device with {size:g} GB is known, so its speed is not; give flops (a second) and bandwidth (bytes a "
            f"second), or one of {', '.join(CLASSES)}, or {', '.join(f'{each}GB' for each in BY_MEMORY)}"
        )
    return DeviceClass(f"{size:g}GB", memory, flops, flops, float("inf"), bandwidth, "memory as given")
