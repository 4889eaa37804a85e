"""The cases of scale_cases.json: values, which of them count, and by the plain definition where colours end and what share
each place has. Vitest and pytest read the file, so that the page and Python have one scale. `python scale_cases.py` writes
it again."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("scale_cases.json")


def expected(values: list[float], counts: list[bool], ends: str) -> dict[str, Any]:
    """The definition, one place at a time."""
    sizes = sorted(abs(value) for value, counting in zip(values, counts, strict=True) if counting)
    largest = sizes[-1] if sizes else 0.0
    end = largest
    if ends == "robust" and len(sizes) >= 4:
        quantile = sizes[math.floor(0.99 * (len(sizes) - 1))]
        end = max(quantile, largest / 10) if quantile else largest
    shares = []
    for value, counting in zip(values, counts, strict=True):
        share = 0.0
        if counting and ends == "rank" and value:
            smaller = sum(size < abs(value) for size in sizes)
            ties = sum(size == abs(value) for size in sizes)
            share = (smaller + (ties + 1) / 2) / len(sizes) * (1 if value > 0 else -1)
        elif counting and ends != "rank" and end:
            share = max(-1.0, min(1.0, value / end))
        shares.append(round(share, 9))
    beyond = 0 if ends == "rank" else sum(size > end for size in sizes)
    return {"ends": ends, "values": values, "counts": counts, "end": end, "beyond": beyond, "shares": shares}


def cases() -> list[dict[str, Any]]:
    """Few and many places, ties, zeros, one place that takes all, places that do not count."""
    drawn = random.Random(0)
    lists = [
        [], [0.0], [0.0, 0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.5], [0.784, 0.558, 0.618, 0.824, 3.644],
        [1.0, -1.0, 1.0, -1.0, 0.5], [0.001, 0.001, -0.001, 0.002, 5.0], [0.0] * 20 + [1.0],
        [round(drawn.gauss(0, 1), 3) for _ in range(60)],
        [round(drawn.gauss(0, 1), 1) for _ in range(101)] + [40.0],
    ]  # fmt: skip
    found = []
    for values in lists:
        for counts in ([True] * len(values), [at % 5 != 0 for at in range(len(values))]):
            found += [expected(values, counts, ends) for ends in ("max", "robust", "rank")]
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps(cases(), separators=(",", ":")) + "\n")
