"""What is printed: within the width of a terminal, and in full where there is none.

The width is COLUMNS if that is set, else that of the terminal that standard output is. In a pipe or a file lines are as
long as they are, and views that need a width are `WIDE`."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 124
"""Columns of a view in a pipe or a file."""

LEAST, HANG = 24, 4
"""Columns that are left at least of a line that is cut for its rule at the right; and by how many a line goes further in
where it goes on."""

BAR = " | "
"""What stands before the rule of an operation in a printed graph."""

_COLUMN = re.compile(r"( *)(.+?)(?=  +\S|$)")


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
    """A printed graph in the width of the terminal: rules stand at the right, and what is too long before one is cut and
    ends in `…`."""
    width = columns()
    if width is None:
        return text
    lines = text.splitlines()
    rules = max((len(rule) + len(BAR) for _, bar, rule in (line.rpartition(BAR) for line in lines) if bar), default=0)
    return "".join(f"{_graph_line(line, width, width - rules)}\n" for line in lines)


def _graph_line(line: str, width: int, room: int) -> str:
    left, bar, rule = line.rpartition(BAR)
    if not bar or room < LEAST:
        return wrapped(line, width)
    left = left if len(left) <= room else left.rstrip().ljust(room)
    return (left if len(left) <= room else f"{left[: room - 1]}…") + bar + rule


def text_fitted(text: str) -> str:
    """Text in the width of the terminal: long lines are wrapped."""
    width = columns()
    return text if width is None else "".join(f"{wrapped(line, width)}\n" for line in text.splitlines())


def wrapped(line: str, width: int) -> str:
    """The line in lines of at most so many columns. What stands in columns, two spaces or more apart, stays together: a
    column that does not fit begins a new line, or goes on below itself if it begins at the left."""
    if len(line) <= width or not line.strip():
        return line
    start = len(line) - len(line.lstrip())
    columns = _COLUMN.findall(line[start:])
    second = start + sum(map(len, columns[0][1:] + columns[1][:1])) if len(columns) > 1 else width
    below = " " * (second if second <= width // 3 else min(start + HANG, width // 3))
    found, broken = [" " * start], False
    for at, (gap, text) in enumerate(columns):
        here = found[-1] + gap
        if not broken and len(here + text) <= width:
            found[-1] = here + text
            continue
        in_place = at == 0 or len(here) <= width // 3 and not broken
        first = found.pop() + gap if in_place else below
        found += textwrap.wrap(text, width, initial_indent=first, subsequent_indent=below if at == 0 else " " * len(first))
        broken = True
    return "\n".join(found)
