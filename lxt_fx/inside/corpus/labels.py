"""Labels of units, in a file that a person edits.

    ["mlp.3.neurons"]
    17 = "capital cities"
    203 = "what comes after a comma"

It is TOML: a place in quotes and brackets, below it one line for each unit. Comments stay when a label is set from Python.
"""

from __future__ import annotations

import json
import operator
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from lxt_fx.base.errors import InputError

FILE = "labels.toml"
_TABLE = re.compile(r"\s*\[(?P<name>[^\]]+)\]\s*(#.*)?$")
_UNIT = re.compile(r"\s*\"?(?P<unit>\d+)\"?\s*=")


class Labels(Mapping[tuple[str, int], str]):
    """The labels of a file, by place and unit. `labels["mlp.3.neurons", 17] = "capital cities"` writes one into the file,
    and `del` takes one out. The file is read again when it has changed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._read_at: tuple[int, int] | None = None
        self._found: dict[tuple[str, int], str] = {}

    def __getitem__(self, key: tuple[str, int]) -> str:
        return self._labels()[key]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._labels())

    def __len__(self) -> int:
        return len(self._labels())

    def __setitem__(self, key: tuple[str, int], label: str) -> None:
        place, unit = _key(key)
        if not isinstance(label, str) or not label.strip():
            raise InputError(f"labels: a label is a text, got {label!r}; del labels[place, unit] takes one out")
        self._write(place, unit, f"{unit} = {_text(label)}")

    def __delitem__(self, key: tuple[str, int]) -> None:
        self._labels()[key]  # a KeyError for what is not there
        self._write(*key, None)

    def __repr__(self) -> str:
        return f"Labels({str(self.path)!r}, {len(self)} labels)"

    def _labels(self) -> dict[tuple[str, int], str]:
        if not self.path.exists():
            return {}
        state = self.path.stat()
        if self._read_at != (state.st_mtime_ns, state.st_size):
            self._found = _parsed(self.path.read_bytes(), self.path)
            self._read_at = state.st_mtime_ns, state.st_size
        return self._found

    def _write(self, place: str, unit: int, line: str | None) -> None:
        """Replaces the line of a unit; where there is none, the last line of its place gets one behind it."""
        self._labels()  # an error for a file that cannot be read, before it is changed
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        start, stop, at = _where(lines, place, unit)
        if at is not None:
            lines[at : at + 1] = [] if line is None else [line]
        elif line is not None and start is None:
            lines += [*([""] if lines else []), f"[{_text(place)}]", line]
        elif line is not None:
            lines.insert(stop, line)
        written = "\n".join(lines) + "\n"
        expected = dict(self._labels())
        expected.pop((place, unit), None)
        found = _parsed(written.encode(), self.path)
        if {key: label for key, label in found.items() if key != (place, unit)} != expected:
            raise InputError(
                f"labels: {str(self.path)!r} is written in a way that a label cannot be put in without changing others; "
                "edit it by hand"
            )
        new = self.path.with_name(f"{self.path.name}.new")
        new.write_text(written, encoding="utf-8")
        os.replace(new, self.path)
        self._read_at = None


def _key(key: object) -> tuple[str, int]:
    """A place and a unit. Raises InputError for anything else."""
    place, unit = key if isinstance(key, tuple) and len(key) == 2 else (None, None)
    try:
        number = operator.index(unit)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not isinstance(place, str) or number < 0:
        raise InputError(f'labels: a label is that of a place and a unit, labels["mlp.3.neurons", 17]; got {key!r:.100}')
    return place, number


def labels(path: str | Path) -> Labels:
    """The labels of a file, or of the folder of a corpus. A file that is not there has none, and is made when the first
    is set.

    Raises InputError, when labels are read, for a file that is no TOML or has something else than labels.
    """
    found = Path(path)
    return Labels(found / FILE if found.is_dir() or not found.suffix else found)


def _parsed(raw: bytes, path: Path) -> dict[tuple[str, int], str]:
    try:
        tables = tomllib.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"labels: {str(path)!r} cannot be read: {error}") from error
    found = {}
    for place, units in tables.items():
        if not isinstance(units, dict):
            raise InputError(f'labels: {str(path)!r}: {place!r} stands above the places; write ["place"] over its units')
        for unit, label in units.items():
            if not unit.isdigit() or not isinstance(label, str):
                raise InputError(
                    f'labels: {str(path)!r}, [{place!r}]: a line is `17 = "text"`, got {unit} = {label!r}; a place with '
                    "dots in its name is written in quotes"
                )
            found[place, int(unit)] = label
    return found


def _where(lines: list[str], place: str, unit: int) -> tuple[int | None, int, int | None]:
    """The line of a place, the line behind its last unit, and the line of this unit."""
    start, stop, at, inside = None, len(lines), None, False
    for number, line in enumerate(lines):
        if (table := _TABLE.match(line)) is not None:
            inside = _same(table["name"], place)
            start, stop = (number, number + 1) if inside else (start, stop)
        elif inside and (found := _UNIT.match(line)) is not None:
            stop = number + 1
            at = number if int(found["unit"]) == unit else at
    return start, stop, at


def _same(written: str, place: str) -> bool:
    try:
        found = tomllib.loads(f"[{written}]")
    except tomllib.TOMLDecodeError:
        return False
    return place in found


def _text(text: str) -> str:
    """The text in quotes, as TOML and JSON have them."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007F")
