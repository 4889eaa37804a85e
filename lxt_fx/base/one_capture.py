"""Captures run one at a time, and other threads can tell that one runs.

`torch.export` puts placeholders in the place of a model's parameters, and sets flags of the whole process: while it runs in
one thread, `torch.compiler.is_compiling()` is true in all of them. Two exports at once fail.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


class _Turn:
    """Whose turn it is to capture."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.thread: int | None = None


_TURN = _Turn()
os.register_at_fork(after_in_child=_TURN.__init__)  # type: ignore[misc]  # the thread that held the lock is not in the child


@contextmanager
def one_capture() -> Iterator[None]:
    """Waits until no other thread captures; others wait until the block ends. Blocks of one thread may be nested."""
    turn = _TURN
    with turn.lock:
        outer, turn.thread = turn.thread, threading.get_ident()
        try:
            with nullcontext() if outer is not None else _few_full_collections():
                yield
        finally:
            turn.thread = outer


@contextmanager
def _few_full_collections() -> Iterator[None]:
    """Inside the block, Python's garbage collector hardly ever looks at all objects of the process. A capture makes so many
    that it would do so several times, a sixth of the whole time; most are needed until the end."""
    own = gc.get_threshold()
    rare = max(own[0], 20_000), own[1], max(own[2], 1000)
    if own[0] == 0:  # it is off
        rare = own
    gc.set_threshold(*rare)
    try:
        yield
    finally:
        if gc.get_threshold() == rare:  # nobody has set others meanwhile
            gc.set_threshold(*own)


def is_compiling() -> bool:
    """Whether this code is being compiled or exported, and not only some code in another thread that captures a model."""
    if torch.compiler.is_dynamo_compiling():
        return True
    return torch.compiler.is_compiling() and _TURN.thread in (None, threading.get_ident())
