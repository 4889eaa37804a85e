"""Analysis: how consecutive pieces are dealt to a number of stages so that the largest stage is as small as it can be."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

_Best = tuple[float, float]
"""The size of the largest stage, and the sum of the squares of all, which decides between equal ones."""


def balanced(sizes: Sequence[int], count: int) -> list[int]:
    """Analysis: how many pieces each of `count` stages has, each at least one, in order. `count` is at most the number of
    pieces."""
    pieces = len(sizes)
    before = [0, *accumulate(sizes)]
    best: list[dict[int, tuple[_Best, int]]] = [{0: ((0.0, 0.0), 0)}]
    for stage in range(1, count + 1):
        found: dict[int, tuple[_Best, int]] = {}
        for end in range(stage, pieces - (count - stage) + 1):
            found[end] = min(
                (_with(sofar, before[end] - before[start]), start) for start, (sofar, _) in best[-1].items() if start < end
            )
        best.append(found)
    counts, end = [], pieces
    for stage in range(count, 0, -1):
        start = best[stage][end][1]
        counts.append(end - start)
        end = start
    return counts[::-1]


def _with(sofar: _Best, size: int) -> _Best:
    return max(sofar[0], size), sofar[1] + float(size) ** 2
