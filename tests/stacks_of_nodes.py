"""Where a node of a captured graph comes from, read as torch.fx reads it and in a fifth of the time.

torch symbolizes the whole stack for each node, looks up the line of each frame, and then drops all that is outside of the
first `forward`. Under pytest that is an eighth of the CPU time of a capture. Here only what is kept is made, and its lines
are looked up when they are read. test_shared_captures.py proves that the text of each node is the same."""

from __future__ import annotations

import sys
from traceback import FrameSummary, StackSummary
from types import FrameType

from torch.fx import proxy

OF_TORCH = proxy.CapturedTraceback


class Stack:
    """What `torch.utils._traceback.CapturedTraceback` is to a tracer."""

    def __init__(self, frames: list[FrameType]) -> None:
        kept = reversed(frames)
        self._frames = [FrameSummary(f.f_code.co_filename, f.f_lineno, f.f_code.co_name, lookup_line=False) for f in kept]

    @classmethod
    def extract(cls) -> Stack:
        """The frames from the first `forward` on."""
        frames: list[FrameType] = []
        kept, frame = 0, sys._getframe(1)
        while frame is not None:
            frames.append(frame)
            kept = len(frames) if frame.f_code.co_name == "forward" else kept
            frame = frame.f_back  # type: ignore[assignment]
        return cls(frames[:kept])

    def summary(self) -> StackSummary:
        """The outermost first."""
        return StackSummary.from_list(self._frames)


def read_quickly() -> None:
    """From now on, in this process."""
    proxy.CapturedTraceback = Stack  # type: ignore[assignment, misc]
