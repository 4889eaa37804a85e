"""Files of public data that a user names: read with every field checked."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a file: its fields, and `where` it stands, as errors say it."""

    fields: Mapping[str, Any]
    where: str

    def field(self, name: str) -> Any:
        """What a field holds. Raises InputError where it is missing."""
        if name not in self.fields:
            raise InputError(f"{self.where}: the field {name!r} is missing; there are {', '.join(map(repr, self.fields))}")
        return self.fields[name]

    def text(self, name: str) -> str:
        """A text that is not empty. Raises InputError for anything else."""
        value = self.field(name)
        if not isinstance(value, str) or not value.strip():
            raise InputError(f"{self.where}: the field {name!r} must be a text that is not empty, got {value!r}")
        return value

    def number(self, name: str) -> int:
        """A whole number of at least 0; digits in a text will do. Raises InputError for anything else."""
        value = self.field(name)
        if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
            return int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise InputError(f"{self.where}: the field {name!r} must be a whole number, got {value!r}")
        return value

    def span(self, name: str, text: str) -> tuple[int, int]:
        """Where characters begin and end in this text. Raises InputError for what is no such pair."""
        value = self.field(name)
        whole = isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
        if not whole or len(value) != 2 or not 0 <= value[0] < value[1] <= len(text):
            raise InputError(
                f"{self.where}: the field {name!r} must be [begin, end], characters of a text of {len(text)}, got {value!r}"
            )
        return value[0], value[1]


def entries(path: str | Path) -> list[Entry]:
    """The objects of a JSON file that is a list of them. Raises InputError for a file of another form."""
    try:
        found = json.loads(text_of(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: this is no JSON ({error.msg})") from error
    if not isinstance(found, list) or not found:
        raise InputError(f"{path} must hold a JSON list of objects that is not empty, got {type(found).__name__}")
    made = [Entry(each, f"{path}, entry {place}") for place, each in enumerate(found) if isinstance(each, dict)]
    if len(made) < len(found):
        wrong = next(place for place, each in enumerate(found) if not isinstance(each, dict))
        raise InputError(f"{path}, entry {wrong}: each entry must be an object, got {type(found[wrong]).__name__}")
    return made


def lines_of_table(path: str | Path) -> list[Entry]:
    """The lines of a CSV file below its head. Raises InputError for a file without any, and a line of another length."""
    found = list(csv.reader(text_of(path).splitlines()))
    if len(found) < 2:
        raise InputError(f"{path} must be a CSV file with a head and lines below it")
    for number, line in enumerate(found[1:], 2):
        if len(line) != len(found[0]):
            raise InputError(f"{path}, line {number}: there are {len(line)} fields and {len(found[0])} names in the head")
    return [
        Entry(dict(zip(found[0], line, strict=True)), f"{path}, line {number}") for number, line in enumerate(found[1:], 2)
    ]


def text_of(path: str | Path) -> str:
    """What a UTF-8 file holds. Raises InputError for one that cannot be read."""
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
