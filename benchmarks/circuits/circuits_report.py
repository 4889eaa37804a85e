"""The tables of circuits.py, as Markdown: areas, correlations and their intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lxt_fx.referee.statistics import ends, resampled

REFERENCE, RANDOM = "attnlrp", "random"
Line = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Number:
    """A number of all pairs, and the same of each draw of groups of pairs, [draws]."""

    value: float
    drawn: Tensor

    def said(self, form: str = ".2f") -> str:
        """The number and its 95 % interval."""
        low, high = ends(self.drawn)
        return f"{self.value:{form}} ({low:{form}} to {high:{form}})"

    def less(self, other: Number) -> Number:
        """The difference on the same draws."""
        return Number(self.value - other.value, self.drawn - other.drawn)


def weights_of(groups: Sequence[str]) -> Tensor:
    """How often each pair is in all pairs (first) and in each draw, [1 + draws, pairs]: whole groups are drawn. Equal
    groups have equal draws."""
    return torch.cat([torch.ones(1, len(groups), dtype=torch.float64), resampled(groups)])


def number(found: Tensor) -> Number:
    """Of the values for all pairs (first) and for each draw."""
    return Number(float(found[0]), found[1:])


def areas(lines: Sequence[Line], area: Callable[[Tensor], Tensor]) -> Number:
    """The integral over the sizes, by trapezoids, of a function of the faithfulness of circuits."""
    some = by_pair(lines)
    weights = weights_of([line["group"] for line in some])
    values, clean, corrupted = (
        torch.tensor([line[name] for line in some], dtype=torch.float64) for name in ("values", "clean", "corrupted")
    )
    none = weights @ corrupted
    faithfulness = (weights @ values - none[:, None]) / (weights @ clean - none)[:, None]
    return number(torch.trapezoid(area(faithfulness), torch.tensor(some[0]["sizes"], dtype=torch.float64)))


def correlations(lines: Sequence[Line], patched: Sequence[Line], what: str) -> Number:
    """Pearson's correlation of mean scores with mean true effects, over parts."""
    own, true = by_pair(lines), by_pair(patched)
    weights, names = weights_of([line["group"] for line in own]), list(true[0][what])
    scores, effects = (
        weights @ torch.tensor([[line[what][name] for name in names] for line in some], dtype=torch.float64)
        for some in (own, true)
    )
    scores, effects = (each - each.mean(1, keepdim=True) for each in (scores, effects))
    sizes = scores.square().sum(1).sqrt() * effects.square().sum(1).sqrt()
    return number((scores * effects).sum(1) / sizes)


def by_pair(lines: Sequence[Line]) -> list[Line]:
    """One line for each pair, the last one that was written, in the order of pairs."""
    return [line for _, line in sorted({line["pair"]: line for line in lines}.items())]


def numbers_of(lines: Sequence[Line]) -> dict[str, dict[str, Number]]:
    """By method, CPR, CMD and the correlations of one study. A method that is not measured on all pairs is left out, and so
    is a correlation with patching that is not."""
    patched = defaultdict[str, list[Line]](list)
    for line in lines:
        if line["what"] == "patched":
            patched[line["at"]].append(line)
    most = {what: len({line["pair"] for line in lines if line["what"] == what}) for what in ("scores", "circuits")}
    found = dict[str, dict[str, Number]]()
    for method in dict.fromkeys(line["method"] for line in lines if "method" in line):
        own = [line for line in lines if line.get("method") == method]
        scores = [line for line in own if line["what"] == "scores"]
        curves = {by: [line for line in own if line.get("order") == by] for by in ("signed", "absolute")}
        if method == RANDOM:
            curves["absolute"] = curves["signed"]
        if any(len({line["pair"] for line in each}) < most["circuits"] for each in curves.values()):
            continue
        found[method] = {
            "CPR": areas(curves["signed"], lambda each: each),
            "CMD": areas(curves["absolute"], lambda each: (1 - each).abs()),
        }
        for name, (what, at) in CORRELATIONS.items():
            if scores and {line["pair"] for line in patched[at]} == {line["pair"] for line in scores}:
                found[method][name] = correlations(scores, patched[at], what)
    return found


CORRELATIONS = {
    "heads, noising": ("parts", "clean"),
    "200 neurons, noising": ("neurons", "clean"),
    "heads, denoising": ("parts", "corrupted"),
    "200 neurons, denoising": ("neurons", "corrupted"),
}
"""What is correlated with which patching: noising gives a part of the clean run its corrupted value."""


def tables(lines: Sequence[Line]) -> list[str]:
    """For each study the numbers of all methods, and their differences to the reference."""
    found = []
    for study in dict.fromkeys(line["study"] for line in lines):
        found += _table(study, [line for line in lines if line["study"] == study])
    return found or ["nothing is measured yet"]


def _table(study: str, lines: Sequence[Line]) -> Iterator[str]:
    pairs = {what: {line["pair"] for line in lines if line["what"] == what} for what in ("scores", "circuits")}
    numbers = numbers_of(lines)
    columns = ["CPR", "CMD", *CORRELATIONS]
    yield ""
    yield f"**{study}**: scored on {len(pairs['scores'])} pairs, measured on {len(pairs['circuits'])}; {_seconds(lines)}"
    yield ""
    for title, reference in (("method", None), (f"less {REFERENCE}", numbers.get(REFERENCE))):
        yield f"| {title} | {' | '.join(columns)} |"
        yield f"|---|{'---|' * len(columns)}"
        for method, own in numbers.items():
            if reference is None or method != REFERENCE:
                shown = (_shown(own, reference, name) for name in columns)
                yield f"| {method} | {' | '.join(shown)} |"
        yield ""
        if REFERENCE not in numbers:
            return


def _shown(own: Mapping[str, Number], reference: Mapping[str, Number] | None, name: str) -> str:
    if name not in own or (reference is not None and name not in reference):
        return ""
    return own[name].said() if reference is None else own[name].less(reference[name]).said("+.2f")


def _seconds(lines: Sequence[Line]) -> str:
    """The CPU time of one pair: of scores by one method, of patching, and of circuits by one method and order."""
    said = []
    for what, name in (("scores", "scores of a method"), ("patched", "patching"), ("circuits", "ten circuits")):
        seconds = [line["seconds"] for line in lines if line["what"] == what]
        if seconds:
            said.append(f"{sum(seconds) / len(seconds):.1f} s {name}")
    return f"CPU time a pair: {', '.join(said)}"
