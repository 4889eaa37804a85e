"""Benchmark results as text: tables for a terminal, and Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lxt_fx.referee.measured import BenchTable, Measured, Measurements, NotRun
from lxt_fx.referee.near_definition import NOTE
from lxt_fx.referee.statistics import Interval

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

MARKS = {"better": "▲", "worse": "▼", "no evidence": "="}

ROOM, GAP = 80, 3
"""Columns of a table, and between two of its columns."""

INTERVALS = "Intervals: 95 %, percentile bootstrap over cases, or over groups where cases share what they ask about."
COMPARED = (
    " Each method is compared with the reference case by case: ▲ better, ▼ worse, = no evidence of a difference, by sign "
    "flips (a group of cases flips as one), corrected for all methods of a table (Holm)."
)


def read_said(results: Measurements) -> str:
    """How the numbers are read."""
    return INTERVALS + (COMPARED if results.reference is not None else "") + _near_said(results)


def _near_said(results: Measurements) -> str:
    pairs = {(one.method, table.metric): None for table in results for one in table.measured if one.near}
    said = "; ".join(f"{method} computes nearly what {metric} asks" for method, metric in pairs)
    return f" {NOTE[0].upper()}{NOTE[1:]}: {said}, so that its place there is no finding." if said else ""


def number(value: float, spread: float) -> str:
    """A value to two digits of its spread: `6.39` of 6.389 with 0.45; a proper minus sign is used."""
    if not (math.isfinite(spread) and spread > 0):
        return f"{value:.4g}".replace("-", "−")
    digits = min(6, max(0, 1 - math.floor(math.log10(spread))))
    written = f"{value:.{digits}f}"
    return (written.removeprefix("-") if float(written) == 0 else written).replace("-", "−")


def mean_said(found: Interval) -> str:
    """`6.39`."""
    return number(found.mean, _spread(found))


def range_said(found: Interval) -> str:
    """`5.94 to 6.83`; nothing for one case."""
    if math.isnan(found.low):
        return ""
    return f"{number(found.low, _spread(found))} to {number(found.high, _spread(found))}"


def _spread(found: Interval) -> float:
    return (found.high - found.low) / 2


def p_said(p: float) -> str:
    """A corrected p value: `0.012`, `< 0.001`."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def against(one: Measured, table: BenchTable) -> str:
    """`▼ 12 won, 30 lost`."""
    if one.paired is None:
        return ""
    ties = f", {one.paired.ties} tied" if one.paired.ties else ""
    return f"{MARKS[one.paired.verdict(table.better)]} {one.paired.wins} won, {one.paired.losses} lost{ties}"


def cases_said(tables: Sequence[BenchTable]) -> str:
    """`50 cases`, `50 cases in 31 groups`, or `12 to 50 cases` where methods and metrics have not the same."""
    found = [one.found for table in tables for one in table.measured]
    said = _counted("case", [one.cases for one in found])
    alone = all(one.groups == one.cases for one in found)
    return said if alone else f"{said} in {_counted('group', [one.groups for one in found])}"


