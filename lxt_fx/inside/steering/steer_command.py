"""What `lxt-fx explain --steer` reads and shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.base.errors import InputError
from lxt_fx.base.transformers_internals import exact_text
from lxt_fx.compiler.explained import Explained
from lxt_fx.inside.steering.edits import Edit, clamp

_WRITTEN = re.compile(r"(?P<place>[^:=]+)(?::(?P<units>\d+(?:,\d+)*))?=(?P<value>[-+0-9.eE]+)")
COUNT = 5
"""Answers that are shown."""


def read_steering(written: Sequence[str]) -> dict[str, list[Edit]]:
    """Edits as they are written on the command line: `mlp.11.neurons:17,512=0` sets two neurons to 0, `mlp.11.neurons=0`
    all of them. Raises InputError for anything else."""
    found: dict[str, list[Edit]] = {}
    for one in written:
        match = _WRITTEN.fullmatch(one.strip())
        try:
            number = float(match["value"]) if match is not None else None
        except ValueError:
            number = None
        if match is None or number is None:
            raise InputError(f"--steer: write PLACE:UNIT,UNIT=VALUE, such as mlp.11.neurons:17,512=0, not {one!r}")
        units = None if match["units"] is None else [int(unit) for unit in match["units"].split(",")]
        found.setdefault(match["place"], []).append(clamp(number, units))
    return found


def answers(explained: Explained, inputs: Mapping[str, Any], tokenizer: Tokenizer, position: int | None) -> list[str]:
    """The most likely answers with their logits, in order: tokens at a position (without one: of the mask, else the last),
    or classes."""
    with torch.no_grad():
        logits: Tensor = explained(**inputs).logits[0]
    names: Mapping[int, str] = getattr(explained.config, "id2label", None) or {}
    if logits.dim() > 1:
        ids, mask = inputs["input_ids"][0].tolist(), getattr(tokenizer, "mask_token_id", None)
        at = position if position is not None else ids.index(mask) if mask in ids else -1
        names, logits = {}, logits[at]
    best = logits.topk(min(COUNT, len(logits)))
    found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    return [f"{names.get(index) or repr(exact_text(tokenizer, [index]))} {value:.2f}" for value, index in found]


def before_and_after(before: Sequence[str], after: Sequence[str]) -> Table:
    """Both answers side by side."""
    table = Table("", "before", "steered", box=None, pad_edge=False)
    for place, (one, other) in enumerate(zip(before, after, strict=True), start=1):
        table.add_row(str(place), one, other)
    return table
