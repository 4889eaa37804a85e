"""Latent relevance as a person reads it in a terminal: one line for each layer, one column for each kind of place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from lxt_fx.inside.latent_result import Latent

_LAYER = re.compile(r"\.(\d+)(?=\.|$)")


def latent_view(latent: Latent) -> Iterator[RenderableType]:
    """What was explained, and the relevance of each place, summed, for the first target of the first example."""
    number = latent.numbers()[0]
    yield Text(f"{number.said}: {number.value:.4g}")
    layers: dict[int, dict[str, float]] = {}
    for name in latent:
        layer, kind = _layer_and_kind(name)
        layers.setdefault(layer, {})[kind] = latent.total(name)
    kinds = list(dict.fromkeys(kind for found in layers.values() for kind in found))
    table = Table("layer", *kinds, title="relevance, summed over tokens and units", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for layer, found in sorted(layers.items()):
        cells = (f"{found[kind]:+.3g}" if kind in found else "" for kind in kinds)
        table.add_row("" if layer < 0 else str(layer), *cells)
    yield table
    if more := len(latent.explanations) * len(latent.numbers()) - 1:
        yield Text(f"the first of {more + 1}: {len(latent.explanations)} examples, {len(latent.numbers())} targets")


def _layer_and_kind(name: str) -> tuple[int, str]:
    """The number of the layer that a place is in, -1 if its name has none, and the name without it."""
    found = _LAYER.search(name)
    return (-1, name) if found is None else (int(found[1]), name[: found.start()] + name[found.end() :])
