"""Signs of life of a call that lasts: one line on standard error with what is being done, and how much of it.

The line appears after `DELAY` seconds and is gone when the call returns or raises. It is drawn by a thread of its own,
since a single step (a capture) may last longer than that. There is one line for the process: it shows the oldest of the
calls that run in its threads, and what a call does inside of another shows in the line of the outer one. rich is imported
when the first line is drawn.

    @lasting                                             # a public function with an argument `progress`
    with stage("capturing the model"): ...               # a part of it
    for target in steps("targets", targets, total=len(targets)): ...
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from lxt_fx.base.errors import InputError
from lxt_fx.base.progress_line import Line, Notebook, Place, Step, Terminal, notebook

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

DELAY, EVERY = 2.0, 0.2
"""Seconds until a line appears, and between two pictures of it."""

ENVIRONMENT = "LXT_FX_PROGRESS"


Tell = Callable[[tuple[Step, ...]], None]
"""What is told the steps that a call is in, the outer ones first."""


@dataclass(slots=True, eq=False)
class _Call:
    """The outermost call of a thread: what it is doing now, the outer steps first. `place` is None once it could not be
    drawn, and where `tell` is told instead."""

    name: str
    place: Place | None
    since: float
    steps: list[Step] = field(default_factory=list)
    tell: Tell | None = None

    @contextmanager
    def doing(self, step: Step) -> Iterator[None]:
        """Shows the step inside the block."""
        self.steps.append(step)
        try:
            self.told()
            yield
        finally:
            if step in self.steps:  # not if an outer step ended first: a generator that is closed late
                del self.steps[self.steps.index(step) :]

    def told(self) -> None:
        """Says what is being done to who asked for it."""
        if self.tell is not None:
            self.tell(tuple(self.steps))


_SHOWN: ContextVar[bool | None] = ContextVar("shown", default=None)
_CALL: ContextVar[_Call | None] = ContextVar("call", default=None)


@contextmanager
def progress(shown: bool | None) -> Iterator[None]:
    """Whether calls inside the block that last over 2 seconds show what they do, and how much of it is done, in one line on
    standard error or below a notebook's cell. False: no. True: yes, if standard error is a terminal or the process a
    notebook's; in pipes and files there is never a line. None: as outside of the block.

    Outside of any block it is True, but False if the environment variable LXT_FX_PROGRESS is 0, and in child processes of
    `multiprocessing`. The block counts for its own thread. Functions that may last have an argument `progress`, which
    counts for one call.

    Raises InputError for any other value.
    """
    if not isinstance(shown, bool | None):
        raise InputError(f"progress must be True, False or None, got {shown!r}")
    if shown is None:
        yield
        return
    setting, call = _SHOWN.set(shown), None if shown else _CALL.set(None)
    try:
        yield
    finally:
        _SHOWN.reset(setting)
        if call is not None:
            _CALL.reset(call)


@contextmanager
def told(tell: Tell) -> Iterator[None]:
    """Tells what the calls inside the block do, instead of drawing lines: whenever a step begins, and whenever one that is
    counted goes on. What `tell` raises ends the call at this step. The block counts for its own thread; inside of it,
    `progress(False)` tells nothing."""
    token = _CALL.set(_Call("", None, _DISPLAY.clock(), tell=tell))
    try:
        yield
    finally:
        _CALL.reset(token)


def lasting(function: Callable[P, R]) -> Callable[P, R]:
    """Shows signs of life of this public function, as its argument `progress`, given by name, says."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        shown: Any = kwargs.get("progress")
        with progress(shown), _call(function.__name__):
            return function(*args, **kwargs)

    return called


@contextmanager
def stage(words: str) -> Iterator[None]:
    """What is done inside the block, in words. Outside of any call it is one."""
    with _call("") as call:
        if call is None:
            yield
            return
        with call.doing(Step(words, None, _DISPLAY.clock())):
            yield


def steps(words: str, each: Iterable[T], total: int, size: int = 1) -> Iterator[T]:
    """The elements of `each`, counted as they are asked for: `size` of `total` are done behind each of them."""
    call = _CALL.get()
    return iter(each) if call is None else _counted(call, Step(words, total, _DISPLAY.clock()), each, size)


def _counted(call: _Call, step: Step, each: Iterable[T], size: int) -> Iterator[T]:
    with call.doing(step):
        for element in each:
            yield element
            step.done = min(step.done + size, step.total or 0)
            call.told()


