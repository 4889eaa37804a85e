"""What the results of a benchmark say: tables, losses, what is missing; in a terminal, as Markdown, on a page, as plots."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch

import lxt_fx
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.referee.measured import BenchTable
from lxt_fx.referee.methods import METHODS as METHODS_KNOWN
from lxt_fx.referee.metrics import METRICS as METRICS_KNOWN
from lxt_fx.referee.near_definition import NEAR, NOTE
from lxt_fx.referee.plotted import plot_of
from lxt_fx.referee.results import BenchResults
from lxt_fx.referee.results_file import Contents, LeftOut, Line
from lxt_fx.referee.results_text import HEADINGS, number
from lxt_fx.referee.statistics import compared, holm, interval

METHODS = {"attnlrp": 3.0, "gim": 2.2, "gradient": 0.5, "a|b<i>": 4.0, "random": 0.0}
CASES = 40


def value(method: str, model: int, case: int, metric: str) -> float:
    random = torch.Generator().manual_seed(1000 * model + case)
    shared, *own = torch.randn(1 + len(METHODS), generator=random, dtype=torch.float64).tolist()
    found = METHODS[method] + shared + 0.5 * own[list(METHODS).index(method)]
    return found if metric == "area" else 1 / (1 + math.exp(found))


def contents(models: int = 2, cases: int = CASES, skip: tuple[str, int] = ("random", 7)) -> Contents:
    found = Contents({"lxt_fx_bench": 1, "seed": 0, "versions": {"torch": "2.13.0", "lxt_fx": "0.2.0"}})
    facts = {"class": "X", "weights": "00ff", "dtype": "float32", "device": "cpu", "unit": "token", "parameters": {"n": 3}}
    for model in range(models):
        found.take({"model": {"name": f"model {model}", **facts}})
    for kind, names in (("task", ("facts", "next")), ("method", METHODS), ("metric", ("area", "rise"))):
        for name in names:
            found.take({kind: {"name": name, **facts, **({"better": {"area": "higher"}.get(name, "lower")})}}
                       if kind == "metric" else {kind: {"name": name, **facts}})  # fmt: skip
    for model in range(models):
        for case in range(cases):
            for method in METHODS:
                if (method, case) == skip:
                    continue
                values = {metric: value(method, model, case, metric) for metric in ("area", "rise")}
                skipped = {"rise": "rise: no mask"} if (method, case) == ("gradient", 3) else {}
                kept = {name: one for name, one in values.items() if name not in skipped}
                found.lines.append(
                    Line(f"model {model}", "facts", case, f"c{case}", "", method, kept, skipped, seconds=0.01 * (case + 1))
                )
    found.left_out.append(LeftOut("model 0", "next is for pictures <b>", task="next"))
    return found


@pytest.fixture(scope="module")
def results() -> BenchResults:
    return BenchResults(contents())


def test_a_table_has_what_the_statistics_say_of_each_method(results: BenchResults) -> None:
    table = results.table("model 0", "facts", "area")
    assert [one.method for one in table.measured] == list(METHODS) and table.better == "higher"
    by = {one.method: one for one in table.measured}
    own = results.values("model 0", "facts", "gim", "area")
    assert own == {f"c{case}": value("gim", 0, case, "area") for case in range(CASES)}
    assert by["gim"].found == interval(torch.tensor(list(own.values()), dtype=torch.float64))
    values = {name: results.values("model 0", "facts", name, "area") for name in METHODS}
    plain = [compared(values[name], values["attnlrp"], "higher") for name in METHODS if name != "attnlrp"]
    others = [one for one in plain if one is not None]
    assert by["attnlrp"].paired is None
    corrected = [one.paired.holm for one in table.measured if one.paired is not None]
    assert corrected == list(holm([one.p for one in others]))
    assert by["random"].paired is not None and by["random"].paired.difference.cases == CASES - 1
    assert by["gim"].seconds == pytest.approx(0.205)


def test_losses_and_wins_are_told_whichever_way_a_metric_counts(results: BenchResults) -> None:
    for metric in ("area", "rise"):
        by = {one.method: one.paired for one in results.table("model 1", "facts", metric).measured}
        assert by["gim"] is not None and by["gim"].losses > by["gim"].wins
        assert by["gim"].verdict(results.metrics[metric]) == "worse"
        assert by["a|b<i>"] is not None and by["a|b<i>"].verdict(results.metrics[metric]) == "better"


def test_results_are_iterated_by_model_task_and_metric(results: BenchResults) -> None:
    assert [(one.model, one.task, one.metric) for one in results] == [
        (f"model {model}", "facts", metric) for model in (0, 1) for metric in ("area", "rise")
    ]
    assert len(results) == 4
    assert repr(results) == (
        "BenchResults(2 models, 2 tasks, 5 methods, 2 metrics, 398 results, reference attnlrp)"
    )


def test_names_that_are_not_there_are_said(results: BenchResults) -> None:
    with pytest.raises(UnknownNameError, match="no metric 'areas' in these results: area, rise"):
        results.values("model 0", "facts", "gim", "areas")
    with pytest.raises(UnknownNameError, match="the reference 'lrp' is none of the methods: attnlrp, gim"):
        BenchResults(contents(), "lrp")
    with pytest.raises(UnknownNameError, match="no metric 'areas'"):
        results.to_png("nowhere.png", "areas")


def test_what_did_not_run_is_said_with_its_reason(results: BenchResults) -> None:
    first, *others = results.not_run()
    assert (first.model, first.task, first.method, first.cases, first.why) == (
        "model 0", "next", "", None, "next is for pictures <b>",
    )  # fmt: skip
    assert [(one.model, one.method, one.metric, one.cases) for one in others] == [
        ("model 0", "gradient", "rise", 1), ("model 1", "gradient", "rise", 1),
    ]  # fmt: skip


def test_what_ran_later_is_no_longer_missing() -> None:
    found = contents(1)
    found.left_out.append(LeftOut("model 0", "gim: not installed", method="gim"))
    found.lines.append(Line("model 0", "facts", 3, "c3", "", "gradient", {"rise": 0.5}))
    assert [one.task for one in BenchResults(found).not_run()] == ["next"]


def test_the_first_of_two_results_counts() -> None:
    found = contents(1)
    found.lines.append(Line("model 0", "facts", 0, "c0", "", "gim", {"area": 99.0}))
    results = BenchResults(found)
    assert results.values("model 0", "facts", "gim", "area")["c0"] == value("gim", 0, 0, "area")
    pytest.importorskip("pandas")
    frame = results.to_dataframe()
    assert 99.0 not in set(frame["value"]) and len(frame) == 2 * (5 * CASES - 1) - 1
    assert list(frame.columns) == ["model", "task", "place", "case", "method", "metric", "value", "seconds", "group"]


def test_without_a_reference_nothing_is_compared(tmp_path: Path) -> None:
    results = BenchResults(contents(1), None)
    results.to_html(tmp_path / "page.html")
    assert "sign flips" not in (tmp_path / "page.html").read_text()
    assert all(one.paired is None for table in results for one in table.measured)
    shown = str(results)
    assert "won" not in shown and "sign flips" not in shown and shown.count("reference") == 1
    plot = plot_of(results.table("model 0", "facts", "area"))
    assert plot is not None and not plot.zero and len(plot.rows) == len(METHODS)


def in_groups() -> Contents:
    found = contents(1)
    found.lines[:] = [replace(line, group=f"g{line.place // 4}" if line.place < 36 else "") for line in found.lines]
    return found


def test_tables_go_by_groups_and_say_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    results, alone = BenchResults(in_groups()), BenchResults(contents(1))
    by = {one.method: one for one in results.table("model 0", "facts", "area").measured}
    groups = {f"c{case}": f"g{case // 4}" for case in range(36)}
    values = {name: results.values("model 0", "facts", name, "area") for name in METHODS}
    expected = compared(values["gim"], values["attnlrp"], "higher", groups)
    assert expected is not None and by["gim"].paired is not None
    assert by["gim"].paired.difference == expected.difference and by["gim"].paired.p == expected.p
    assert (by["gim"].found.cases, by["gim"].found.groups) == (CASES, 13)
    shown = str(results)
    assert "39 to 40 cases in 13 groups" in shown and max(map(len, shown.splitlines())) <= 80
    assert "| 40 in 13 groups |" in results.to_markdown() and "in 13 groups" not in alone.to_markdown()
    results.to_html(tmp_path / "page.html")
    assert "40 in 13 groups" in (tmp_path / "page.html").read_text()
    results.to_svg(tmp_path / "area.svg", "area")
    pytest.importorskip("pandas")
    assert set(results.to_dataframe()["group"]) == {"", *groups.values()}


def test_a_method_that_computes_what_a_metric_asks_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert (type(METHODS_KNOWN["leave_one_out"]).__name__, type(METRICS_KNOWN["leave_one_out_spearman"]).__name__) in NEAR
    found = contents(1)
    found.declared["method"]["gim"]["class"], found.declared["metric"]["rise"]["class"] = next(iter(NEAR))
    results = BenchResults(found)
    assert {(table.metric, one.method) for table in results for one in table.measured if one.near} == {("rise", "gim")}
    results.to_html(tmp_path / "page.html")
    shown, page = str(results), (tmp_path / "page.html").read_text()
    said = "Near the definition: gim computes nearly what rise asks, so that its place there is no finding."
    assert all(said in " ".join(text.split()) for text in (shown, results.to_markdown(), page))
    assert shown.count("near the definition") == 1 and "| worse, near the definition |" in results.to_markdown()
    assert page.count("worse, near the definition") == page.count("worse</span>, near the definition") == 1
    (reference,) = [one for one in BenchResults(found, "gim").to_markdown().splitlines() if "near the definition |" in one]
    assert "| reference, near the definition |" in reference
    assert NOTE not in str(BenchResults(contents(1))).lower()


# numbers


@pytest.mark.parametrize(
    ("given", "spread", "said"),
    [(6.389, 0.45, "6.39"), (-0.4812, 0.28, "−0.48"), (123.4, 25.0, "123"), (0.00012345, 0.0000321, "0.000123"),
     (-0.001, 0.5, "0.00"), (1.0, 0.0, "1"), (0.1234567, math.nan, "0.1235")],
)  # fmt: skip
def test_a_number_has_two_digits_of_its_spread(given: float, spread: float, said: str) -> None:
    assert number(given, spread) == said


# views


def test_the_terminal_has_all_at_80_columns(results: BenchResults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = str(results)
    assert max(map(len, shown.splitlines())) <= 80
    by = {one.method: one for one in results.table("model 0", "facts", "area").measured}
    paired = by["gim"].paired
    assert paired is not None and f"▼ {paired.wins} won, {paired.losses} lost" in shown
    for word in ("model 1 · facts · 39 to 40 cases", "higher is better", "a|b<i>", "reference", "39 cases", "rise: no mask",
                 "What did not run", "seed 0, torch 2.13.0"):  # fmt: skip
        assert word in shown, word
    assert '<table class="listed">' in results._repr_html_()


def test_many_metrics_with_long_names_stay_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    found = contents(1, 5)
    for at in range(7):
        name = f"a_rather_long_metric_{at}"
        found.take({"metric": {"name": name, "better": "higher"}})
        found.lines.append(Line("model 0", "facts", 0, "c0", "", "gim", {name: -1234.5678}))
    shown = str(BenchResults(found))
    assert max(map(len, shown.splitlines())) <= 80 and all(f"a_rather_long_metric_{at}" in shown for at in range(7))


def test_markdown_has_every_method_and_ends_no_cell(results: BenchResults) -> None:
    text = results.to_markdown()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 4 * (2 + len(METHODS))
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {len(HEADINGS) + 1}
    assert "a\\|b<i>" in text and "### model 1, facts" in text and "- model 0, next: next is for pictures <b>" in text


class Tags(HTMLParser):
    """The tags of a page, with what is open at its end."""

    VOID = {"meta", "line", "circle", "path"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_the_page_is_whole_by_itself_and_says_what_plots_show(results: BenchResults, tmp_path: Path) -> None:
    results.to_html(tmp_path / "bench.html")
    page = (tmp_path / "bench.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open and not {"script", "link", "img", "iframe", "b", "i"} & {tag for tag, _ in tags.found}
    assert not re.search(r"""(?:src|href)=["'](?!#)|url\(|@import""", page)
    assert "a|b&lt;i&gt;" in page and "next is for pictures &lt;b&gt;" in page
    plots = [attrs for tag, attrs in tags.found if tag == "svg"]
    assert len(plots) == 4 and all(one["role"] == "img" for one in plots)
    ids = [attrs["id"] for _, attrs in tags.found if attrs.get("id")]
    assert len(set(ids)) == len(ids)
    assert {name for one in plots for name in str(one["aria-labelledby"]).split()} <= set(ids)
    for table in results:
        plot = plot_of(table)
        assert plot is not None
        for row in plot.rows:
            assert row.said.replace("<i>", "&lt;i&gt;") in page
    headers = [attrs for tag, attrs in tags.found if tag == "th"]
    assert headers and all(one.get("scope") in ("col", "row") for one in headers)


