"""Reading JSON that someone else may have written: every value is checked where it is read, and an error says where it
stands."""

from __future__ import annotations

import json
import keyword
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from lxt_fx.base.errors import InputError

T = TypeVar("T")

MOST = 1_000_000
"""The most items of one list or object."""
LONGEST = 100_000
"""The most characters of one text."""
LARGEST = 2**63 - 1
"""The largest whole number: what torch can hold."""

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys or an editor hides, and those other than \\n that end a line: a text may become a
comment in code."""
_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Saved:
    """A value in a file, and where it stands there. Each method returns the value as one type, or raises InputError that
    starts with `source` (such as `load: net.safetensors`) and names the place."""

    value: Any
    source: str
    above: Saved | None = None
    key: str | int = ""

    @property
    def place(self) -> str:
        """Where the value stands: `graph.nodes[3].name`."""
        if self.above is None:
            return ""
        outer = self.above.place
        if isinstance(self.key, int):
            return f"{outer}[{self.key}]"
        key = self.key if _NAME.fullmatch(self.key) else _short(self.key)
        return f"{outer}.{key}" if outer else key

    def fail(self, why: str) -> NoReturn:
        """Raises InputError: the file, the place in it, why it cannot be used."""
        place = self.place
        raise InputError(f"{self.source}: {place + ' ' if place else ''}{why}")

    def item(self, key: str) -> Saved:
        """The value of this key, which must be there."""
        found = self._object()
        if key not in found:
            self.fail(f"has no {key!r}")
        return Saved(found[key], self.source, self, key)

    def maybe(self, key: str) -> Saved | None:
        """The value of this key; None if the key is missing or its value is null."""
        found = self._object()
        return None if found.get(key) is None else Saved(found[key], self.source, self, key)

    def entries(self) -> dict[str, Saved]:
        """The values of an object by key."""
        return {_shown(self, key): Saved(value, self.source, self, key) for key, value in self._object().items()}

    def named(self) -> dict[str, Saved]:
        """The values of an object whose keys are names of variables."""
        found = self.entries()
        for key in found:
            if not _is_name(key):
                self.fail(f"has the key {_short(key)}, which is no name of a variable")
        return found

    def parts(self, most: int = MOST) -> list[Saved]:
        """The items of a list."""
        if not isinstance(self.value, list):
            self.fail(f"must be a list, not {_kind(self.value)}")
        if len(self.value) > most:
            self.fail(f"has {len(self.value)} items; {most} is the most")
        return [Saved(value, self.source, self, index) for index, value in enumerate(self.value)]

    def text(self, most: int = LONGEST) -> str:
        """A text without control characters but tabs and line breaks."""
        if not isinstance(self.value, str):
            self.fail(f"must be a text, not {_kind(self.value)}")
        if len(self.value) > most:
            self.fail(f"has {len(self.value)} characters; {most} is the most")
        return _shown(self, self.value)

    def exact_text(self, most: int = LARGEST) -> str:
        """A text as it stands, control characters too: for what is never printed as it is."""
        if not isinstance(self.value, str):
            self.fail(f"must be a text, not {_kind(self.value)}")
        if len(self.value) > most:
            self.fail(f"has {len(self.value)} characters; {most} is the most")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """A list of texts."""
        return tuple(part.text() for part in self.parts())

    def name(self) -> str:
        """A name that Python code may use for a variable: ASCII letters, digits and underscores, no keyword."""
        found = self.text(1000)
        if not _is_name(found):
            self.fail(f"is {_short(found)}, which is no name of a variable")
        return found

    def names(self) -> tuple[str, ...]:
        """A list of different names."""
        found = tuple(part.name() for part in self.parts())
        if len(set(found)) < len(found):
            self.fail("holds a name twice")
        return found

    def whole(self, least: int = -LARGEST - 1, most: int = LARGEST) -> int:
        """A whole number within these bounds."""
        if not isinstance(self.value, int) or isinstance(self.value, bool):
            self.fail(f"must be a whole number, not {_kind(self.value)}")
        if not least <= self.value <= most:
            self.fail(f"is {_short(self.value)}; it must be from {least} to {most}")
        return self.value

    def number(self) -> float:
        """A number, which may be NaN."""
        if not isinstance(self.value, (int, float)) or isinstance(self.value, bool):
            self.fail(f"must be a number, not {_kind(self.value)}")
        return float(self.whole() if isinstance(self.value, int) else self.value)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            self.fail(f"must be true or false, not {_kind(self.value)}")
        return self.value

    def plain(self) -> bool | int | float | str | None:
        """A plain value: null, a flag, a finite number, a text."""
        if isinstance(self.value, float) and not math.isfinite(self.value):
            self.fail(f"is {self.value}, which is no finite number")
        if self.value is None or isinstance(self.value, (bool, float)):
            return self.value
        return self.whole() if isinstance(self.value, int) else self.text()

    def one_of(self, known: Mapping[str, T]) -> T:
        """What the text stands for in a fixed list."""
        found = self.text()
        if found not in known:
            self.fail(f"is {_short(found)}, which is none of {', '.join(list(known)[:12])}{', ...' * (len(known) > 12)}")
        return known[found]

    def _object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            self.fail(f"must be an object, not {_kind(self.value)}")
        if len(self.value) > MOST:
            self.fail(f"has {len(self.value)} keys; {MOST} is the most")
        return self.value


def read_json(text: str, source: str) -> Saved:
    """The JSON of a file. Raises InputError for a text that is no JSON, is nested too deeply or names a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object names a key twice")
        return found

    try:
        return Saved(json.loads(text, object_pairs_hook=once), source)
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{source}: its description cannot be read: {why}") from None


def _is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None and not keyword.iskeyword(text)


def _shown(saved: Saved, text: str) -> str:
    if _HIDDEN.search(text):
        saved.fail("holds a control character")
    return text


def _short(value: object) -> str:
    """A value in an error message."""
    written = ascii(value) if isinstance(value, str) else f"{value:.3g}" if isinstance(value, float) else ""
    if isinstance(value, int):
        written = str(value) if value.bit_length() < 200 else f"a number of {value.bit_length()} bits"
    return written if len(written) <= 60 else f"{written[:57]}..."


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a flag", int: "a number", float: "a number"}
    return names.get(type(value), "null")
