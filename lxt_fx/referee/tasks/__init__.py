"""The tasks of the referee, one a file: inputs with the number that is explained and, where it is known, what the answer
must rest on. They come from templates of the project; some read files of public data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from lxt_fx.referee.contest import Task
from lxt_fx.referee.tasks import (
    agreement,
    answer_span,
    facts,
    greater_than,
    indirect_object,
    needle,
    next_token,
    patches,
    quadrants,
    sentiment,
    similarity,
    two_hop,
)

TASKS: Mapping[str, Task] = {
    "next_token": next_token.next_token(),
    "facts": facts.facts(),
    "indirect_object": indirect_object.indirect_object(),
    "agreement": agreement.agreement(),
    "needle": needle.needle(),
    "two_hop": two_hop.two_hop(),
    "sentiment": sentiment.sentiment(),
    "answer_span": answer_span.answer_span(),
    "greater_than": greater_than.greater_than(),
    "similarity": similarity.Similarity(),
    "patches": patches.patches(),
    "quadrants": quadrants.quadrants(),
}
"""By name the tasks of the project's own cases."""

FROM_PATH: Mapping[str, Callable[[str | Path], Task]] = {
    "next_token": next_token.next_token,
    "facts": facts.facts,
    "indirect_object": indirect_object.indirect_object,
    "answer_span": answer_span.answer_span,
    "greater_than": greater_than.greater_than,
    "patches": patches.patches,
    "quadrants": quadrants.quadrants,
}
"""By name what reads a task from a file or folder of the user's."""
