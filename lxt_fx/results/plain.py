"""An explanation as plain values, and back: the one layout that JSON and parquet files share.

The first part and the explained number stand at the top level (`tokens`, `relevance`, `explained`, `value`), further parts
in `further_parts`. Whatever is read back is checked.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.base.saved_json import Saved
from lxt_fx.results.account import Account
from lxt_fx.results.origin import ExplainedNumber, Origin
from lxt_fx.results.part import Part
from lxt_fx.results.readings import ImageReading, NumbersReading, Reading, SoundReading, TextReading

FORMAT = 1
LARGEST = 2**32
"""The most bytes of one tensor."""

FLOATS = {"float32": torch.float32, "float64": torch.float64}
DTYPES = FLOATS | {
    "uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "float16": torch.float16, "bfloat16": torch.bfloat16,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}

Found = tuple[tuple[Part, ...], tuple[ExplainedNumber, ...], Origin, Account | None]


def to_plain(
    parts: Sequence[Part],
    numbers: Sequence[ExplainedNumber],
    origin: Origin,
    account: Account | None,
    pack: Callable[[Tensor], Any],
    *,
    units: bool,
) -> dict[str, Any]:
    """Plain values of an explanation. Relevance is written as lists; `pack` writes pictures, sounds and units."""

    def listed(values: list[Any]) -> Any:
        return values if parts[0].several else values[0]

    total = sum(part.by_number().flatten(1).double().sum(1) for part in parts)
    assert isinstance(total, Tensor)
    return {
        "format": FORMAT,
        "explained": listed([number.said for number in numbers]),
        "value": listed([number.value for number in numbers]),
        "label": listed([number.label for number in numbers]),
        "sum": listed(total.tolist()),
        **_part(parts[0], pack, units),
        "further_parts": [_part(part, pack, units) for part in parts[1:]],
        "rules": origin.table_name,
        "model_class": origin.model_class,
        "checkpoint": origin.checkpoint,
        "versions": dict(origin.versions),
        "seconds": origin.seconds,
        "account": account and {
            "value": account.value,
            "reached": dict(account.reached),
            "took": dict(account.took),
            "residual": account.residual,
        },
    }  # fmt: skip


def from_plain(saved: Saved) -> Found:
    """The parts, numbers, origin and accounts. Raises InputError that names the place of a value that cannot be used."""
    if (version := saved.item("format").whole()) != FORMAT:
        saved.fail(f"has format {version}, and this version of lxt_fx reads {FORMAT}; explain again")
    parts = tuple(_read_part(part) for part in (saved, *saved.item("further_parts").parts()))
    columns = [_one_or_list(saved.item(key)) for key in ("explained", "value", "label")]
    if len({len(column) for column in columns}) > 1:
        saved.fail("explained, value and label have not as many items as one another")
    numbers = tuple(ExplainedNumber(s.text(), v.number(), n.text()) for s, v, n in zip(*columns, strict=True))
    versions = {name: version.text() for name, version in saved.item("versions").entries().items()}
    made = [saved.item(key).text() for key in ("rules", "model_class", "checkpoint")]
    origin = Origin(made[0], made[1], made[2], versions, saved.item("seconds").number())
    account = saved.maybe("account")
    return parts, numbers, origin, None if account is None else _read_account(account)


def packed(tensor: Tensor) -> dict[str, Any]:
    """A tensor for JSON: its bytes compressed, in base64."""
    found = raw(tensor)
    return found | {"data": base64.b64encode(zlib.compress(found["data"])).decode("ascii")}


def raw(tensor: Tensor) -> dict[str, Any]:
    """A tensor as its shape, dtype and bytes."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
    return {"shape": list(tensor.shape), "dtype": NAMES[tensor.dtype], "data": data.numpy().tobytes()}


def _part(part: Part, pack: Callable[[Tensor], Any], units: bool) -> dict[str, Any]:
    found = {
        "part": part.name,
        "kind": part.kind,
        "axes": list(part.axes),
        **_reading(part.reading, pack),
        "dtype": NAMES[part.values.dtype],
        "relevance": part.values.tolist(),
    }
    return found | ({"units": pack(part.units)} if units and part.units is not None else {})


def _reading(reading: Reading, pack: Callable[[Tensor], Any]) -> dict[str, Any]:
    if isinstance(reading, TextReading):
        return {
            "tokens": list(reading.tokens),
            "input_ids": reading.ids and list(reading.ids),
            "special": list(reading.special),
            "segments": list(reading.segments),
            "answer_tokens": reading.answer,
            "text": reading.text,
            "spans": reading.spans and [list(span) for span in reading.spans],
        }
    if isinstance(reading, ImageReading):
        pixels = None if reading.pixel_values is None else pack(reading.pixel_values)
        return {"patch": reading.patch, "side": reading.side, "shown": pack(reading.shown), "pixel_values": pixels}
    if isinstance(reading, SoundReading):
        wave = None if reading.waveform is None else pack(reading.waveform)
        return {"step": reading.step, "start": reading.start, "rate": reading.rate, "waveform": wave}
    return {"names": list(reading.names)}


