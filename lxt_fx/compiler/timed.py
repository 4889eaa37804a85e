"""The time of each step of `transform`, which is shown while it runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from lxt_fx.base.progress import stage

WORDS = {
    "example": "running the model on the example",
    "capture": "capturing the model as a graph",
    "canonicalise": "bringing the ops into canonical form",
    "flow": "finding the values that carry relevance",
    "positions": "selecting positions",
    "placement": "putting weights and moves in their places",
    "groups": "finding norms and activations",
    "assign": "choosing a rule for each op",
    "rewrite": "putting the rules into the graph",
    "form": "writing the backward",
    "module": "fusing ops",
    "checkpoint": "cutting the graph into segments",
    "verify": "comparing the graph with the model",
}
"""What each step does, for a person."""


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Adds the seconds of the block to those of the step."""
    start = time.perf_counter()
    with stage(WORDS[name]):
        yield
    seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - start