@contextmanager
def hidden() -> Iterator[None]:
    """No line inside the block, which writes something else to the terminal."""
    with _DISPLAY.lock:
        _DISPLAY.clear()
        yield


@contextmanager
def _call(name: str) -> Iterator[_Call | None]:
    """The call of this thread, begun here if there is none; None where nothing is shown."""
    outer = _CALL.get()
    place = _place() if outer is None else None
    if place is None:
        yield outer
        return
    call = _Call(name, place, _DISPLAY.clock())
    token = _CALL.set(call)
    try:
        _DISPLAY.add(call)
        yield call
    finally:
        _DISPLAY.remove(call)
        _CALL.reset(token)


def _place() -> Place | None:
    """Where a line can be shown now."""
    shown = _SHOWN.get()
    if shown is False:
        return None
    if shown is None and (os.environ.get(ENVIRONMENT) == "0" or multiprocessing.parent_process() is not None):
        return None
    shell = notebook()
    if shell is not None:
        return Notebook(shell)
    stream = sys.stderr
    try:
        terminal = stream is not None and stream.isatty()
    except (AttributeError, ValueError):  # a stream of the user, or a closed one
        return None
    return Terminal(stream) if terminal and os.environ.get("TERM") not in ("dumb", "unknown") else None


class Display:
    """The line of the process. `clock` gives seconds. With `alone=False` no thread draws it, and `tick` is called by
    hand."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, alone: bool = True) -> None:
        self.clock, self.alone = clock, alone
        self.lock = threading.RLock()
        self.calls: list[_Call] = []  # the oldest first
        self.drawn: Place | None = None
        self.thread: threading.Thread | None = None

    def add(self, call: _Call) -> None:
        """A call begins."""
        with self.lock:
            self.calls.append(call)
            if not self.alone or self.thread is not None:
                return
            self.thread = threading.Thread(target=self._run, name="lxt_fx progress", daemon=True)
            try:
                self.thread.start()
            except RuntimeError:  # no thread can be started now (the interpreter ends): no line
                self.thread = None

    def remove(self, call: _Call) -> None:
        """A call ends, and its line is gone."""
        with self.lock:
            if call in self.calls:
                self.calls.remove(call)
            if self.drawn is call.place:
                self.clear()

    def clear(self) -> None:
        """Takes the line away."""
        if self.drawn is not None:
            place, self.drawn = self.drawn, None
            _unless_broken(place.clear)

    def stop(self) -> None:
        """Forgets all calls: the interpreter ends."""
        with self.lock:
            self.calls.clear()
            self.clear()

    def tick(self) -> float | None:
        """Draws what is due. Returns the seconds until the next tick; None if no call runs."""
        with self.lock:
            if not self.calls:
                self.thread = None
                return None
            now = self.clock()
            due = [call for call in self.calls if now - call.since >= DELAY]
            self._draw(due, now)
            return EVERY if due else max(self.calls[0].since + DELAY - now, 0.01)

    def _draw(self, due: list[_Call], now: float) -> None:
        call = next((call for call in due if call.place is not None), None)
        if call is None or call.place is None or other_display():
            self.clear()
            return
        if self.drawn is not call.place:
            self.clear()
        place, self.drawn = call.place, call.place
        line = Line(call.name, tuple(call.steps), len(due) - 1, now - call.since, now)
        if not _unless_broken(lambda: place.draw(line)):
            call.place = self.drawn = None

    def _run(self) -> None:
        while (wait := self.tick()) is not None:
            time.sleep(wait)


def other_display() -> bool:
    """Whether a live display or progress bar of rich, of the user's own, has the terminal. It redirects what is printed."""
    proxy = getattr(sys.modules.get("rich.file_proxy"), "FileProxy", None)
    return proxy is not None and (isinstance(sys.stderr, proxy) or isinstance(sys.stdout, proxy))


def _unless_broken(draw: Callable[[], None]) -> bool:
    """Whether the line could be drawn. A closed stream, a terminal that cannot show a character, a kernel that went away:
    nothing of this may stop the call whose sign of life it is."""
    try:
        draw()
    except Exception:
        return False
    return True


_DISPLAY = Display()
os.register_at_fork(after_in_child=_DISPLAY.__init__)  # type: ignore[misc]  # its thread is not in the child
atexit.register(_DISPLAY.stop)

__all__ = ["DELAY", "Display", "hidden", "lasting", "progress", "stage", "steps", "told"]
