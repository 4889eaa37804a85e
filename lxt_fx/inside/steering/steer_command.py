"""What `lxt-fx explain --steer` reads and shows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.table import Table

from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target_entry import Reading, logits_of
from lxt_fx.base.errors import InputError
from lxt_fx.base.transformers_internals import exact_text
from lxt_fx.compiler.explained import Explained
from lxt_fx.inputs.given import Example
from lxt_fx.inside.steering.edits import Edit, clamp
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.explained_call import flat_inputs
from lxt_fx.tasks.task import Context
from lxt_fx.tasks.token_logits import TokenLogits

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
    """The most likely answers with their logits, in order: tokens or tags where `explain` reads a target at this position
    (None: its default), or classes. Raises InputError for a position that the text does not have, and without logits."""
    reading = Reading.of("explain", explained, None)
    with torch.no_grad():
        logits = logits_of(reading, explained(**inputs))
    own, of_tokens = logits[0], logits.dim() == 3 and not reading.tags
    if logits.dim() == 3:
        context = Context(reading, explained.config, flat_inputs(inputs), tokenizer)
        spot = TokenLogits("steered").spot(Asked(spot=position), 0, Example(()), context)
        own = own[spot.place(logits.shape[1], context)]
    best = own.topk(min(COUNT, len(own)))
    names = [
        repr(exact_text(tokenizer, [index])) if of_tokens else dict(enumerate(reading.labels)).get(index, str(index))
        for index in best.indices.tolist()
    ]
    return [f"{name} {value:.2f}" for name, value in zip(names, best.values.tolist(), strict=True)]


def before_and_after(before: Sequence[str], after: Sequence[str]) -> Table:
    """Both answers side by side."""
    table = Table("", "before", "steered", box=None, pad_edge=False)
    for place, (one, other) in enumerate(zip(before, after, strict=True), start=1):
        table.add_row(str(place), one, other)
    return table
