"""What the name of a writer or a reader says: which part of the network it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lxt_fx.inside.circuits.network import EMBEDDING, LOGITS

Kind = Literal["embedding", "head", "mlp", "logits", "features", "other"]

_NAME = re.compile(r"(?P<place>[^:]*)(?::(?P<unit>\d+))?")
_LAYER = re.compile(r"\.(\d+)(?:\.|$)")

BRANCHES = {"queries": "q", "keys": "k", "values": "v"}
"""What a head reads, and its short name."""


@dataclass(frozen=True, slots=True)
class PartName:
    """A writer or reader by its name: its kind, layer (None of embedding and logits), the index of its head or feature
    (None of others), and `branch` of a reader of a head: q, k or v; "" of others."""

    kind: Kind
    layer: int | None = None
    unit: int | None = None
    branch: str = ""

    @property
    def short(self) -> str:
        """The name in a picture: `3.5` is head 5 of layer 3, `m3` its MLP."""
        if self.kind == "head":
            return f"{self.layer}.{self.unit}"
        if self.kind == "mlp":
            return f"m{self.layer}"
        return {"features": f"f{self.unit}", "embedding": "embedding", "logits": "logits"}.get(self.kind, f"{self.layer}")


def part_named(name: str) -> PartName:
    """What a name of `CircuitScores` says."""
    if name in (EMBEDDING, LOGITS):
        return PartName("embedding" if name == EMBEDDING else "logits")
    found, layer = _NAME.fullmatch(name), _LAYER.search(name)
    place, unit = ("", None) if found is None else (found["place"], found["unit"])
    words = place.split(".")
    index = None if unit is None else int(unit)
    at = None if layer is None else int(layer[1])
    if words[-1] == "features" or "features" in words:
        return PartName("features", at, index)
    if words[0] == "attention" and index is not None:
        return PartName("head", at, index, BRANCHES.get(words[-1], ""))
    return PartName("mlp" if words[0] == "mlp" and len(words) == 3 else "other", at, index)


def layers_and_heads(names: Iterable[str]) -> tuple[int, int]:
    """How many layers the network of these parts has, and how many heads each at most."""
    parts = [part_named(name) for name in names]
    layers = 1 + max((part.layer for part in parts if part.layer is not None), default=-1)
    heads = 1 + max((part.unit for part in parts if part.kind == "head" and part.unit is not None), default=-1)
    return layers, heads


def made_of(feeds: Iterable[tuple[str, str]]) -> Mapping[str, tuple[str, ...]]:
    """The writers that are computed of each reader. Of the logits nothing is."""
    found: dict[str, tuple[str, ...]] = {}
    for reader, writer in feeds:
        found[reader] = (*found.get(reader, ()), writer)
    return found
