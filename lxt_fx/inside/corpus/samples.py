"""The samples of a corpus, one after another: from a file of JSON lines, a parquet file, or anything that can be iterated.

A sample that cannot be read is not lost: it comes with the reason, and the pass writes it down.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.inside.corpus.fingerprint import content_hash

KEYS, TEXTS, PICTURES = ("key", "id"), ("text", "messages"), ("image", "images")
"""The fields of a sample that is a dict: its key, a text or a chat, a picture. The first that is there counts."""

ENDINGS = (".jsonl", ".ndjson", ".parquet")
LINES = 256
"""How many samples of a parquet file are read at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One sample: `value` as `explain` takes it, or the `reason` why it is none. `key` names it in the result; it is its
    own (`key` or `id`, or the field that is asked for), else its place in the file, else a hash of its content. `content`
    is this hash in any case, so that another sample of the same key is known. `number` is its place in the corpus."""

    number: int
    key: str
    value: Any
    reason: str = ""
    content: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which field of a sample is read, and which is its key; None for those of `TEXTS`, `PICTURES` and `KEYS`."""

    value: str | None = None
    key: str | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that may hold the key."""
        return KEYS if self.key is None else (self.key,)


def samples_of(samples: Any, fields: Fields, function: str, place: str | None = None) -> Iterator[Sample]:
    """The samples of a file (`.jsonl`, `.parquet`), or of an iterable of texts, chats, pictures, paths of pictures and
    dicts. Of a dict `fields` are read. `place` is what a sample of a file without a key is named by, with its line: by
    default the path.

    Raises InputError for a file that is not there, is empty, is no text, or lacks the column; and for what cannot be
    iterated.
    """
    if isinstance(samples, (str, Path)):
        return _of_file(Path(samples), fields, function, str(samples) if place is None else place)
    if isinstance(samples, Mapping) or not isinstance(samples, Iterable):
        raise InputError(
            f"{function}: samples are a path (.jsonl or .parquet), or an iterable of texts, pictures or dicts; got a "
            f"{type(samples).__name__}"
        )
    return (_sample(number, found, None, fields) for number, found in enumerate(samples))


def _of_file(path: Path, fields: Fields, function: str, place: str) -> Iterator[Sample]:
    if path.suffix not in ENDINGS:
        raise InputError(
            f"{function}: {str(path)!r} is no file of samples, which ends in {', '.join(ENDINGS)}; texts are given as a "
            "list, paths of pictures too"
        )
    if not path.is_file():
        raise InputError(f"{function}: there is no file {str(path)!r}")
    if path.stat().st_size == 0:
        raise InputError(f"{function}: {str(path)!r} is empty, so there are no samples")
    read = _of_parquet if path.suffix == ".parquet" else _of_lines
    return read(path, fields, function, place)


def _of_lines(path: Path, fields: Fields, function: str, place: str) -> Iterator[Sample]:
    number = 0
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            key = f"{place}:{line}"
            try:
                found = json.loads(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                if number == 0:
                    raise InputError(
                        f"{function}: {str(path)!r} is no text: line {line} is not UTF-8 ({error.reason})"
                    ) from error
                yield Sample(number, key, None, f"not UTF-8: {error.reason}")
            except (ValueError, RecursionError) as error:
                yield Sample(number, key, None, f"no JSON: {error}")
            else:
                yield _sample(number, found, key, fields)
            number += 1
    if number == 0:
        raise InputError(f"{function}: {str(path)!r} has only empty lines, so there are no samples")


def _of_parquet(path: Path, fields: Fields, function: str, place: str) -> Iterator[Sample]:
    pyarrow = needs_pyarrow(function)
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            known = (*TEXTS, *PICTURES) if fields.value is None else (fields.value,)
            wanted = [name for name in known if name in columns]
            if not wanted or fields.key is not None and fields.key not in columns:
                lacks, option = (" or ".join(known), "field") if not wanted else (fields.key, "key")
                raise InputError(
                    f"{function}: {str(path)!r} has no column {lacks}; it has {', '.join(columns[:12])}; give {option}=..."
                )
            if file.metadata.num_rows == 0:
                raise InputError(f"{function}: {str(path)!r} has no lines, so there are no samples")
            read = [name for name in dict.fromkeys((*fields.keys, *wanted)) if name in columns]
            lines = (line for batch in file.iter_batches(LINES, columns=read) for line in batch.to_pylist())
            for number, line in enumerate(lines):
                yield _sample(number, line, f"{place}:{number}", fields)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{function}: {str(path)!r} cannot be read: {str(error).splitlines()[0]}") from error


def needs_pyarrow(function: str) -> Any:
    """The module pyarrow. Raises InputError if it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise InputError(f"{function}: needs pyarrow; pip install 'lxt_fx[parquet]'") from error
    return pyarrow


def _sample(number: int, found: Any, key: str | None, fields: Fields) -> Sample:
    value, reason, given = found, "", None
    if isinstance(found, Mapping) and not _is_message(found):
        given = next((found[name] for name in fields.keys if found.get(name) is not None), None)
        key = key if given is None else str(given)
        value, reason = _of_fields(found, fields.value)
    if fields.key is not None and given is None and not reason:
        reason = f"no key {fields.key!r}"
    if not reason and (value is None or isinstance(value, str) and not value.strip()):
        reason = "empty"
    if isinstance(value, Mapping) and set(value) <= {"bytes", "path"}:
        value, reason = _encoded_picture(value)
    content = content_hash(found if value is None else value)
    if key is None:
        key = str(value) if isinstance(value, Path) else content
    return Sample(number, key, value, reason, content)


def _is_message(found: Mapping[str, Any]) -> bool:
    return "role" in found and "content" in found


def _of_fields(found: Mapping[str, Any], field: str | None) -> tuple[Any, str]:
    """The value of a dict, or why it has none. A picture with a text stays a dict."""
    has = ", ".join(map(str, list(found)[:12])) or "nothing"
    if field is not None:
        return (found[field], "") if field in found else (None, f"no field {field!r}; it has {has}")
    text, picture = (next((n for n in names if n in found), None) for names in (TEXTS, PICTURES))
    if text is not None and picture is not None:
        return {text: found[text], picture: found[picture]}, ""
    only = text or picture
    if only is not None:
        return found[only], ""
    sound = {name: found[name] for name in ("audio", "array", "sampling_rate", "path") if name in found}
    return (sound, "") if sound else (None, f"no field {', '.join((*TEXTS, *PICTURES))}; it has {has}")


def _encoded_picture(found: Mapping[str, Any]) -> tuple[Any, str]:
    """A picture as data sets have it: the bytes of a file, or its path."""
    if found.get("bytes") is None:
        return (Path(found["path"]), "") if found.get("path") else (None, "a picture without bytes and path")
    try:
        from PIL import Image

        with Image.open(BytesIO(found["bytes"])) as picture:
            picture.load()
            return picture.copy(), ""
    except Exception as error:  # whatever pillow raises for bytes that are no picture
        return None, f"no picture: {type(error).__name__}: {error}"
