"""What was measured: means with intervals, each method against the reference, and what did not run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Self

import torch

from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.frames import pandas_for
from lxt_fx.referee.near_definition import is_near
from lxt_fx.referee.results_file import Contents, parsed
from lxt_fx.referee.statistics import Interval, Paired, compared, holm, interval

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True, slots=True)
class Measured:
    """One method under one metric on the cases of one task for one model. `paired` compares it with the reference, and is
    None for the reference itself and where there is nothing to compare. `seconds` is the median CPU time of an
    explanation. `near` says that the method computes nearly what the metric asks, so that its place is no finding."""

    method: str
    found: Interval
    paired: Paired | None
    seconds: float
    near: bool = False


@dataclass(frozen=True, slots=True)
class BenchTable:
    """All methods under one metric, on one task for one model, in the order in which they were named. `better` says which
    way the metric counts."""

    model: str
    task: str
    metric: str
    better: str
    measured: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class NotRun:
    """What did not run and why; what is empty stands for all. `cases` is how many results are missing, None where nothing
    of it ran."""

    model: str
    task: str
    method: str
    metric: str
    cases: int | None
    why: str


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Measurements:
    """The results of a benchmark, without their views."""

    contents: Contents
    reference: str | None = "attnlrp"
    _values: dict[tuple[str, str, str, str], dict[str, float]] = field(default_factory=dict, init=False)
    _groups: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict, init=False)
    _seconds: dict[tuple[str, str, str], list[float]] = field(default_factory=dict, init=False)
    _tables: dict[tuple[str, str, str], BenchTable] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.reference is not None and self.reference not in self.methods:
            raise UnknownNameError(
                f"bench: the reference {self.reference!r} is none of the methods: {', '.join(self.methods)}; name one of "
                "them, or None to compare nothing"
            )
        for line in self.contents.lines:
            self._groups.setdefault((line.model, line.task), {}).setdefault(line.case, line.group)
            for metric, value in line.values.items():
                # what two processes wrote at once is there twice: the first counts
                self._values.setdefault((line.model, line.task, line.method, metric), {}).setdefault(line.case, value)
            if line.values:
                self._seconds.setdefault((line.model, line.task, line.method), []).append(line.seconds)

    @classmethod
    def load(cls, path: str | Path, reference: str | None = "attnlrp") -> Self:
        """The results of a file. Raises InputError for one that is not there or holds no results."""
        try:
            data = Path(path).read_bytes()
        except OSError as error:
            raise InputError(f"bench: {path} cannot be read: {error.strerror or error}") from error
        contents, _ = parsed(data, Path(path))
        if not contents.header:
            raise InputError(f"bench: {path} is empty; it holds results when lxt_fx.bench has begun")
        return cls(contents, reference)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models."""
        return tuple(self.contents.declared["model"])

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks."""
        return tuple(self.contents.declared["task"])

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of the methods."""
        return tuple(self.contents.declared["method"])

    @property
    def metrics(self) -> dict[str, str]:
        """By the name of each metric which way is better: `higher` or `lower`."""
        return {name: str(one["better"]) for name, one in self.contents.declared["metric"].items()}

    @property
    def origin(self) -> Mapping[str, Any]:
        """The seed, and the versions of the packages."""
        return {name: value for name, value in self.contents.header.items() if name in ("seed", "versions")}

    def values(self, model: str, task: str, method: str, metric: str) -> dict[str, float]:
        """The metric by the key of each case. Raises UnknownNameError for a name that is none of these results."""
        for kind, name, names in (
            ("model", model, self.models), ("task", task, self.tasks), ("method", method, self.methods),
            ("metric", metric, tuple(self.metrics)),
        ):  # fmt: skip
            if name not in names:
                raise UnknownNameError(f"bench: there is no {kind} {name!r} in these results: {', '.join(names)}")
        return dict(self._values.get((model, task, method, metric), {}))

    def table(self, model: str, task: str, metric: str) -> BenchTable:
        """All methods that were measured under a metric. The tests of one table are corrected together (Holm). Raises as
        `values`."""
        key = (model, task, metric)
        if key not in self._tables:
            self._tables[key] = self._table(*key)
        return self._tables[key]

    def _table(self, model: str, task: str, metric: str) -> BenchTable:
        better, found = self.metrics.get(metric, ""), []
        reference = {} if self.reference is None else self.values(model, task, self.reference, metric)
        groups, declared = self._groups.get((model, task), {}), self.contents.declared
        for method in self.methods:
            own = self.values(model, task, method, metric)
            if own:
                paired = None if method == self.reference else compared(own, reference, better, groups)
                values = torch.tensor(list(own.values()), dtype=torch.float64)
                mean = interval(values, [groups[case] for case in own])
                near = is_near(declared["method"][method], declared["metric"][metric])
                found.append(Measured(method, mean, paired, median(self._seconds[model, task, method]), near))
        corrected = iter(holm([one.paired.p for one in found if one.paired is not None]))
        measured = (
            one if one.paired is None else replace(one, paired=replace(one.paired, holm=next(corrected))) for one in found
        )
        return BenchTable(model, task, metric, better, tuple(measured))

    def __iter__(self) -> Iterator[BenchTable]:
        for model in self.models:
            for task in self.tasks:
                for metric in self.metrics:
                    if (found := self.table(model, task, metric)).measured:
                        yield found

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True

    def not_run(self) -> tuple[NotRun, ...]:
        """What did not run, and why: tasks and methods that are not for a model, methods that refused cases, and metrics
        that could not judge them."""
        tasks = {(line.model, line.task) for line in self.contents.lines}
        methods = {(line.model, line.method) for line in self.contents.lines}
        found = [
            NotRun(one.model, one.task, one.method, "", None, one.why)
            for one in self.contents.left_out
            if ((one.model, one.method) not in methods if one.method else (one.model, one.task) not in tasks)
        ]
        missing: dict[tuple[str, str, str, str], Counter[str]] = {}
        for line in self.contents.lines:
            reasons = {**dict(line.skipped), **({"": line.refused} if line.refused else {})}
            for metric, why in reasons.items():
                if line.case not in self._values.get((line.model, line.task, line.method, metric), {}):
                    missing.setdefault((line.model, line.task, line.method, metric), Counter())[why] += 1
        ran: dict[tuple[str, str], set[str]] = {}
        for line in self.contents.lines:
            ran.setdefault((line.model, line.task), set()).add(line.method)
        return (*found, *_joined(missing, ran))

    def to_dataframe(self) -> DataFrame:
        """A line for each model, task, case, method and metric, with its value, the CPU seconds of the explanation and the
        group of the case (empty: the case alone). Raises InputError if pandas is not installed."""
        pandas = pandas_for()
        columns = ("model", "task", "place", "case", "method", "metric", "value", "seconds", "group")
        rows = [
            (line.model, line.task, line.place, line.case, line.method, metric, value, line.seconds, line.group)
            for line in self.contents.lines
            for metric, value in line.values.items()
        ]
        frame = pandas.DataFrame(rows, columns=list(columns))
        return frame.drop_duplicates(list(columns[:6]), ignore_index=True)

    def __repr__(self) -> str:
        kinds = (("model", self.models), ("task", self.tasks), ("method", self.methods), ("metric", self.metrics))
        counts = ", ".join(f"{len(names)} {kind}{'' if len(names) == 1 else 's'}" for kind, names in kinds)
        results = len({(line.model, line.task, line.case, line.method) for line in self.contents.lines})
        return f"BenchResults({counts}, {results} result{'' if results == 1 else 's'}, reference {self.reference})"


def _joined(
    missing: Mapping[tuple[str, str, str, str], Counter[str]], ran: Mapping[tuple[str, str], set[str]]
) -> Iterator[NotRun]:
    """What is missing for one reason of several methods is one line, which names no method if it is all that `ran`. Of
    several reasons the most frequent one."""
    said: dict[tuple[str, str, str, str, int], list[str]] = {}
    for (model, task, method, metric), whys in missing.items():
        (why, _), *others = whys.most_common()
        more = f" (and {len(others)} other reason{'s' * (len(others) > 1)})" if others else ""
        said.setdefault((model, task, metric, f"{why}{more}", whys.total()), []).append(method)
    for (model, task, metric, why, cases), methods in said.items():
        every = metric and len(methods) > 1 and set(methods) == ran[model, task]
        yield NotRun(model, task, "" if every else ", ".join(methods), metric, cases, why)
