"""Writes the results of files of `lxt-fx bench` into docs/benchmark.md: a forest plot of each metric, and the tables.

    python benchmarks/referee/referee.py bench.jsonl other.jsonl.gz [--reference attnlrp] [--docs docs]

Takes seconds; the files are made by `lxt-fx bench --out` or `grids.py`, which take as long as docs/benchmark.md says.
"""

from __future__ import annotations

import argparse
import gzip
import tempfile
from collections.abc import Sequence
from pathlib import Path

import lxt_fx

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- results of benchmarks/referee/referee.py -->", "<!-- end of results -->"


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes the plots beside the page, and the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="what lxt-fx bench --out wrote")
    parser.add_argument("--reference", default="attnlrp", help="the method that the others are compared with")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="the folder of benchmark.md")
    given = parser.parse_args(arguments)
    text = "\n".join(section(path, given.reference, given.docs) for path in given.files)
    page = given.docs / "benchmark.md"
    page.write_text(filled(page.read_text(encoding="utf-8"), text), encoding="utf-8")
    print(f"wrote {page}")


def section(path: Path, reference: str, docs: Path) -> str:
    """The plots and tables of one file."""
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    results = read(path, reference)
    found = []
    for metric in {table.metric: None for table in results}:
        picture = docs / f"benchmark_{name}_{metric}.svg"
        results.to_svg(picture, metric)
        found.append(f"![{metric} minus that of {reference}: {said(results, metric)}]({picture.name})\n")
    return "\n".join([*found, results.to_markdown()])


def read(path: Path, reference: str) -> lxt_fx.BenchResults:
    """The results of a file, packed or not."""
    if path.suffix != ".gz":
        return lxt_fx.read_bench(path, reference)
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / path.stem
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        return lxt_fx.read_bench(plain, reference)


def said(results: lxt_fx.BenchResults, metric: str) -> str:
    """What the plot of a metric shows, in words."""
    counts = dict.fromkeys(("better", "worse", "no evidence"), 0)
    for table in results:
        for one in table.measured if table.metric == metric else ():
            if one.paired is not None:
                counts[one.paired.verdict(table.better)] += 1
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items())


def filled(page: str, text: str) -> str:
    """The page with this text between the two comments. Raises ValueError for a page without them."""
    before, begun, rest = page.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (begun and ended):
        raise ValueError(f"benchmark.md has no {BEGIN} with {END} behind it")
    return f"{before}{BEGIN}\n\n{text.rstrip()}\n\n{END}{after}"


if __name__ == "__main__":
    main()
