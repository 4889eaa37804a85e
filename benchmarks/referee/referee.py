"""Writes the results of the grids into docs/benchmark.md and docs/benchmark_tables.md: a forest plot of each, and tables.

    python benchmarks/referee/referee.py [FILE ...] [--reference attnlrp] [--docs docs]

Takes a minute. Without files, those in `results/`. They are made by `grids.py`, which takes as long as docs/benchmark.md
says; a file is named by its grid and its model (`core_smollm2.jsonl`, or packed: `core_smollm2.jsonl.gz`).
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import lxt_fx
from lxt_fx.referee.measured import BenchTable, Measured
from lxt_fx.referee.results_text import by_task, cases_said, mean_said, range_said
from lxt_fx.referee.statistics import holm

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results"
BEGIN, END = "<!-- results of benchmarks/referee/referee.py -->", "<!-- end of results -->"
MAIN, REST = "benchmark.md", "benchmark_tables.md"

GRIDS = {
    "core": (MAIN, "Two decoders, three tasks, eight methods"),
    "candidates": (MAIN, "Three candidates for a better table"),
    "norms": (MAIN, "Norms of queries and keys"),
    "methods": (REST, "More methods"),
    "tasks": (REST, "More tasks"),
    "metrics": (REST, "More metrics"),
    "sentences": (REST, "Similarity of sentences"),
    "pictures": (REST, "Pictures"),
}
"""By the name of a grid the page that has it, and its heading there."""

FAMILY = "candidates"
"""The grid whose comparisons are corrected all at once, and stand in one table."""

MOST_TABLES = 12
"""A grid with more tables has one for each model and task, in which every metric is a column."""

MARKS = {"better": " ▲", "worse": " ▼"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the plots beside the pages, and the pages."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="what lxt-fx bench --out wrote")
    parser.add_argument("--reference", default="attnlrp", help="the method that the others are compared with")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="the folder of the pages")
    given = parser.parse_args(arguments)
    files = by_grid(given.files)
    for page in (MAIN, REST):
        parts = [section(grid, files[grid], given) for grid, (place, _) in GRIDS.items() if place == page and grid in files]
        path = given.docs / page
        path.write_text(filled(path.read_text(encoding="utf-8"), "\n\n".join(parts)), encoding="utf-8")
        print(f"wrote {path}")


def by_grid(files: Iterable[Path] = ()) -> dict[str, list[Path]]:
    """The files of each grid, of those in `results/` where none are given; those of the search are none."""
    found: dict[str, list[Path]] = {}
    for path in files or sorted(RESULTS.glob("*.jsonl.gz")):
        grid = path.name.split("_")[0].split(".")[0]
        if grid in GRIDS:
            found.setdefault(grid, []).append(path)
    return found


def section(grid: str, files: Sequence[Path], given: argparse.Namespace) -> str:
    """The heading, the plot of the first metric and the tables of a grid; its files are read as one."""
    results = read(files, given.reference)
    metric = next(iter(results.metrics))
    picture = f"benchmark_{grid}_{metric}.svg"
    results.to_svg(given.docs / picture, metric)
    plot = f"![{metric} minus that of {given.reference}: {said(results, metric)}]({picture})"
    if grid == FAMILY:
        tables = all_at_once(results)
    else:
        tables = by_metric(results) if len(results) > MOST_TABLES else lower(results.to_markdown())
    return "\n".join([f"### {GRIDS[grid][1]}\n", f"{plot}\n", tables])


def read(files: Sequence[Path], reference: str) -> lxt_fx.BenchResults:
    """The results of files, packed or not, as one. Each declares what it holds; what all declare counts once."""
    texts = [(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()).decode() for path in files]
    lines = dict.fromkeys(line for text in texts for line in text.splitlines())
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "results.jsonl"
        plain.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return lxt_fx.read_bench(plain, reference)


def said(results: lxt_fx.BenchResults, metric: str) -> str:
    """What the plot of a metric shows, in words."""
    counts = dict.fromkeys(("better", "worse", "no evidence"), 0)
    for table in results:
        for one in table.measured if table.metric == metric else ():
            if one.paired is not None:
                counts[one.paired.verdict(table.better)] += 1
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def all_at_once(results: lxt_fx.BenchResults) -> str:
    """All comparisons of all tables in one table, corrected for all of them (Holm)."""
    compared = [(table, one) for table in results for one in table.measured if one.paired is not None]
    corrected = holm([one.paired.p for _, one in compared if one.paired is not None])
    columns = (
        "model", "task", "metric", "method", "reference", "minus reference", "95 %", f"p (Holm, all {len(compared)})",
        "verdict", "cases",
    )  # fmt: skip
    rows = [_row(table, one, p, results) for (table, one), p in zip(compared, corrected, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (columns, ("---",) * len(columns), *rows))


def by_metric(results: lxt_fx.BenchResults) -> str:
    """A table for each model and task: the mean of each method under each metric, and whether it differs from that of the
    reference. What did not run stands below."""
    parts = [
        f"Means. ▲ better and ▼ worse than `{results.reference}`, case by case (sign flips by groups, Holm over the "
        "methods of a metric); without a mark there is no evidence of a difference. ↑ higher is better, ↓ lower."
    ]
    for model, task, tables in by_task(results):
        parts += [f"#### {model}, {task} ({cases_said(tables)})", _means(tables)]
    (_, *refused) = results.to_markdown().partition("### What did not run")
    return "\n\n".join(parts) + ("\n\n" + lower("".join(refused)) if any(refused) else "")


def _means(tables: Sequence[BenchTable]) -> str:
    cells: dict[str, dict[str, str]] = {}
    for table in tables:
        for one in table.measured:
            mark = "" if one.paired is None else MARKS.get(one.paired.verdict(table.better), "")
            cells.setdefault(one.method, {})[table.metric] = f"{mean_said(one.found)}{mark}"
    heads = ("method", *(f"{table.metric} {'↑' if table.better == 'higher' else '↓'}" for table in tables))
    rows = [(method.replace("|", r"\|"), *(own.get(table.metric, "") for table in tables)) for method, own in cells.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows))


def _row(table: BenchTable, one: Measured, p: float, results: lxt_fx.BenchResults) -> tuple[str, ...]:
    assert one.paired is not None
    paired = replace(one.paired, holm=p)
    found = paired.difference
    (reference,) = (each.found for each in table.measured if each.method == results.reference)
    numbers = (mean_said(reference), mean_said(found), range_said(found), f"{p:.2g}")
    return (table.model, table.task, table.metric, one.method, *numbers, paired.verdict(table.better), str(found.cases))


def lower(text: str) -> str:
    """Markdown whose headings stand one level deeper."""
    return "\n".join(f"#{line}" if line.startswith("###") else line for line in text.splitlines())


def filled(page: str, text: str) -> str:
    """The page with this text between the two comments. Raises ValueError for a page without them."""
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"the page has no {BEGIN} with {END} behind it")
    return f"{before}{BEGIN}\n\n{text.rstrip()}\n\n{END}{after}"


if __name__ == "__main__":
    main()
