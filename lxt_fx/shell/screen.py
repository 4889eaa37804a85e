"""What is printed: within the width of a terminal, and in full where there is none.

The width is COLUMNS if that is set, else that of the terminal that standard output is. In a pipe or a file lines are as
long as they are, and views that need a width are `WIDE`."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 124
"""Columns of a view in a pipe or a file."""

LEAST = 24
"""Columns that the left of a line keeps at least when it is cut for its rule at the right."""


def columns() -> int | None:
    """The width that lines stay within; None if there is none."""
    written = os.environ.get("COLUMNS", "")
    if written.isascii() and written.isdigit() and int(written) > 0:
        return int(written)
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def console(*, stderr: bool = False) -> Console:
    """Where results are printed."""
    from rich.console import Console

    class Piped(Console):
        """A console that lets a broken pipe be seen, which ends the command with a code of its own."""

        def on_broken_pipe(self) -> None:
            raise  # noqa: PLE0704  # rich calls it where the error is handled

    return Piped(stderr=stderr, width=columns() or WIDE, force_jupyter=False)


def graph_fitted(text: str) -> str:
    """A printed graph in the width of the terminal: the left of a long line is cut and ends in `…`, its rule stays."""
    width = columns()
    return text if width is None else "".join(f"{_graph_line(line, width)}\n" for line in text.splitlines())


def _graph_line(line: str, width: int) -> str:
    left, bar, rule = line.rpartition(" | ")
    room = width - len(bar + rule)
    if len(line) <= width or not bar or room < LEAST:
        return wrapped(line, width)
    left = left.rstrip()
    return (left if len(left) <= room else f"{left[: room - 1]}…") + bar + rule


def text_fitted(text: str, hang: int = 4) -> str:
    """Text in the width of the terminal: long lines are wrapped, `hang` columns further in than they begin."""
    width = columns()
    return text if width is None else "".join(f"{wrapped(line, width, hang)}\n" for line in text.splitlines())


def wrapped(line: str, width: int, hang: int = 4) -> str:
    """The line in lines of at most so many columns."""
    if len(line) <= width:
        return line
    start = len(line) - len(line.lstrip())
    indent = " " * min(start + hang, width // 2)
    return "\n".join(textwrap.wrap(line, width, subsequent_indent=indent, break_on_hyphens=False)) or line
