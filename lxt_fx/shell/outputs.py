"""The files that a command writes: checked before its work, and never over one that is there unless that is asked for."""

from __future__ import annotations

import glob
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lxt_fx.shell.exits import CannotWrite, UsageMistake
from lxt_fx.shell.screen import console

if TYPE_CHECKING:
    from rich.console import ConsoleRenderable, RichCast

STDOUT = Path("-")


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where results go: `paths` by kind (html, png, pdf, json). Made by `checked`."""

    paths: Mapping[str, Path]
    quiet: bool
    shown: bool

    @property
    def piped(self) -> bool:
        """Whether standard output holds JSON, and nothing else."""
        return self.paths.get("json") == STDOUT

    def show(self, view: ConsoleRenderable | RichCast | str) -> None:
        """Prints a view, on standard error where standard output holds JSON. A line of text, such as the name of a file,
        is not broken at the width of the terminal."""
        if self.shown:
            console(stderr=self.piped).print(view, markup=False, highlight=False, soft_wrap=isinstance(view, str))

    def write(self, kind: str, function: Callable[[Path], object]) -> None:
        """Writes the file of this kind, if it was asked for. A function that writes several returns their paths."""
        path = self.paths.get(kind)
        if path is None or path == STDOUT:
            return
        with _writing(path):
            written = function(path)
        for each in written if isinstance(written, tuple) else (path,):
            self.said(each)

    def said(self, path: Path) -> None:
        """Says that a file was written."""
        if not self.quiet:
            print(f"wrote {path}", file=sys.stderr)

    def one_json(self, data: Mapping[str, Any], function: Callable[[Path], object]) -> None:
        """Writes the JSON of the only result: to standard output in one line, else by `function`."""
        if self.piped:
            _print_line(sys.stdout.buffer, data)
        self.write("json", function)

    @contextmanager
    def json_lines(self) -> Iterator[Callable[[Mapping[str, Any]], None]]:
        """Gives a function that writes the JSON of one of many results, in a line as soon as it is there."""
        path = self.paths.get("json")
        if path is None:
            yield lambda data: None
        elif self.piped:
            yield lambda data: _print_line(sys.stdout.buffer, data)
        else:
            with _writing(path), path.open("wb") as file:
                yield lambda data: _print_line(file, data)
            self.said(path)


def checked(
    paths: Mapping[str, Path | None], *, force: bool, quiet: bool, show: bool | None = None, reads: Sequence[Path] = (),
) -> Outputs:  # fmt: skip
    """The outputs of a command, by kind, before any work. What is printed is shown unless standard output holds JSON;
    `show` says otherwise. `reads` are the files that it reads.

    Raises UsageMistake for two outputs of one name and for a `-` that is not `--json -`; CannotWrite for a folder that is
    not there or cannot be written to, and for a file that is there, without `force`.
    """
    found = {kind: path for kind, path in paths.items() if path is not None}
    names: dict[Path, str] = {}
    for kind, path in found.items():
        if path == STDOUT:
            if kind != "json":
                raise UsageMistake(f"--{kind} -: only --json writes to standard output; give the path of a file")
            continue
        _check(path, force)
        own = path.resolve()
        if own in names:
            raise UsageMistake(f"--{names[own]} and --{kind} both write {path}; give them two names")
        if any(own == read.resolve() for read in reads):
            raise UsageMistake(f"--{kind} would write over {path}, which is read; give another name")
        names[own] = kind
        for page in _pages_of(path) if kind == "png" else ():
            if any(page.resolve() == read.resolve() for read in reads):
                raise UsageMistake(f"--{kind} could write over {page}, which is read, by a further page; give another name")
            if not force:
                raise CannotWrite(f"{page} is there already, where a further page of {path} goes; --force writes over it")
    return Outputs(found, quiet, found.get("json") != STDOUT if show is None else show)


def _pages_of(path: Path) -> list[Path]:
    """The files that are there under the names of further pages of a picture: name-2.png, name-3.png, ..."""
    pages = path.parent.glob(f"{glob.escape(path.stem)}-*{path.suffix}") if path.parent.is_dir() else ()
    return sorted(page for page in pages if page.stem.removeprefix(f"{path.stem}-").isdigit())


def _check(path: Path, force: bool) -> None:
    folder = path.parent
    if path.is_dir():
        raise CannotWrite(f"cannot write {path}: it is a folder; give the path of a file")
    if not folder.is_dir():
        raise CannotWrite(f"cannot write {path}: there is no folder {folder}; make it first, or give another path")
    if path.is_file() and not force:
        raise CannotWrite(f"{path} is there already; --force writes over it")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise CannotWrite(f"cannot write {path}: permission denied; give a path that you may write to")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A failure of the operating system inside the block is one to write."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CannotWrite(f"cannot write {path}: {error.strerror or error}") from error


def _print_line(stream: IO[bytes], data: Mapping[str, Any]) -> None:
    """One line of JSON, in UTF-8 whatever the terminal's encoding."""
    stream.write(json.dumps(data, ensure_ascii=False).encode("utf-8") + b"\n")
    stream.flush()