def _counted(what: str, counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{most} {what}{'' if most == 1 else 's'}" if least == most else f"{least} to {most} {what}s"


def in_groups(found: Interval) -> str:
    """`50`, or `50 in 31 groups`."""
    return f"{found.cases}" if found.groups == found.cases else f"{found.cases} in {_counted('group', [found.groups])}"


def by_task(results: Measurements) -> Iterator[tuple[str, str, list[BenchTable]]]:
    """For each model and task the tables of its metrics."""
    found: dict[tuple[str, str], list[BenchTable]] = {}
    for table in results:
        found.setdefault((table.model, table.task), []).append(table)
    for (model, task), tables in found.items():
        yield model, task, tables


def origin_said(results: Measurements) -> str:
    """The seed and the versions, in a line."""
    versions = ", ".join(f"{name} {version}" for name, version in results.origin.get("versions", {}).items())
    return f"seed {results.origin.get('seed')}, {versions}"


def where_said(one: NotRun) -> str:
    """What did not run: `SmolLM2, facts: lxt_package, gold_recall`."""
    where, what = ", ".join(filter(None, (one.model, one.task))), ", ".join(filter(None, (one.method, one.metric)))
    cases = f" ({one.cases} case{'' if one.cases == 1 else 's'} each)" if one.cases is not None else ""
    return (f"{where}: {what}" if what else where) + cases


def terminal(results: Measurements) -> RenderableType:
    """What is printed: for each model and task methods by metrics, and what did not run."""
    from rich.console import Group
    from rich.text import Text

    found: list[RenderableType] = [Text(f"{results!r}", style="bold"), Text(origin_said(results)), Text(read_said(results))]
    for model, task, tables in by_task(results):
        found += [Text(""), Text(f"{model} · {task} · {cases_said(tables)}", style="bold")]
        for part in _fitting(results, tables):
            found += [Text(""), part]
    if not len(results):
        found += [Text(""), Text("There is no result yet.")]
    if missing := results.not_run():
        found += [Text(""), Text("What did not run", style="bold")]
        found += [Text(f"- {where_said(one)}: {one.why}") for one in missing]
    return Group(*found)


def _fitting(results: Measurements, tables: Sequence[BenchTable]) -> Iterator[Table]:
    """As many metrics beside one another as fit."""
    names = {one.method for table in tables for one in table.measured}
    first = max(map(len, names))
    uneven = len({one.found.cases for table in tables for one in table.measured}) > 1
    columns = [(f"{table.metric}\n{table.better} is better", _cells(results, table, uneven)) for table in tables]
    widths = [max(len(line) for cell in (head, *cells.values()) for line in cell.split("\n")) for head, cells in columns]
    chosen: list[tuple[str, dict[str, str]]] = []
    room = 0
    for column, width in zip(columns, widths, strict=True):
        if chosen and room + GAP + width > ROOM:
            yield _table(results, chosen)
            chosen = []
        room = room + GAP + width if chosen else first + GAP + width
        chosen.append(column)
    yield _table(results, chosen)


def _cells(results: Measurements, table: BenchTable, uneven: bool) -> dict[str, str]:
    found = {}
    for one in table.measured:
        span = f" [{range_said(one.found).replace(' to ', ', ')}]" if range_said(one.found) else ""
        second = "reference" if one.method == results.reference else against(one, table)
        lines = [f"{mean_said(one.found)}{span}", second, NOTE if one.near else "", *(_counts(one.found) if uneven else ())]
        found[one.method] = "\n".join(filter(None, lines))
    return found


def _counts(found: Interval) -> Iterator[str]:
    yield _counted("case", [found.cases])
    if found.groups < found.cases:
        yield f"in {_counted('group', [found.groups])}"


def _table(results: Measurements, columns: Sequence[tuple[str, dict[str, str]]]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("method", overflow="fold")
    for heading, _ in columns:
        table.add_column(Text(heading), justify="right", overflow="fold")
    for method in results.methods:
        if any(method in cells for _, cells in columns):
            table.add_row(Text(method), *(Text(cells.get(method, "")) for _, cells in columns))
    return table


def markdown(results: Measurements) -> str:
    """A table for each model, task and metric, then what did not run."""
    found = [f"{origin_said(results)}. {read_said(results)}", ""]
    for model, task, tables in by_task(results):
        found += [f"### {model}, {task}", ""]
        for table in tables:
            found += [f"**{table.metric}**, {table.better} is better", "", *_markdown_lines(results, table), ""]
    if missing := results.not_run():
        found += ["### What did not run", ""]
        found += [f"- {_piped(where_said(one))}: {_piped(one.why)}" for one in missing]
    return "\n".join(found).rstrip() + "\n"


HEADINGS = (
    "method", "mean", "95 %", "minus reference", "95 %", "won", "lost", "tied", "p (Holm)", "verdict", "cases",
    "cases for 5 %", "CPU s",
)  # fmt: skip


def cells_of(one: Measured, table: BenchTable, reference: str | None) -> tuple[str, ...]:
    """The cells of a method under `HEADINGS`."""
    own = (one.method, mean_said(one.found), range_said(one.found))
    if one.paired is None:
        other = ("", "", "", "", "", "", "reference" if one.method == reference else "no common case" if reference else "")
        needed = ""
    else:
        paired = one.paired
        counts = (str(paired.wins), str(paired.losses), str(paired.ties))
        other = (mean_said(paired.difference), range_said(paired.difference), *counts, p_said(paired.holm),
                 paired.verdict(table.better))  # fmt: skip
        needed = "" if paired.needed is None else str(paired.needed)
    if one.near:
        other = (*other[:-1], ", ".join(filter(None, (other[-1], NOTE))))
    return (*own, *other, in_groups(one.found), needed, f"{one.seconds:.2g}")


def _markdown_lines(results: Measurements, table: BenchTable) -> Iterator[str]:
    yield f"| {' | '.join(HEADINGS)} |"
    yield f"|{'---|' * len(HEADINGS)}"
    for one in table.measured:
        yield f"| {' | '.join(map(_piped, cells_of(one, table, results.reference)))} |"


def _piped(text: str) -> str:
    """Text that ends no cell."""
    return " ".join(text.replace("|", "\\|").split())
