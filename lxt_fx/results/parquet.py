"""Many explanations in one parquet file: one line for each, with the columns of `to_dict`, so that other programs can read
it too."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.base.saved_json import MOST, Saved

TEXTS = ("part", "kind", "dtype", "text")
WHOLE = ("answer_tokens", "rate", "patch", "side")
TENSORS = ("shown", "pixel_values", "waveform", "units")
MAPS = ("versions", "reached", "took")


def write_parquet(rows: Iterable[Mapping[str, Any]], path: str | Path) -> None:
    """Writes plain explanations, whose tensors are raw. Raises InputError if pyarrow is not installed."""
    pyarrow = _pyarrow("save")
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist([_flat(row) for row in rows], schema=_schema(pyarrow))
    parquet.write_table(table, path, compression="zstd")


def read_parquet(path: str | Path) -> Iterator[Saved]:
    """The plain explanations of a file. Raises InputError for a file of another kind."""
    pyarrow = _pyarrow("load")
    from pyarrow import parquet

    source = f"Explanations.load: {Path(path).name}"
    try:
        count = parquet.read_metadata(path).num_rows
        if count > MOST:
            raise InputError(f"{source}: has {count} explanations; {MOST} is the most")
        table = parquet.read_table(path)
        wanted = _schema(pyarrow)
        if set(table.column_names) != set(wanted.names):
            raise InputError(
                f"{source}: has the columns {table.column_names[:12]}, and is no file that Explanations.save wrote"
            )
        rows = table.select(wanted.names).cast(wanted).to_pylist()
    except pyarrow.ArrowException as error:
        raise InputError(f"{source}: cannot be read as explanations: {str(error).splitlines()[0]}") from error
    top = Saved(rows, source)
    for at, row in enumerate(rows):
        yield Saved(_nested(row), source, top, at)


def _pyarrow(function: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(f"Explanations.{function}: needs pyarrow; pip install 'lxt_fx[parquet]'") from error
    return pyarrow


def part_fields(pa: Any, relevance: Any) -> dict[str, Any]:
    """The columns of a part of an explanation, with relevance in this type of pyarrow."""
    texts, whole = pa.list_(pa.string()), pa.list_(pa.int64())
    tensor = pa.struct({"shape": whole, "dtype": pa.string(), "data": pa.large_binary()})
    part = {name: pa.string() for name in TEXTS} | {name: pa.int64() for name in WHOLE} | dict.fromkeys(TENSORS, tensor)
    part |= {"axes": texts, "tokens": texts, "names": texts, "relevance": pa.list_(relevance), "shape": whole}
    part |= {"input_ids": whole, "segments": whole, "special": pa.list_(pa.bool_()), "spans": pa.list_(whole)}
    return part | {"step": pa.float64(), "start": pa.float64()}


def _schema(pa: Any) -> Any:
    texts, floats = pa.list_(pa.string()), pa.list_(pa.float64())
    numbers, part = pa.map_(pa.string(), pa.float64()), part_fields(pa, pa.float64())
    account = {"value": pa.float64(), "reached": numbers, "took": numbers, "residual": pa.float64()}
    whole_row = {"format": pa.int64(), "explained": texts, "value": floats, "label": texts, "sum": floats}
    origin = {name: pa.string() for name in ("rules", "model_class", "checkpoint")}
    origin |= {"versions": pa.map_(pa.string(), pa.string()), "seconds": pa.float64()}
    further = {"further_parts": pa.list_(pa.struct(part)), "account": pa.struct(account)}
    return pa.schema(whole_row | part | further | origin)


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """One line: relevance in one list with its shape, and lists of explained numbers, which may hold one."""
    found = dict(flat_part(row))
    for key in ("explained", "value", "label", "sum"):
        found[key] = row[key] if isinstance(row[key], list) else [row[key]]
    found["further_parts"] = [flat_part(part) for part in row["further_parts"]]
    return found


def flat_part(part: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of one part: relevance in one list, with its shape."""
    values, shape = part["relevance"], list[int]()
    for _ in part["axes"]:
        shape.append(len(values))
        values = values[0]
    return {**part, "relevance": list(_leaves(part["relevance"], len(shape))), "shape": shape}


def _leaves(values: Sequence[Any], depth: int) -> Iterator[float]:
    for value in values:
        if depth == 1:
            yield value
        else:
            yield from _leaves(value, depth - 1)


def _nested(row: dict[str, Any]) -> dict[str, Any]:
    """Maps come back as lists of pairs."""
    account = row["account"]
    if account is not None:
        account |= {key: dict(account[key] or ()) for key in MAPS[1:]}
    return row | {"versions": dict(row["versions"] or ())}
