"""Benchmark results as one self-contained page: no scripts, no network, light and dark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from lxt_fx.referee.measured import BenchTable, Measurements
from lxt_fx.referee.near_definition import NOTE
from lxt_fx.referee.plotted import Plot, plot_of, tick_said
from lxt_fx.referee.results_text import (
    HEADINGS,
    MARKS,
    by_task,
    cases_said,
    cells_of,
    origin_said,
    read_said,
    where_said,
)

NUMBERS = frozenset(HEADINGS) - {"method", "verdict"}

NAMES, WIDE, LINE, TOP, FOOT = 118, 340, 22, 6, 22
"""Of a plot, in its own units: the room for names, the whole width, the height of a method, the room above and below."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A method in a plot: where its interval begins and ends, its mean, its line, and what it says."""

    method: str
    said: str
    verdict: str
    y: float
    low: float | None
    high: float | None
    mean: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """A plot in its own units."""

    rows: tuple[Drawn, ...]
    ticks: tuple[tuple[float, str], ...]
    zero: float | None
    width: int
    height: int
    foot: float


@dataclass(frozen=True, slots=True)
class Shown:
    """A table of the page with its plot."""

    table: BenchTable
    lines: tuple[tuple[str, ...], ...]
    verdicts: tuple[str, ...]
    drawing: Drawing | None


def page(results: Measurements) -> str:
    """The page."""
    sections = [
        (model, task, cases_said(tables), [_shown(table, results.reference) for table in tables])
        for model, task, tables in by_task(results)
    ]
    return _template().render(
        results=results, sections=sections, headings=HEADINGS, numbers=NUMBERS, read=read_said(results),
        origin=origin_said(results), counts=list(_counts(results)), marks=MARKS, note=NOTE,
        tasks=list(results.contents.declared["task"].values()), models=list(results.contents.declared["model"].values()),
        missing=[(where_said(one), one.why) for one in results.not_run()],
    )  # fmt: skip


def _shown(table: BenchTable, reference: str | None) -> Shown:
    lines = tuple(cells_of(one, table, reference) for one in table.measured)
    verdicts = tuple("" if one.paired is None else one.paired.verdict(table.better) for one in table.measured)
    plot = plot_of(table)
    return Shown(table, lines, verdicts, None if plot is None else _drawing(plot))


def _drawing(plot: Plot) -> Drawing:
    def x(value: float) -> float:
        return round(NAMES + plot.share(value) * (WIDE - NAMES - 8), 1)

    rows = tuple(
        Drawn(
            row.method, row.said, row.verdict, TOP + LINE * (place + 0.5),
            None if row.found.low != row.found.low else x(row.found.low),
            None if row.found.high != row.found.high else x(row.found.high),
            x(row.found.mean),
        )
        for place, row in enumerate(plot.rows)
    )  # fmt: skip
    foot = TOP + LINE * len(rows)
    ticks = tuple((x(tick), tick_said(tick)) for tick in plot.ticks)
    return Drawing(rows, ticks, x(0) if plot.zero else None, WIDE, foot + FOOT, foot)


def _counts(results: Measurements) -> Iterator[tuple[str, list[Counter[str]]]]:
    """For each method and metric how often it is better and worse than the reference, over models and tasks, and how
    often it computes nearly what the metric asks."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for table in results:
        for one in table.measured:
            if one.paired is not None:
                counts = found.setdefault((one.method, table.metric), Counter())
                counts[one.paired.verdict(table.better)] += 1
                counts[NOTE] += one.near
    for method in results.methods:
        if any(name == method for name, _ in found):
            yield method, [found.get((method, metric), Counter()) for metric in results.metrics]


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files("lxt_fx.referee").joinpath("bench.html.j2").read_text(encoding="utf-8"))
