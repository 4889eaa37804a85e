"""The folder of an explained corpus: each window of samples is one step, which is complete or was not taken.

| file | what it holds |
|---|---|
| `explained.json` | what was asked of which model: it must be the same when a run is continued |
| `parts/*.parquet` | a line for each sample that was explained, a file for each window |
| `bad/*.jsonl` | the samples of a window that could not be explained, with the reason; no file if there are none |
| `done.json` | that all samples were read, and how many |

A window is done when its part has its name: the part is written under another name, to the disk, and renamed; the bad
samples of the window were written before it. What a killed run left half-written has another name or no part, and never
counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lxt_fx.base.errors import InputError
from lxt_fx.base.whole_file import whole_file
from lxt_fx.corpora.steps import Step
from lxt_fx.corpora.stream import Done
from lxt_fx.inside.corpus.folder import differences, read_header
from lxt_fx.inside.corpus.samples import needs_pyarrow

FORMAT = 1
HEADER, PARTS, BAD, DONE = "explained.json", "parts", "bad", "done.json"


class ExplainedFolder:
    """The files of one explained corpus."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def exists(self) -> bool:
        """Whether a run was begun here."""
        return (self.path / HEADER).is_file()

    def open(self, header: Mapping[str, Any], function: str, *, resume: bool) -> Done:
        """Makes the folder, or goes on in it. Returns what is done.

        Raises InputError for a folder with other files, or of a run that was asked something else.
        """
        if self.exists() and not resume:
            self.clear()
        if not self.exists():
            self._begin(header, function)
        elif differ := differences(self.header(function), header):
            raise InputError(
                f"{function}: {str(self.path)!r} has the result of another call, which differs in "
                f"{'; '.join(differ[:3])}; give another folder, or resume=False to begin anew"
            )
        for each in (PARTS, BAD):
            (self.path / each).mkdir(exist_ok=True)
        (self.path / DONE).unlink(missing_ok=True)
        self._sweep()
        return self.done(function)

    def _begin(self, header: Mapping[str, Any], function: str) -> None:
        others = sorted(each.name for each in self.path.iterdir()) if self.path.exists() else []
        if set(others) - {f"{HEADER}.new"}:
            raise InputError(
                f"{function}: {str(self.path)!r} is a folder with other files ({', '.join(others[:4])}); give an empty "
                "or a new one"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        self.replace(HEADER, header)

    def clear(self) -> None:
        """Takes away what a run wrote, the header last: a folder that is half-cleared is one of a run still."""
        for each in (self.path / DONE, *self._files(PARTS, "*.parquet*"), *self._files(BAD, "*.jsonl*")):
            each.unlink(missing_ok=True)
        for name in (PARTS, BAD):
            with suppress(OSError):  # not there, or with a file of somebody else, which the next run refuses
                (self.path / name).rmdir()
        (self.path / HEADER).unlink()

    def _sweep(self) -> None:
        """Takes away what a killed run left half-written."""
        names = {path.stem for path in self.parts()}
        for path in (*self._files(PARTS, "*.new"), *self._files(BAD, "*.new")):
            path.unlink(missing_ok=True)
        for path in self._files(BAD, "*.jsonl"):
            if path.stem not in names:
                path.unlink(missing_ok=True)

    def header(self, function: str) -> dict[str, Any]:
        """What was asked. Raises InputError for a folder of something else, or of another version."""
        if not self.exists():
            raise InputError(f"{function}: {str(self.path)!r} is no explained corpus: it has no {HEADER}")
        return read_header(self.path / HEADER, FORMAT, function)

    def parts(self) -> list[Path]:
        """The files of lines, in the order of the corpus."""
        return self._files(PARTS, "*.parquet")

    def _files(self, folder: str, pattern: str) -> list[Path]:
        return sorted((self.path / folder).glob(pattern))

    def read(self, path: Path, columns: Sequence[str] | None, function: str) -> Any:
        """The table of a part, or some of its columns. Raises InputError for a file that is damaged."""
        pyarrow = needs_pyarrow(function)
        from pyarrow import parquet

        try:
            with parquet.ParquetFile(path) as file:
                return file.read(columns=None if columns is None else list(columns))
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(
                f"{function}: {str(path)!r} cannot be read ({str(error).splitlines()[0]}); remove it, and explain its "
                "samples by the same call again"
            ) from error

    def bad(self) -> Iterator[dict[str, Any]]:
        """The samples that could not be explained, in the order of the corpus: those of windows that are done."""
        names = {path.stem for path in self.parts()}
        for path in self._files(BAD, "*.jsonl"):
            if path.stem in names:
                with path.open(encoding="utf-8") as file:
                    yield from map(json.loads, file)

    def done(self, function: str) -> Done:
        """What is in the folder. Raises InputError where two parts have the same sample."""
        found = Done()
        for path in self.parts():
            table = self.read(path, ("key", "content"), function)
            found.lines += len(table)
            for key, content in zip(table["key"].to_pylist(), table["content"].to_pylist(), strict=True):
                if key in found.contents:
                    raise InputError(f"{function}: {str(self.path)!r} has the sample {key!r} twice; begin anew in another")
                found.contents[key] = content
        for each in self.bad():
            if each["occurrence"] > 1:
                found.again.add((each["key"], each["occurrence"]))
            else:
                found.contents[each["key"]] = each["content"]
        return found

    def take(self, step: Step) -> None:
        """Completes a window."""
        from pyarrow import parquet

        if step.bad:
            lines = "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in step.bad)
            self._replace(f"{BAD}/{step.name}.jsonl", lines.encode("utf-8", "backslashreplace"))
        with whole_file(self.path / PARTS / f"{step.name}.parquet") as file:
            parquet.write_table(step.lines, file, compression="zstd")

    def replace(self, name: str, values: Mapping[str, Any]) -> None:
        """Writes plain values as one file."""
        self._replace(name, (json.dumps(values, ensure_ascii=False, indent=1) + "\n").encode())

    def _replace(self, name: str, data: bytes) -> None:
        with whole_file(self.path / name) as file:
            file.write(data)
