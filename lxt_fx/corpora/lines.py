"""One line of an explained corpus: a sample's explanation as columns of parquet, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lxt_fx.base.saved_json import Saved
from lxt_fx.inside.latent_result import TopUnit
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.parquet import flat_part, part_fields
from lxt_fx.results.part import Part
from lxt_fx.results.plain import FORMAT, raw, to_plain
from lxt_fx.results.readings import ImageReading, SoundReading

FIRST = ("part", "kind", "axes", "shape", "tokens", "relevance")
"""The columns of an explanation's first input that stand alone; all others are in `reading`."""

LEFT_OUT = ("pixel_values", "waveform", "units")
"""Columns of a part that are large, and not written."""

UNIT = ("place", "unit", "relevance", "activation", "position", "token")


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """What was found of one sample. `answer` is what the model says where the target asks, `units` the strongest ones
    inside, None where none were asked for."""

    number: int
    key: str
    content: str
    answer: str
    explanation: Explanation
    units: tuple[TopUnit, ...] | None = None


def line_schema(pa: Any, wide: bool, units: bool) -> Any:
    """The columns of a part file. Relevance is float64 if it is `wide`, else float32."""
    part = part_fields(pa, pa.float64() if wide else pa.float32())
    part = {name: kind for name, kind in part.items() if name not in LEFT_OUT}
    fields = {"key": pa.string(), "number": pa.int64(), "content": pa.string(), "answer": pa.string()}
    fields |= {"explained": pa.string(), "label": pa.string(), "value": pa.float64(), "sum": pa.float64()}
    fields |= {name: part[name] for name in FIRST}
    fields |= {"reading": pa.struct({name: kind for name, kind in part.items() if name not in FIRST})}
    fields |= {"further_parts": pa.list_(pa.struct(part))}
    kinds = (pa.string(), pa.int64(), pa.float64(), pa.float64(), pa.int64(), pa.string())
    return pa.schema(fields | ({"units": pa.list_(pa.struct(dict(zip(UNIT, kinds, strict=True))))} if units else {}))


def columns_of(line: Line) -> dict[str, Any]:
    """The columns of a line as plain values."""
    slim = line.explanation
    slim = replace(slim, parts=tuple(map(_slim, slim.merge("patches").parts if _has_patches(slim) else slim.parts)))
    row = to_plain(slim.parts, slim.numbers, slim.origin, None, raw, units=False)
    part = flat_part(row)
    found = {name: getattr(line, name) for name in ("key", "number", "content", "answer")}
    found |= {name: row[name] for name in ("explained", "label", "value", "sum")}
    found |= {name: part.get(name) for name in FIRST} | {"reading": part}
    found["further_parts"] = [flat_part(each) for each in row["further_parts"]]
    if line.units is not None:
        found["units"] = [{name: getattr(unit, name) for name in UNIT} for unit in line.units]
    return found


def _has_patches(explanation: Explanation) -> bool:
    return any(isinstance(part.reading, ImageReading) and part.reading.patch > 1 for part in explanation.parts)


def _slim(part: Part) -> Part:
    """The part without what the model was given beside it: pixel values, a waveform."""
    if isinstance(part.reading, ImageReading):
        return replace(part, reading=replace(part.reading, pixel_values=None), units=None)
    if isinstance(part.reading, SoundReading):
        return replace(part, reading=replace(part.reading, waveform=None), units=None)
    return replace(part, units=None)


def explanation_in(columns: Mapping[str, Any], header: Mapping[str, Any], source: str) -> Explanation:
    """The explanation of a line, of a corpus with this header."""
    made = {
        "format": FORMAT,
        **columns["reading"],
        **{name: columns[name] for name in (*FIRST, "explained", "label", "value", "further_parts")},
        "rules": header["table"],
        "seconds": 0.0,
        **{name: header[name] for name in ("model_class", "checkpoint", "versions")},
    }
    return Explanation.read(Saved(made, source))


def units_in(columns: Mapping[str, Any]) -> Sequence[TopUnit]:
    """The units of a line."""
    return [TopUnit(*(each[name] for name in UNIT)) for each in columns["units"]]
