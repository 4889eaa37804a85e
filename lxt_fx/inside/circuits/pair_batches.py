"""Many pairs in parts, so that the values of all runs are not in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lxt_fx.attribution.target import is_list
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import steps
from lxt_fx.inputs.kinds import kind_of


def pair_batches(
    clean: Any, corrupted: Any, target: Any, batch: int | None, function: str
) -> Iterator[tuple[Any, Any, Any]]:
    """Clean inputs, corrupted inputs and targets of `batch` pairs after another; all at once where that is None.

    Raises InputError for a batch that is no number of pairs, and for pairs that are neither lists nor tensors by name.
    """
    if batch is None:
        yield clean, corrupted, target
        return
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise InputError(f"{function}: batch must be a whole number of at least 1, or None, got {batch!r}")
    counts = [_count(each) for each in (clean, corrupted)]
    if None in counts or counts[0] != counts[1]:
        raise InputError(
            f"{function}: batch={batch} takes lists of pairs apart; give clean and corrupted inputs as lists of as many, "
            "or both as tensors by name"
        )
    count = counts[0] or 0
    if is_list(target) and len(target) != count:
        raise InputError(
            f"{function}: {len(target)} targets for {count} pairs; give one for all, or a list with one for each"
        )
    for start in steps("pairs", range(0, count, batch), count, batch):
        own = slice(start, start + batch)
        yield _part(clean, own, count), _part(corrupted, own, count), target[own] if is_list(target) else target


def _count(given: Any) -> int | None:
    """How many inputs these are; None for what is no list of some."""
    if isinstance(given, Mapping):
        sizes = [len(value) for value in given.values() if isinstance(value, Tensor) and value.dim() > 1]
        return max(sizes, default=None)
    return len(given) if kind_of(given) == "list" else None


def _part(given: Any, own: slice, count: int) -> Any:
    if not isinstance(given, Mapping):
        return given[own]
    several = {name: isinstance(value, Tensor) and value.dim() > 0 and len(value) == count for name, value in given.items()}
    return {name: value[own] if several[name] else value for name, value in given.items()}
