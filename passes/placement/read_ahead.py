"""Weights of the parts of a graph, read when a part runs, one part ahead."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from torch import Tensor

from lxt_fx.base.streamed_weight import StreamedWeight


class ReadAhead:
    """Reads the weights of parts. While one part computes, a thread reads the next one that will: in the forward the one
    behind it, in the backward the one before it whose values are computed again. At most one part is read ahead, and what
    is read is held by nothing else. A wrong guess costs the time of a read."""

    def __init__(self) -> None:
        self.parts: list[Sequence[StreamedWeight]] = []
        self.in_backward: set[int] = set()
        """The parts of the last forward that its backward computes again."""
        self._lock = threading.Lock()
        self._ahead: tuple[int, _Reading] | None = None

    def add(self, weights: Sequence[StreamedWeight]) -> int:
        """The number of a further part, which runs after those that there are."""
        self.parts.append(weights)
        return len(self.parts) - 1

    def take(self, part: int, following: int | None) -> list[Tensor]:
        """The weights of a part, and the start of a read of those of the `following` one."""
        with self._lock:
            ahead, self._ahead = self._ahead, None
        found = ahead[1].result() if ahead is not None and ahead[0] == part else _read(self.parts[part])
        del ahead
        if following is not None:
            with self._lock:
                if self._ahead is None:  # else another thread runs this module too
                    self._ahead = following, _Reading(self.parts[following])
        return found

    def after(self, part: int) -> int | None:
        """The part that runs after this one in the forward."""
        return part + 1 if part + 1 < len(self.parts) else None

    def before(self, part: int) -> int | None:
        """The part that runs after this one in the backward."""
        return max((each for each in self.in_backward if each < part), default=None)


class _Reading:
    """A read in a thread of its own."""

    def __init__(self, weights: Sequence[StreamedWeight]) -> None:
        self._found: list[Tensor] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(weights,), name="lxt_fx reads weights", daemon=True)
        self._thread.start()

    def _run(self, weights: Sequence[StreamedWeight]) -> None:
        try:
            self._found = _read(weights)
        except BaseException as error:  # raised again where the weights are needed
            self._error = error

    def result(self) -> list[Tensor]:
        """The weights, once. Raises what the read raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        found, self._found = self._found, []
        return found


def _read(weights: Sequence[StreamedWeight]) -> list[Tensor]:
    return [weight.load() for weight in weights]
