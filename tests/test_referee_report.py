"""`benchmarks/referee/referee.py`: what it writes into the page of docs/, between its two comments."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import bench_parts
import pytest

import lxt_fx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "referee")]
import referee  # noqa: E402


def test_the_page_gets_plots_and_tables_between_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    results = lxt_fx.bench(
        bench_parts.subject(), methods=bench_parts.METHODS, tasks=bench_parts.counting,
        metrics=[bench_parts.drop, bench_parts.gold], cases=5, file=path, reference="gradient",
    )  # fmt: skip
    page = tmp_path / "benchmark.md"
    page.write_text((ROOT / "docs/benchmark.md").read_text())
    around = referee.filled(page.read_text(), "")
    for _ in range(2):
        referee.main([str(path), "--docs", str(tmp_path), "--reference", "gradient"])
    written = page.read_text()
    assert results.to_markdown().rstrip() in written and referee.filled(written, "") == around
    for metric in ("drop", "gold"):
        assert f"](benchmark_run_{metric}.svg)" in written
        assert "<svg" in (tmp_path / f"benchmark_run_{metric}.svg").read_text()
    packed = tmp_path / "run.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    referee.main([str(packed), "--docs", str(tmp_path), "--reference", "gradient"])
    assert page.read_text() == written


def test_the_words_of_a_plot_count_its_verdicts() -> None:
    found = lxt_fx.bench(
        bench_parts.subject(), methods=bench_parts.METHODS, tasks=bench_parts.counting, metrics=bench_parts.drop, cases=2,
        reference="gradient",
    )  # fmt: skip
    assert referee.said(found, "drop") == "0 better, 0 worse, 2 no evidence"


def test_a_page_without_the_comments_is_refused() -> None:
    with pytest.raises(ValueError, match="benchmark.md has no <!-- results"):
        referee.filled("nothing", "x")
