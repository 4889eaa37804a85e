"""The bounds that the speed of lxt_fx is held to, and what a run of speed.py says of each."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from speed_grid import BY_NAME, PLAIN

Found = dict[str, Any]
"""What a run wrote as JSON."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A measured ratio with its quartiles over rounds (NaN-free; alike where there is one figure), or why there is none."""

    value: float | None
    low: float = 0.0
    high: float = 0.0
    why: str = ""

    def over(self, other: Ratio) -> Ratio:
        """This ratio divided by another, where both have the same base."""
        if self.value is None or other.value is None:
            return Ratio(None, why=self.why or other.why)
        return Ratio(self.value / other.value, self.low / other.high, self.high / other.low)


@dataclass(frozen=True, slots=True)
class Bound:
    """`measured` must be at most `limit`. `cell` is where. `of_threads` is the same
    ratio in seconds of all threads, which does not count waiting for other programs."""

    said: str
    limit: float
    cell: str
    measured: Callable[[Found], Ratio]
    of_threads: Callable[[Found], Ratio] | None = None
    unit: str = ""


def rows_of(found: Found, cell: str) -> dict[str, Any]:
    """The methods of a cell, nothing where it was not run."""
    rows: dict[str, Any] = found["cells"].get(cell, {}).get("methods", {})
    return rows


def time_ratio(found: Found, cell: str, method: str, base: str | None = None, what: str = "seconds") -> Ratio:
    """Seconds (or `cpu_seconds`) of a method over those of its base, round by round: the median and the quartiles of that
    quotient. Two methods of different environments are compared by their ratios to the plain gradient of their own."""
    rows = rows_of(found, cell)
    base = base or BY_NAME[method].base
    if BY_NAME[method].base != BY_NAME[base].base:
        return time_ratio(found, cell, method, what=what).over(time_ratio(found, cell, base, what=what))
    for name in (method, base):
        if why := _missing(rows, name):
            return Ratio(None, why=why)
    pairs = zip(rows[method][what], rows[base][what], strict=False)
    quotients = [a / b for a, b in pairs if a is not None and b is not None]
    if not quotients:
        return Ratio(None, why="not timed")
    return _spread(quotients)


def _spread(values: list[float]) -> Ratio:
    if len(values) < 2:
        return Ratio(values[0], values[0], values[0])
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(middle, low, high)


def _missing(rows: dict[str, Any], name: str) -> str:
    if not rows:
        return "cell not run"
    if name not in rows:
        return f"{name} not run"
    return str(rows[name].get("why", ""))


def memory_ratio(found: Found, cell: str, method: str, what: str, base: str = PLAIN) -> Ratio:
    """`peak_mib` or `saved_bytes` of a method over that of the base."""
    rows = rows_of(found, cell)
    for name in (method, base):
        if what not in rows.get(name, {}):
            why = rows.get(name, {}).get("why_no_memory") or _missing(rows, name) or "not measured"
            return Ratio(None, why=str(why))
    quotient = rows[method][what] / rows[base][what]
    return Ratio(quotient, quotient, quotient)


def meta_figure(found: Found, key: str, divisor: float = 1.0) -> Ratio:
    """A figure of the 70B shape."""
    meta = found.get("meta") or {}
    if key not in meta:
        return Ratio(None, why=str(meta.get("why", "not run")))
    value = meta[key] / divisor
    return Ratio(value, value, value)


def linear_ratio(found: Found, what: str) -> Ratio:
    """Milliseconds a node of the largest graph over those of the smallest, round by round: 1 is linear in nodes. `what` is
    `total` or `after_capture`."""
    linear = found.get("linear") or {}
    if what not in linear:
        return Ratio(None, why=str(linear.get("why", "not run")))
    return _spread([large / small for small, large in zip(linear[what][0], linear[what][-1], strict=True)])


def _timed(said: str, limit: float, cell: str, method: str, base: str | None = None) -> Bound:
    return Bound(
        said,
        limit,
        cell,
        lambda found: time_ratio(found, cell, method, base),
        lambda found: time_ratio(found, cell, method, base, "cpu_seconds"),
    )


