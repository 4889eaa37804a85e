"""The file of a benchmark: JSON lines, each written when it is known, so that a run that was stopped goes on.

| line | what it holds |
|---|---|
| `{"lxt_fx_bench": 1, ...}` | the first one: the format, the seed, the versions of the packages |
| `{"model": {...}}`, also `task`, `method`, `metric` | what a name means: weights and files by their hash, parameters |
| `{"result": {...}}` | a method on a case of a task: every metric, and the CPU seconds of the explanation |
| `{"left_out": {...}}` | a method or a task that is not for a model, with the reason |

A line is appended whole and nothing is written over. If the process dies within a line, the next run drops that line.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from io import BufferedWriter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

from lxt_fx.base.errors import InputError
from lxt_fx.referee.declared import Declared, differences

FORMAT = 1
KEY = "lxt_fx_bench"
START = f'{{"{KEY}": '.encode()

Kind = Literal["model", "task", "method", "metric"]
KINDS: tuple[Kind, ...] = ("model", "task", "method", "metric")


@dataclass(frozen=True, slots=True)
class Line:
    """What one method gave for one case. `place` is that of the case in its task, `content` a hash of its input, `group`
    that of the cases that share what they ask about (empty: the case alone). `values`
    are the metrics by name; `skipped` are those that cannot judge the case, and why. Where the method itself is not for the
    case, `refused` says why, and there are no values. `seconds` is the CPU time of the explanation."""

    model: str
    task: str
    place: int
    case: str
    content: str
    method: str
    values: Mapping[str, float] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""
    seconds: float = 0.0
    group: str = ""

    def __post_init__(self) -> None:
        wrong = [name for name, value in self.values.items() if not math.isfinite(value)]
        if wrong:
            raise InputError(
                f"bench: metric {wrong[0]} gives {self.values[wrong[0]]} for {self.method} on case {self.case} of "
                f"{self.task} ({self.model}); a metric gives a finite number, or raises NotForThisError"
            )


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What did not run on a model: a task, where `method` is empty, or a method."""

    model: str
    why: str
    task: str = ""
    method: str = ""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a file holds: its first line, what each name means by kind, the results and what was left out in their order."""

    header: dict[str, Any] = field(default_factory=dict)
    declared: dict[Kind, dict[str, Declared]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    lines: list[Line] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def take(self, found: Mapping[str, Any]) -> None:
        """Takes in one line of JSON. Raises KeyError, TypeError or ValueError for one that is none of ours."""
        if KEY in found:
            self.header.update(found)
            return
        ((kind, value),) = found.items()
        if kind == "result":
            self.lines.append(Line(**value))
        elif kind == "left_out":
            self.left_out.append(LeftOut(**value))
        else:
            self.declared[cast(Kind, kind)][value["name"]] = value  # KeyError for a kind that is none


class ResultsFile:
    """A file that is written, or none (`path` None): then results are only held. To be used as a context."""

    def __init__(self, path: Path | None, header: Mapping[str, Any]) -> None:
        """Begins a file, or continues one that is there.

        Raises InputError for a file of something else, one whose header is another, one that another run writes, and a path
        that cannot be written.
        """
        self.path, self.contents = path, Contents()
        self._file: BufferedWriter | None = None
        whole = {KEY: FORMAT, **header}
        try:
            if path is not None:
                self._open(path)
            if self.contents.header:
                self._check("the run", self.contents.header, whole)
            else:
                self._write(whole)
        except OSError as error:
            raise InputError(f"bench: {path} cannot be written: {error.strerror or error}; give another path") from error
        except InputError:
            self._close()
            raise

    def _open(self, path: Path) -> None:
        """Opens the file for this run alone, and reads what it holds, without a line that was torn."""
        self._file = path.open("ab")
        _for_one_run(self._file, path)
        if data := path.read_bytes():
            self.contents, length = parsed(data, path)
            if length < len(data):
                self._file.truncate(length)

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def declare(self, kind: Kind, declared: Declared) -> None:
        """Says what a name means. Raises InputError where the file gives it another meaning."""
        known = self.contents.declared[kind].get(declared["name"])
        if known is None:
            self._write({kind: declared})
        else:
            self._check(f"{kind} {declared['name']!r}", known, json.loads(json.dumps(declared)))

    def add(self, line: Line) -> None:
        """Writes a result."""
        self._write({"result": {name: value for name, value in asdict(line).items() if value not in ({}, "")}})

    def leave_out(self, left_out: LeftOut) -> None:
        """Writes what did not run and why, once."""
        if left_out not in self.contents.left_out:
            self._write({"left_out": {name: value for name, value in asdict(left_out).items() if value != ""}})

    def _check(self, what: str, known: Declared, now: Declared) -> None:
        if found := differences(known, now):
            raise InputError(
                f"bench: {self.path} cannot be continued, since {what} is another: {'; '.join(found)}. Give another file, "
                "or run what the file was made with"
            )

    def _write(self, found: Mapping[str, Any]) -> None:
        text = json.dumps(found, allow_nan=False)
        if self._file is not None:
            self._file.write(f"{text}\n".encode())
            self._file.flush()
        self.contents.take(json.loads(text))


def _for_one_run(file: BufferedWriter, path: Path) -> None:
    """Locks the file until it is closed, or its process ends. Without locks (Windows, some network drives) nothing is done.

    Raises InputError where another run has it.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InputError(
            f"bench: another run is writing {path}; wait until it is done, or give each run a file of its own"
        ) from error
    except OSError:
        return


def parsed(data: bytes, path: Path) -> tuple[Contents, int]:
    """What a file holds, and how long it is without a line that was torn.

    Raises InputError for a file of something else, another format, and a line that cannot be read.
    """
    if not (data.startswith(START) or START.startswith(data)):
        raise InputError(f"{path} is no file of lxt_fx.bench: its first line is no header; give another path")
    length, contents = data.rfind(b"\n") + 1, Contents()
    for number, line in enumerate(data[:length].splitlines(), start=1):
        try:
            contents.take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            raise InputError(
                f"{path}, line {number} is no line of lxt_fx.bench: {error}; mend it or take it out"
            ) from error
        if number == 1 and contents.header.get(KEY) != FORMAT:
            raise InputError(f"{path} has format {contents.header.get(KEY)}, and this version reads {FORMAT}")
    return contents, length
