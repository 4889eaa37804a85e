"""An explanation as the lines of a data frame: one for each place of each part, for each explained number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lxt_fx.base.frames import pandas_for
from lxt_fx.results.origin import ExplainedNumber
from lxt_fx.results.part import Part
from lxt_fx.results.readings import NumbersReading, SoundReading, TextReading

if TYPE_CHECKING:
    from pandas import DataFrame

FIRST = ("example", "target", "part")
LAST = ("token", "name", "start", "end", "special", "segment", "answer", "relevance", "explained", "value")
"""The columns at the start and at the end; between them stand the axes. What no part has is left out."""


def data_frame(examples: Sequence[tuple[Sequence[Part], Sequence[ExplainedNumber]]], *, number_examples: bool) -> DataFrame:
    """The lines of several examples. Raises InputError if pandas is not installed."""
    pandas = pandas_for()
    frames = []
    for example, (parts, numbers) in enumerate(examples):
        for part in parts:
            columns = _columns(part, numbers)
            if number_examples:
                columns["example"] = example
            frames.append(pandas.DataFrame(columns))
    found = pandas.concat(frames, ignore_index=True) if frames else pandas.DataFrame(columns=[*FIRST, "relevance"])
    axes = [column for column in found.columns if column not in (*FIRST, *LAST)]
    return found[[column for column in (*FIRST, *axes, *LAST) if column in found.columns]]


def _columns(part: Part, numbers: Sequence[ExplainedNumber]) -> dict[str, Any]:
    """The columns of one part: places in order, and all of them for each number."""
    values, reading = part.by_number(), part.reading
    count, places = len(values), values[0].numel()
    index = torch.unravel_index(torch.arange(places), part.place_shape)
    one = {axis: at.tolist() for axis, at in zip(part.place_axes, index, strict=True)}
    if isinstance(reading, TextReading):
        one["token"] = list(reading.tokens)
        one |= _of_text(reading)
    elif isinstance(reading, SoundReading):
        steps = one[part.place_axes[0]]
        one["start"] = [reading.start + at * reading.step for at in steps]
        one["end"] = [reading.start + (at + 1) * reading.step for at in steps]
    elif isinstance(reading, NumbersReading) and reading.names:
        one["name"] = list(reading.names)
    columns: dict[str, Any] = {name: column * count for name, column in one.items()}
    columns |= {"target": [at for at in range(count) for _ in range(places)], "part": part.name}
    columns["relevance"] = values.flatten().tolist()
    columns["explained"] = [numbers[at].said for at in columns["target"]]
    columns["value"] = [numbers[at].value for at in columns["target"]]
    return columns


def _of_text(reading: TextReading) -> dict[str, Any]:
    """Where each token stands in the text as a person gave it, and what kind of token it is."""
    first = len(reading.tokens) - reading.answer
    found: dict[str, Any] = {
        "special": list(reading.special),
        "segment": list(reading.segments),
        "answer": [at >= first for at in range(len(reading.tokens))],
    }
    if reading.spans is not None:
        found |= {"start": [start for start, _ in reading.spans], "end": [end for _, end in reading.spans]}
    return found
