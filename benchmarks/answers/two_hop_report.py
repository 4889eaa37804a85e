"""The tables of two_hop.py, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from lxt_fx.referee.statistics import Interval, Paired, compared, interval

BETTER = {
    "recall at 10 %": "higher",
    "gold mass": "higher",
    "RISE, whole answer": "lower",
    "MAS, whole answer": "lower",
    "RISE, named words": "lower",
    "MAS, named words": "lower",
}
"""The metrics, and which values are better."""

REFERENCE = "attnlrp, single"
Line = Mapping[str, Any]


def tables(lines: Sequence[Line]) -> list[str]:
    """For each length of answers and for all: the mean of each metric by method with its interval, and the difference to
    the reference on the cases that both have."""
    if not lines:
        return ["no case yet"]
    found, lengths = [], sorted({line["length"] for line in lines})
    for length in [*lengths, None] if len(lengths) > 1 else lengths:
        some = [line for line in lines if length in (None, line["length"])]
        found += ["", *_table("all answers" if length is None else f"answers of about {length} tokens", some)]
    return found


def _table(title: str, lines: Sequence[Line]) -> Iterator[str]:
    hops = {line["case"]: line["hops"] for line in lines}
    groups = {line["case"]: line["group"] for line in lines}
    yield (
        f"**{title}**: {len(hops)} cases in {len(set(groups.values()))} groups; in {sum(hops.values())} the model gives "
        "the words of both hops, too"
    )
    yield ""
    methods = sorted({method for line in lines for method in line["values"]})
    yield from _rows("method", methods, lambda method, name: _mean(lines, groups, method, name))
    yield ""
    others = [method for method in methods if method != REFERENCE]
    yield from _rows(f"less {REFERENCE}", others, lambda method, name: _difference(lines, groups, method, name))


def _rows(title: str, methods: Sequence[str], cell: Callable[[str, str], str]) -> Iterator[str]:
    yield f"| {title} | {' | '.join(BETTER)} |"
    yield f"|---|{'---|' * len(BETTER)}"
    for method in methods:
        yield f"| {method} | {' | '.join(cell(method, name) for name in BETTER)} |"


def _mean(lines: Sequence[Line], groups: Mapping[str, str], method: str, name: str) -> str:
    values = values_of(lines, method, name)
    if not values:
        return ""
    own = interval(torch.tensor(list(values.values()), dtype=torch.float64), [groups[case] for case in values])
    return _said(own, ".3f") + ("" if len(values) == len(groups) else f", {len(values)} cases")


def _difference(lines: Sequence[Line], groups: Mapping[str, str], method: str, name: str) -> str:
    paired = paired_of(lines, groups, method, name)
    return "" if paired is None else f"{_said(paired.difference, '+.3f')}, {paired.wins} won, {paired.losses} lost"


def paired_of(lines: Sequence[Line], groups: Mapping[str, str], method: str, name: str) -> Paired | None:
    """A method against the reference by one metric, on the cases that both have."""
    own, other = (values_of(lines, each, name) for each in (method, REFERENCE))
    return compared(own, other, BETTER[name], groups)


def values_of(lines: Sequence[Line], method: str, name: str) -> dict[str, float]:
    """The metric by case."""
    return {line["case"]: line["values"][method][name] for line in lines if name in line["values"].get(method, {})}


def _said(found: Interval, form: str) -> str:
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"