def _read_part(saved: Saved) -> Part:
    axes = saved.item("axes").texts()
    values = _values(saved, axes)
    units = saved.maybe("units")
    reading = saved.item("kind").one_of(READERS)(saved)
    try:
        return Part(saved.item("part").text(), axes, values, reading, None if units is None else _tensor(units))
    except InputError as error:
        saved.fail(f"cannot be used: {error}")


def _values(saved: Saved, axes: Sequence[str]) -> Tensor:
    """The relevance: nested lists, or one list with its `shape` beside it."""
    dtype = saved.item("dtype").one_of(FLOATS)
    shape = saved.maybe("shape")
    if shape is not None:
        sizes = [size.whole(0) for size in shape.parts(64)]
        flat = torch.tensor(_floats(saved.item("relevance"), 1), dtype=dtype)
        if flat.numel() != _count(sizes):
            shape.fail(f"is {sizes}, and relevance has {flat.numel()} numbers")
        return flat.reshape(sizes)
    if not 1 <= len(axes) <= 8:
        saved.item("axes").fail(f"has {len(axes)} names; 1 to 8 are known")
    try:
        return torch.tensor(_floats(saved.item("relevance"), len(axes)), dtype=dtype)
    except ValueError:
        saved.item("relevance").fail("has lists of several lengths")


def _floats(saved: Saved, depth: int) -> list[Any]:
    """Numbers in lists of this depth."""
    parts = saved.value if depth == 1 and isinstance(saved.value, list) else saved.parts()
    if depth > 1:
        return [_floats(part, depth - 1) for part in parts]
    wrong = next((at for at, number in enumerate(parts) if type(number) is not float), None)
    if wrong is None:
        return list(parts)
    return [part.number() for part in saved.parts()]


def _tensor(saved: Saved) -> Tensor:
    dtype = saved.item("dtype").one_of(DTYPES)
    shape = [size.whole(0) for size in saved.item("shape").parts(64)]
    size = _count(shape) * dtype.itemsize
    if size > LARGEST:
        saved.item("shape").fail(f"holds {size} bytes; {LARGEST} is the most")
    data = saved.item("data")
    found = data.value if isinstance(data.value, bytes) else _unpacked(data, size)
    if len(found) != size:
        data.fail(f"holds {len(found)} bytes, and the shape {size}")
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(found), dtype=dtype).reshape(shape)


def _unpacked(saved: Saved, size: int) -> bytes:
    """At most `size` + 1 bytes, whatever the file says."""
    try:
        return zlib.decompressobj().decompress(base64.b64decode(saved.exact_text(), validate=True), size + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        saved.fail(f"is not compressed data in base64: {error}")


def _count(shape: Sequence[int]) -> int:
    found = 1
    for size in shape:
        found *= size
    return found


def _read_text(saved: Saved) -> TextReading:
    ids, text, spans = saved.maybe("input_ids"), saved.maybe("text"), saved.maybe("spans")
    return TextReading(
        tokens=saved.item("tokens").texts(),
        ids=None if ids is None else tuple(item.whole(0) for item in ids.parts()),
        special=tuple(item.flag() for item in saved.item("special").parts()),
        segments=tuple(item.whole(0) for item in saved.item("segments").parts()),
        answer=saved.item("answer_tokens").whole(0),
        text=None if text is None else text.exact_text(),
        spans=None if spans is None else tuple(_span(item) for item in spans.parts()),
    )


def _span(saved: Saved) -> tuple[int, int]:
    pair = [item.whole(0) for item in saved.parts(2)]
    if len(pair) != 2:
        saved.fail("must be a start and an end")
    return pair[0], pair[1]


def _read_image(saved: Saved) -> ImageReading:
    shown, pixels = _tensor(saved.item("shown")), saved.maybe("pixel_values")
    if shown.dtype != torch.uint8 or shown.dim() != 3 or shown.shape[2] != 3:
        saved.item("shown").fail(
            f"is a tensor {list(shown.shape)} of {shown.dtype}, not a picture [height, width, 3] of uint8"
        )
    values = None if pixels is None else _tensor(pixels)
    return ImageReading(shown, saved.item("patch").whole(1, 2**31), saved.item("side").whole(1, 2**31), values)


def _read_sound(saved: Saved) -> SoundReading:
    rate, wave = saved.maybe("rate"), saved.maybe("waveform")
    step = saved.item("step").number()
    if not step > 0:
        saved.item("step").fail(f"is {step}; it must be more than 0")
    return SoundReading(
        step, None if wave is None else _tensor(wave), None if rate is None else rate.whole(1), saved.item("start").number()
    )


def _read_numbers(saved: Saved) -> NumbersReading:
    return NumbersReading(saved.item("names").texts())


READERS: Mapping[str, Callable[[Saved], Reading]] = {
    "text": _read_text, "image": _read_image, "sound": _read_sound, "numbers": _read_numbers,
}  # fmt: skip


def _one_or_list(saved: Saved) -> list[Saved]:
    return saved.parts() if isinstance(saved.value, list) else [saved]


def _read_account(saved: Saved) -> Account:
    reached, took = (
        {name: amount.number() for name, amount in saved.item(key).entries().items()} for key in ("reached", "took")
    )
    return Account(saved.item("value").number(), reached, took, saved.item("residual").number())
