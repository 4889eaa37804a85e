"""Latent relevance as a person reads it in a terminal: one line for each layer, one column for each kind of place."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lxt_fx.results.origin import ExplainedNumber

_LAYER = re.compile(r"\.(\d+)(?=\.|$)")


class Unit(Protocol):
    """One unit of a place (`TopUnit`)."""

    @property
    def place(self) -> str: ...

    @property
    def unit(self) -> int: ...

    @property
    def relevance(self) -> float: ...

    @property
    def activation(self) -> float: ...

    @property
    def position(self) -> int: ...

    @property
    def token(self) -> str: ...


def latent_view(number: ExplainedNumber, totals: Mapping[str, float], examples: int, targets: int) -> RenderableType:
    """What was explained, and the relevance of each place, summed; and how many examples and targets there are beside this
    one."""
    layers: dict[int, dict[str, float]] = {}
    for name, total in totals.items():
        layer, kind = _layer_and_kind(name)
        layers.setdefault(layer, {})[kind] = total
    kinds = list(dict.fromkeys(kind for found in layers.values() for kind in found))
    table = Table("layer", *kinds, title="relevance, summed over tokens and units", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for layer, found in sorted(layers.items()):
        cells = (f"{found[kind]:+.3g}" if kind in found else "" for kind in kinds)
        table.add_row("" if layer < 0 else str(layer), *cells)
    parts: list[RenderableType] = [Text(f"{number.said}: {number.value:.4g}", style="bold"), table]
    if examples * targets > 1:
        parts.append(Text(f"the first of {examples * targets}: {examples} examples, {targets} targets"))
    return Group(*parts)


def units_view(units: Sequence[Unit]) -> RenderableType:
    """Units with their relevance, and the activation at the token where they count most."""
    table = Table("place", "unit", "relevance", "activation", "token")
    for each in units:
        numbers = str(each.unit), f"{each.relevance:+.4g}", f"{each.activation:.4g}"
        token = f"{each.token!r} ({each.position})" if each.token else f"({each.position})"
        table.add_row(each.place, *numbers, Text(token))
    return table


def _layer_and_kind(name: str) -> tuple[int, str]:
    """The number of the layer that a place is in, -1 if its name has none, and the name without it."""
    found = _LAYER.search(name)
    return (-1, name) if found is None else (int(found[1]), name[: found.start()] + name[found.end() :])