def _remembered(said: str, limit: float, cell: str, method: str, what: str) -> Bound:
    return Bound(said, limit, cell, lambda found: memory_ratio(found, cell, method, what))


def _without_weights(said: str, limit: float, unit: str, key: str, divisor: float = 1.0) -> Bound:
    said = f"70B shape on meta: {said}"
    return Bound(said, limit, "meta", lambda found: meta_figure(found, key, divisor), unit=unit)


SHORT, LONG, GEMMA, DEEP = "smollm2-128x1", "smollm2-512x1", "gemma3-128x1", "llama-64-layers-512x1"
WITH_LAYER_NORMS, OTHER_SHAPES = ("minilm-128x1", "vit-basex1"), ("whisperx1", "gpt2-128x1")
SAVED, PEAK = "saved_bytes", "peak_mib"
BOUNDS = (
    *(_timed("eager, same logits / plain", 1.00, cell, "ours") for cell in (SHORT, LONG)),
    *(_timed("eager, same logits / plain", 0.95, cell, "ours") for cell in WITH_LAYER_NORMS),
    *(_timed("eager, same logits / plain", 1.00, cell, "ours") for cell in OTHER_SHAPES),
    *(_timed('eager, positions="last" / plain', 0.82, cell, "ours_last") for cell in (SHORT, LONG)),
    _timed('eager, positions="last" / plain', 0.45, GEMMA, "ours_last"),
    *(_timed("compiled, same logits / plain eager", 0.92, cell, "ours_compiled") for cell in (SHORT, LONG)),
    *(_timed("compiled, same logits / plain eager", 0.85, cell, "ours_compiled")
      for cell in (*WITH_LAYER_NORMS, *OTHER_SHAPES)),
    *(_timed('compiled, positions="last" / plain eager', 0.75, cell, "ours_last_compiled") for cell in (SHORT, LONG)),
    *(_remembered("bytes saved for backward / plain", 0.68, cell, "ours", SAVED) for cell in (SHORT, LONG)),
    *(_remembered("peak memory above the weights / plain", 0.80, cell, "ours", PEAK) for cell in (SHORT, LONG)),
    _remembered('the same, checkpoint="sqrt", 64 layers', 0.30, DEEP, "ours_checkpoint", PEAK),
    _timed("32 targets in one call / 32 calls", 0.45, f"{SHORT}-targets", "targets_one_call", "targets_single"),
    _timed('eager, positions="last" / LXT, full logits', 0.83, SHORT, "ours_last", "lxt"),
    _timed('compiled, positions="last" / LXT, full logits', 0.76, SHORT, "ours_last_compiled", "lxt"),
    *(_timed("eager / LXT, same logits", 1.00, cell, "ours", "lxt") for cell in (SHORT, LONG)),
    *(_timed("compiled / LXT, same logits", 0.93, cell, "ours_compiled", "lxt") for cell in (SHORT, LONG)),
    *(_timed("eager / autoLRP", 0.40, cell, "ours", "autolrp") for cell in (SHORT, LONG)),
    _timed("eager / integrated gradients, 20 steps", 0.07, f"{SHORT}-ig", "ours", "captum_ig"),
    _without_weights("transform", 6, "s", "seconds"),
    _without_weights("peak memory", 6, "GiB", "peak_mib", 1024),
    _without_weights("stages after capture", 15, "s", "after_capture"),
    Bound(
        "transform after capture, CPU time a node, 80 layers / 8", 1.25, "linear",
        lambda found: linear_ratio(found, "after_capture"),
    ),
)
"""As the project's issues 6 and 16 state them, for two threads and float32."""


def verdict(bound: Bound, ratio: Ratio) -> str:
    """`met`, `not met`, or `-` where nothing was measured."""
    if ratio.value is None:
        return "-"
    return "met" if ratio.value <= bound.limit else "not met"
