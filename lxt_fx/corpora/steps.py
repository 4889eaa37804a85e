"""One window of a corpus explained: the step that is written at once, whoever took it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lxt_fx.corpora.explainer import CorpusExplainer
from lxt_fx.corpora.lines import columns_of
from lxt_fx.corpora.stream import Keyed

METADATA = b"lxt_fx"
"""The key of the header in the metadata of each part."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What was found of one window: its name, the table of its lines, and its bad samples as plain values."""

    name: str
    lines: Any
    bad: Sequence[Mapping[str, Any]]


def step_of(window: Sequence[Keyed], explainer: CorpusExplainer, header: Mapping[str, Any]) -> Step:
    """Explains a window."""
    import pyarrow

    lines, bad = explainer.explained([one.sample for one in window])
    occurrences = {one.sample.number: one.occurrence for one in window}
    schema = explainer.schema().with_metadata({METADATA: json.dumps(header, ensure_ascii=False)})
    wrong = [
        {
            "key": each.sample.key, "number": each.sample.number, "reason": each.reason, "content": each.sample.content,
            "occurrence": occurrences[each.sample.number],
        }
        for each in bad
    ]  # fmt: skip
    return Step(name_of(window), pyarrow.Table.from_pylist(list(map(columns_of, lines)), schema=schema), wrong)


def name_of(window: Sequence[Keyed]) -> str:
    """The name of the files of a window: the number of its first sample, so that names have the order of the corpus, and a
    hash of what is in it, so that the same window has the same files."""
    said = "".join(f"{len(one.sample.key)} {one.sample.key} {one.occurrence} {one.sample.content}\n" for one in window)
    return f"{window[0].sample.number:09d}-{hashlib.sha256(said.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