def test_a_plot_holds_every_interval_and_the_reference(results: BenchResults) -> None:
    for table in results:
        plot = plot_of(table)
        assert plot is not None and plot.zero and len(plot.rows) == len(METHODS) - 1
        ends = [end for row in plot.rows for end in (row.found.low, row.found.mean, row.found.high)]
        assert all(0 <= plot.share(at) <= 1 for at in (0.0, *plot.ticks, *ends))
        assert len(plot.ticks) >= 2


def test_pictures_are_written(results: BenchResults, tmp_path: Path) -> None:
    results.to_png(tmp_path / "area.png", "area")
    results.to_svg(tmp_path / "area.svg", "area")
    assert (tmp_path / "area.png").read_bytes().startswith(b"\x89PNG") and "<svg" in (tmp_path / "area.svg").read_text()
    first = (tmp_path / "area.svg").read_bytes()
    results.to_svg(tmp_path / "area.svg", "area")
    assert (tmp_path / "area.svg").read_bytes() == first, "the same results give the same file"
    with pytest.raises(InputError, match="width must be at least 3.0 inches"):
        results.to_png(tmp_path / "area.png", "area", width=1)


def edge_cases() -> dict[str, Contents]:
    nothing, one, same = contents(1, 0), contents(1, 1), contents(1, 0)
    for case in range(3):
        for method in ("attnlrp", "gim"):
            same.lines.append(Line("model 0", "facts", case, f"c{case}", "", method, {"area": 1.0}))
    return {"nothing": nothing, "one case": one, "all the same": same}


@pytest.mark.parametrize("name", edge_cases())
def test_few_results_are_shown_too(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    results = BenchResults(edge_cases()[name])
    results.to_html(tmp_path / "page.html")
    texts = [str(results), results.to_markdown(), (tmp_path / "page.html").read_text()]
    assert not any("nan" in text.replace("finance", "") for text in texts)
    assert ("There is no result yet" in texts[0]) == ("There is no result yet" in texts[2]) == (name == "nothing")
    if name == "nothing":
        with pytest.raises(InputError, match="metric area has no result"):
            results.to_png(tmp_path / "x.png", "area")
    else:
        results.to_png(tmp_path / "x.png", "area")
    if name == "all the same":
        assert "= 0 won, 0 lost, 3 tied" in texts[0]


def test_a_table_without_cases_of_the_reference_says_so() -> None:
    found = contents(1, 3)
    found.lines[:] = [line for line in found.lines if line.method != "attnlrp"]
    assert "no common case" in BenchResults(found).to_markdown()


def test_it_is_a_public_result() -> None:
    assert lxt_fx.BenchResults is BenchResults
    table: Any = next(iter(BenchResults(contents(1))))
    assert isinstance(table, BenchTable)
