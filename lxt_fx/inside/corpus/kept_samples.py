"""The samples that a unit has among its largest, as a result shows them: tokens or picture, and what was explained."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.inputs.given import Example
from lxt_fx.inputs.places import ImagePlace, TextPlace
from lxt_fx.inside.corpus.samples import Sample, needs_pyarrow
from lxt_fx.tasks.task import Number
from lxt_fx.views.panels import Panel


@dataclass(frozen=True, slots=True, eq=False)
class KeptSample:
    """A sample of a result. `source` is the sample itself as JSON, empty where it is a picture in memory. `texts` are its
    tokens by the name of the input, `picture` what the model saw as a PNG file, with the side of its patches in pixels.
    `said`, `label` and `value` are the number that was explained."""

    number: int
    key: str
    source: str
    texts: dict[str, tuple[str, ...]]
    picture: bytes | None
    size: tuple[int, int]
    patch: int
    said: str
    label: str
    value: float


def kept_sample(sample: Sample, example: Example, number: Number) -> KeptSample:
    """The sample as it is kept, from the call that explained it."""
    texts, picture, size, patch = dict[str, tuple[str, ...]](), None, (0, 0), 0
    for place in example.places:
        if isinstance(place, TextPlace):
            texts[place.leaf] = own_tokens(place)
        elif isinstance(place, ImagePlace) and picture is None:
            shown = place.reading.shown
            picture, size, patch = Panel("", shown).png(), (shown.shape[0], shown.shape[1]), place.reading.patch
    value = float(number.value.detach())
    return KeptSample(
        sample.number, sample.key, _source(sample.value), texts, picture, size, patch, number.said, number.label, value
    )


def own_tokens(place: TextPlace) -> tuple[str, ...]:
    """The tokens of a text without padding, those too in whose place a picture is put."""
    if place.columns == place.own or place.ids is None:
        return place.reading.tokens
    return readable_tokens(place.tokenizer, [int(place.ids[column]) for column in place.own])


def _source(value: Any) -> str:
    """The sample as JSON, so that it can be read again; empty if it is none."""
    try:
        return json.dumps({"path": str(value)} if isinstance(value, Path) else {"value": value}, ensure_ascii=False)
    except (TypeError, ValueError):
        return ""


def value_of(source: str) -> Any:
    """The sample that a source is of; None for an empty one."""
    found = json.loads(source) if source else {}
    return Path(found["path"]) if "path" in found else found.get("value")


def write_samples(samples: Iterable[KeptSample], path: Path) -> None:
    """A parquet file with a line for each sample."""
    pa = needs_pyarrow("corpus")
    from pyarrow import parquet

    with parquet.ParquetWriter(path, _schema(pa), compression="zstd") as file:
        for group in _groups(samples, 256):
            file.write_table(pa.Table.from_pylist([_line(sample) for sample in group], schema=_schema(pa)))


def read_samples(path: Path, numbers: Tensor | None = None) -> Iterator[KeptSample]:
    """The samples of a file, in order; only those with these sorted numbers if they are given."""
    needs_pyarrow("corpus")
    from pyarrow import parquet

    wanted = None if numbers is None else set(numbers.tolist())
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(256):
            for line in batch.to_pylist():
                if wanted is None or line["number"] in wanted:
                    yield _sample(line)


def _groups(samples: Iterable[KeptSample], size: int) -> Iterator[list[KeptSample]]:
    group: list[KeptSample] = []
    for sample in samples:
        group.append(sample)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


def _schema(pa: Any) -> Any:
    text = pa.struct({"leaf": pa.string(), "tokens": pa.list_(pa.string())})
    fields: dict[str, Any] = {"number": pa.int64(), "key": pa.string(), "source": pa.large_string()}
    fields |= {"texts": pa.list_(text), "picture": pa.large_binary(), "size": pa.list_(pa.int64()), "patch": pa.int64()}
    return pa.schema(fields | {"said": pa.string(), "label": pa.string(), "value": pa.float64()})


def _line(sample: KeptSample) -> dict[str, Any]:
    texts = [{"leaf": leaf, "tokens": list(tokens)} for leaf, tokens in sample.texts.items()]
    found = {
        name: getattr(sample, name) for name in ("number", "key", "source", "picture", "patch", "said", "label", "value")
    }
    return {**found, "texts": texts, "size": list(sample.size)}


def _sample(line: dict[str, Any]) -> KeptSample:
    texts = {text["leaf"]: tuple(text["tokens"]) for text in line["texts"]}
    height, width = line["size"]
    return KeptSample(**{**line, "texts": texts, "size": (height, width)})


def pixels_of(png: bytes) -> Tensor:
    """The picture [height, width, 3] of 8 bits of a file that `Panel.png` wrote."""
    at, data, size = 8, b"", (0, 0)
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        chunk = png[at + 8 : at + 8 + length]
        size = struct.unpack(">II", chunk[:8]) if kind == b"IHDR" else size
        data += chunk if kind == b"IDAT" else b""
        at += 12 + length
    width, height = size
    lines = torch.frombuffer(bytearray(zlib.decompress(data)), dtype=torch.uint8).reshape(height, 1 + 3 * width)
    return lines[:, 1:].reshape(height, width, 3).clone()
