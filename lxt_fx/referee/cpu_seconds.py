"""The CPU seconds that a method takes, here and in a process of its own."""

from __future__ import annotations

import time
from contextvars import ContextVar

_ELSEWHERE: ContextVar[float] = ContextVar("_ELSEWHERE", default=0.0)


def cpu_seconds() -> float:
    """The CPU seconds of this process, of all its threads, and of those that worked for it (`worked_elsewhere`)."""
    return time.process_time() + _ELSEWHERE.get()


def worked_elsewhere(seconds: float) -> None:
    """Counts the CPU seconds that another process worked for a method."""
    _ELSEWHERE.set(_ELSEWHERE.get() + seconds)
