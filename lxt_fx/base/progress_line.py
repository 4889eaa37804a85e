"""How a sign of life looks, and the two places where it can be shown: a terminal and a notebook."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

SPINNER, PLAIN_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "|/-\\"
TURNS = 5
"""Pictures of the spinner in a second."""

LEAST_BAR, LONGEST_BAR, NOTEBOOK_WIDTH = 8, 30, 100
"""In characters."""


@dataclass(slots=True, eq=False)
class Step:
    """What is being done, since when by the clock, and if it is counted how many of `total` are done."""

    words: str
    total: int | None
    since: float
    done: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A picture of a call: its name, its steps (the outer ones first), how many other calls run in other threads, the
    seconds since it began, and the time by the clock."""

    name: str
    steps: tuple[Step, ...]
    others: int
    seconds: float
    now: float

    def text(self, width: int, plain: bool) -> Text:
        """The line in at most `width` characters, `plain` in ASCII: `explain: relevance of targets ━━━━━ 32/100 0:12, 0:26
        left`. A bar counts the outermost step that is counted; the innermost step is named too."""
        from rich.text import Text

        counted = next((step for step in self.steps if step.total is not None and step.total > 1), None)
        frames = PLAIN_SPINNER if plain else SPINNER
        left = Text.assemble((frames[int(self.now * TURNS) % len(frames)], "progress.spinner"), " ", self._said(counted))
        right = self._numbers(counted)
        room = width - len(left) - len(right) - 2
        if counted is None or room < LEAST_BAR:
            left.truncate(max(width - len(right) - 1, 0))
            return Text.assemble(left, " ", right)
        return Text.assemble(left, " ", _bar(counted, min(room, LONGEST_BAR), plain), " ", right)

    def _said(self, counted: Step | None) -> str:
        words = [step.words for step in (counted, *self.steps[-1:]) if step is not None]
        said = ", ".join(dict.fromkeys(words))
        more = f" (and {self.others} more call{'s' if self.others > 1 else ''})" if self.others else ""
        return (f"{self.name}: {said}" if self.name and said else self.name or said) + more

    def _numbers(self, counted: Step | None) -> Text:
        from rich.text import Text

        if counted is None:
            return Text(_time(self.seconds), "progress.elapsed")
        done, total = counted.done, counted.total or 1
        each = (self.now - counted.since) / max(done, 1)
        left = f", {_time(each * (total - done)) if done else '-:--'} left"
        return Text.assemble(
            (f"{done:{len(str(total))}}/{total} ", "progress.download"), (_time(self.seconds), "progress.elapsed"),
            (left, "progress.remaining"),
        )  # fmt: skip


def _bar(counted: Step, width: int, plain: bool) -> Text:
    from rich.text import Text

    done = round(width * counted.done / (counted.total or 1))
    if plain:
        return Text("#" * done + "-" * (width - done), "bar.complete")
    return Text.assemble(("━" * done, "bar.complete"), ("━" * (width - done), "bar.back"))


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Place(Protocol):
    """Where a line is shown."""

    def draw(self, line: Line) -> None:
        """Shows the line in the place of what was drawn before."""

    def clear(self) -> None:
        """Takes it away."""


class Terminal:
    """The line of a terminal that the cursor is in. Nothing else is moved, hidden or redirected, so whatever ends the
    process leaves a terminal that works."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.console: Console | None = None

    def draw(self, line: Line) -> None:
        """Shows the line, one character shorter than the terminal: the last column would begin a new line."""
        from rich.console import Console

        if self.console is None:
            self.console = Console(file=self.stream, force_terminal=True, highlight=False)
        text = line.text(self.console.width - 1, self.console.options.ascii_only)
        with self.console:  # written at once
            self._erase()
            self.console.print(text, end="", no_wrap=True, overflow="crop", crop=True)

    def clear(self) -> None:
        """Erases the line."""
        self._erase()

    def _erase(self) -> None:
        from rich.control import Control
        from rich.segment import ControlType

        assert self.console is not None, "nothing was drawn yet"
        self.console.control(Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2)))


class Notebook:
    """An output of the notebook's cell that is written anew; a cell has one, which stays there empty. rich's live displays
    need ipywidgets, and swallow what is printed meanwhile."""

    _last: tuple[Any, Any] = None, None
    """The last cell, by its number, and its output."""

    def __init__(self, shell: Any) -> None:
        self.cell = shell.execution_count

    def draw(self, line: Line) -> None:
        """Shows the line below what the cell has shown."""
        from IPython.display import display

        text, (cell, output) = line.text(NOTEBOOK_WIDTH, plain=False), Notebook._last
        if cell != self.cell or output is None:
            Notebook._last = self.cell, display(text, display_id=True)
        else:
            output.update(text)

    def clear(self) -> None:
        """Leaves the output empty."""
        Notebook._last[1].update({"text/plain": "", "text/html": ""}, raw=True)


def notebook() -> Any:
    """The shell of the notebook that this process is the kernel of; None if it is none."""
    get: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)
    shell = get()
    return shell if getattr(shell, "kernel", None) is not None else None
