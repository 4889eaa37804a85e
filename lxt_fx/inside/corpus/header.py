"""What a corpus was asked of which model: two results belong together if this is the same."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lxt_fx.attribution.places import InsidePlace
from lxt_fx.attribution.target import TargetLike, is_list
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.weights_hash import weights_hash
from lxt_fx.inside.corpus.fingerprint import content_hash, processor_hash, rules_hash, said_target
from lxt_fx.inside.corpus.folder import FORMAT
from lxt_fx.inside.corpus.units_by_token import unit_count

Units = Sequence[int] | Mapping[str, Sequence[int]] | None
"""Which units: None for all of each place, numbers for those of each place, or numbers by place."""


@dataclass(frozen=True, slots=True)
class PlaceHeader:
    """A place of a corpus: its node, the names of its axes, how many units it has, and which were read, None for all."""

    node: str
    axes: tuple[str, ...]
    count: int
    units: tuple[int, ...] | None

    @property
    def read(self) -> int:
        """How many units were read."""
        return self.count if self.units is None else len(self.units)

    def row(self, place: str, unit: int, function: str) -> int:
        """Where a unit stands among those that were read. Raises InputError for one that was not."""
        if self.units is None and 0 <= unit < self.count:
            return unit
        if self.units is not None and unit in self.units:
            return self.units.index(unit)
        why = (
            f"it has {self.count} (0 to {self.count - 1})"
            if not 0 <= unit < self.count
            else f"{self.read} others were read"
        )
        raise InputError(f"{function}: there is no unit {unit} of {place}: {why}")

    @property
    def ids(self) -> tuple[int, ...]:
        """The units that were read."""
        return tuple(range(self.count)) if self.units is None else self.units


def place_headers(places: Mapping[str, InsidePlace], units: Units, function: str) -> dict[str, PlaceHeader]:
    """The places with the units that are to be read. Raises InputError for units that a place does not have, and
    UnknownNameError for units of a place that is not read."""
    if isinstance(units, Mapping) and (unknown := [name for name in units if name not in places]):
        raise UnknownNameError(
            f"{function}: units are given for {unknown[0]!r}, which is not among the places: {', '.join(list(places)[:6])}"
        )
    found = {}
    for name, place in places.items():
        count = unit_count(place, function)
        wanted = units.get(name) if isinstance(units, Mapping) else units
        found[name] = PlaceHeader(
            place.node, place.axes, count, None if wanted is None else _checked(wanted, count, name, function)
        )
    return found


def _checked(wanted: Sequence[int], count: int, name: str, function: str) -> tuple[int, ...]:
    try:
        found = tuple(dict.fromkeys(operator.index(unit) for unit in wanted))
    except TypeError as error:
        raise InputError(f"{function}: units are whole numbers, or numbers by place; got {wanted!r}") from error
    outside = [unit for unit in found if not 0 <= unit < count]
    if outside or not found:
        raise InputError(
            f"{function}: {name} has {count} units (0 to {count - 1}), "
            + (f"and {outside[0]} is none of them" if outside else "and none was asked for")
        )
    return found


def header_of(
    explained: Explained,
    processor: Any,
    places: Mapping[str, PlaceHeader],
    target: TargetLike,
    labels: Sequence[str] | None,
    top: int,
    tokens: int,
    window: int,
    function: str,
) -> dict[str, Any]:
    """What was asked of which model and processor, as plain values."""
    return {
        "format": FORMAT,
        **model_facts(explained, processor, target, labels, function),
        "top": top,
        "places": {
            name: {"node": each.node, "axes": list(each.axes), "count": each.count,
                   "units": None if each.units is None else list(each.units)}
            for name, each in places.items()
        },
        "batch_tokens": tokens,
        "window": window,
        "versions": dict(explained.record.versions),
    }  # fmt: skip


def model_facts(
    explained: Explained, processor: Any, target: TargetLike, labels: Sequence[str] | None, function: str
) -> dict[str, Any]:
    """The model, its rules, its processor and what is explained, as plain values."""
    record = explained.record
    return {
        "model_class": record.model_class,
        "checkpoint": str(getattr(explained.config, "name_or_path", "") or ""),
        "weights": weights_hash(explained),
        "table": record.table_name,
        "rules": rules_hash(explained),
        "form": record.form,
        "processor": processor_hash(processor, function),
        "target": said_target(target),
        "labels": None if labels is None else content_hash(list(labels)),
    }


def check_counts(function: str, **counts: int) -> None:
    """Raises InputError for a count that is no whole number of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{function}: {name} must be a whole number of at least 1, got {count!r}")


def places_in(header: Mapping[str, Any]) -> dict[str, PlaceHeader]:
    """The places of a header."""
    return {
        name: PlaceHeader(
            each["node"], tuple(each["axes"]), each["count"], None if each["units"] is None else tuple(each["units"])
        )
        for name, each in header["places"].items()
    }


def check_target(target: Any, function: str) -> None:
    """Raises InputError for a list: the number of samples is not known."""
    if is_list(target):
        raise InputError(
            f"{function}: one target is for all samples, and a list of them has no meaning here; got {target!r}"
        )
