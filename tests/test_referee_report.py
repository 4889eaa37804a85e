"""`benchmarks/referee/referee.py`: what it writes into the pages of docs/, between their two comments."""

from __future__ import annotations

import gzip
import sys
from dataclasses import replace
from pathlib import Path

import bench_parts
import pytest

import lxt_fx
from lxt_fx.referee.statistics import holm

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / "referee")]
import referee  # noqa: E402


def measured(path: Path, name: str = "tiny", seed: int = 0) -> lxt_fx.BenchResults:
    by = replace(bench_parts.subject(), name=name)
    return lxt_fx.bench(
        by, methods=bench_parts.METHODS, tasks=bench_parts.counting, metrics=[bench_parts.drop, bench_parts.gold],
        cases=12 + len(name), file=path, reference="gradient", seed=seed,
    )  # fmt: skip


def pages(folder: Path) -> list[Path]:
    """The pages of docs/ in another folder."""
    found = [folder / name for name in (referee.MAIN, referee.REST)]
    for page in found:
        page.write_text((ROOT / "docs" / page.name).read_text())
    return found


def test_each_page_gets_the_plots_and_tables_of_its_grids_between_its_comments(tmp_path: Path) -> None:
    core, other = tmp_path / "core_tiny.jsonl", tmp_path / "methods_tiny.jsonl"
    results, others = measured(core), measured(other, seed=1)
    found = pages(tmp_path)
    around = [referee.filled(page.read_text(), "") for page in found]
    given = ["--docs", str(tmp_path), "--reference", "gradient"]
    for _ in range(2):
        referee.main([str(core), str(other), str(tmp_path / "search_tiny.jsonl"), *given])
    written = [page.read_text() for page in found]
    for text, same, grid, of in zip(written, around, ("core", "methods"), (results, others), strict=True):
        assert referee.lower(of.to_markdown()).rstrip() in text and referee.filled(text, "") == same
        assert f"](benchmark_{grid}_drop.svg)" in text and f"### {referee.GRIDS[grid][1]}" in text
        assert "<svg" in (tmp_path / f"benchmark_{grid}_drop.svg").read_text()
    packed = tmp_path / "core_tiny.jsonl.gz"
    packed.write_bytes(gzip.compress(core.read_bytes()))
    core.unlink()
    referee.main([str(packed), str(other), *given])
    assert [page.read_text() for page in found] == written


def test_files_of_one_grid_are_one_result(tmp_path: Path) -> None:
    files = [tmp_path / "core_tiny.jsonl", tmp_path / "core_small.jsonl"]
    apart = [measured(path, name) for path, name in zip(files, ("tiny", "small"), strict=True)]
    found = referee.read(files, "gradient")
    assert found.models == ("tiny", "small") and list(found) == [table for each in apart for table in each]


def test_all_comparisons_of_the_candidates_are_corrected_at_once(tmp_path: Path) -> None:
    files = [tmp_path / "candidates_tiny.jsonl", tmp_path / "candidates_small.jsonl"]
    for path, name in zip(files, ("tiny", "small"), strict=True):
        measured(path, name)
    pages(tmp_path)
    referee.main([*map(str, files), "--docs", str(tmp_path), "--reference", "gradient"])
    found = referee.read(files, "gradient")
    compared = [one.paired for table in found for one in table.measured if one.paired is not None]
    lines = (tmp_path / referee.MAIN).read_text().splitlines()
    rows = [line for line in lines if line.startswith(("| tiny |", "| small |"))]
    expected = [f"{p:.2g}" for p in holm([one.p for one in compared])]
    assert [row.split(" | ")[7] for row in rows] == expected and len(rows) == 2 * 2 * 2
    assert expected != [f"{one.holm:.2g}" for one in compared], "each table by itself"


def test_the_words_of_a_plot_count_its_verdicts() -> None:
    found = lxt_fx.bench(
        bench_parts.subject(), methods=bench_parts.METHODS, tasks=bench_parts.counting, metrics=bench_parts.drop, cases=2,
        reference="gradient",
    )  # fmt: skip
    assert referee.said(found, "drop") == "0 better, 0 worse, 2 no evidence"


def test_a_grid_of_many_metrics_has_a_column_for_each_with_marks_of_the_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(referee, "MOST_TABLES", 1)
    results = measured(tmp_path / "metrics_tiny.jsonl")
    pages(tmp_path)
    referee.main([str(tmp_path / "metrics_tiny.jsonl"), "--docs", str(tmp_path), "--reference", "gradient"])
    lines = (tmp_path / referee.REST).read_text().splitlines()
    arrows = [f"{table.metric} {'↑' if table.better == 'higher' else '↓'}" for table in results]
    start = lines.index(f"| method | {' | '.join(arrows)} |")
    cells = {row.split(" | ")[0].strip("| "): row.strip("| ").split(" | ")[1:] for row in lines[start + 2 : start + 5]}
    assert set(cells) == {"gradient", "chance", "last"}
    for column, table in enumerate(results):
        for one in table.measured:
            verdict = None if one.paired is None else one.paired.verdict(table.better)
            mark = {"better": " ▲", "worse": " ▼"}.get(str(verdict), "")
            assert cells[one.method][column] == f"{referee.mean_said(one.found)}{mark}"
    assert any("▼" in cell for row in cells.values() for cell in row) and "▼" not in "".join(cells["gradient"])


def test_a_page_without_the_comments_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has no <!-- results"):
        referee.filled("nothing", "x")
