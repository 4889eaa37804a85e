"""Benchmarks on a tiny model. Of the speed suite every method of ours is measured or says why not; no time is compared."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console
from rich.progress import Progress

import lxt_fx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "benchmarks" / folder) for folder in ("speed", "inside")]
import speed_run  # noqa: E402
import switch_off  # noqa: E402
import switch_off_report  # noqa: E402
from speed_bounds import BOUNDS, linear_ratio, time_ratio, verdict  # noqa: E402
from speed_grid import GRIDS, Cell  # noqa: E402
from switch_off_prompts import Prompt  # noqa: E402


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `benchmarks/speed/speed.py --grid tiny` wrote."""
    out = tmp_path_factory.mktemp("speed")
    options = ("--grid", "tiny", "--no-install", "--threads", "1", "--out", str(out))
    command = [sys.executable, "benchmarks/speed/speed.py", *options]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def methods(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(written, "speed.json").read_text())
    (cell,) = found["cells"].values()
    rows: dict[str, Any] = cell["methods"]
    return rows


@pytest.mark.slow
def test_every_method_is_measured_or_says_why_not(methods: dict[str, Any]) -> None:
    for name in ("forward", "plain", "plain_parameters", "plain_last", "ours", "targets_batched", "targets_one_call"):
        assert "why" not in methods[name], methods[name]
        assert len(methods[name]["seconds"]) == 2 and min(methods[name]["seconds"]) > 0
        assert min(methods[name]["cpu_seconds"]) > 0
    for row in methods.values():
        assert row["seconds"] or row["why"]


@pytest.mark.slow
def test_what_transform_cannot_do_is_not_built_rather_than_broken(methods: dict[str, Any]) -> None:
    for name in ("ours_last", "ours_checkpoint"):
        assert methods[name].get("why", "not built").startswith("not built"), methods[name]


@pytest.mark.slow
def test_methods_that_must_agree_agree(methods: dict[str, Any]) -> None:
    compared = [methods[name] for name in ("ours_last", "ours_checkpoint") if "why" not in methods[name]]
    assert all(row["difference"] < 1e-5 for row in compared)
    assert methods["ours"]["difference"] == 0.0
    assert methods["plain"]["difference"] > 0.1  # so the number that is compared says something


@pytest.mark.slow
def test_memory_and_saved_bytes_are_measured(methods: dict[str, Any]) -> None:
    ours = methods["ours"]
    assert ours["held_mib"] > 10 and ours["peak_mib"] >= 0
    # 2 x 12 tokens of 32 floats are 3072 bytes; two layers save some 20 such tensors, and none of the 78 KB of weights.
    assert 4 * 3072 < ours["saved_bytes"] < 25 * 3072
    assert ours["nodes"] > 50


@pytest.mark.slow
def test_the_page_is_written_with_every_bound(written: Path, methods: dict[str, Any]) -> None:
    page = Path(written, "speed.md").read_text()
    assert "ours: attnlrp, eager" in page and "cell not run" in page
    assert page.count("smollm2-128x1 |") >= 10
    assert Path(written, "speed.png").stat().st_size > 5000


def ratios_of(seconds: dict[str, list[float | None]]) -> dict[str, Any]:
    methods = {name: {"seconds": found, "cpu_seconds": found} for name, found in seconds.items()}
    return {"cells": {"smollm2-128x1": {"methods": methods}}, "meta": None}


def test_a_ratio_is_the_median_of_the_quotients_of_one_round() -> None:
    found = ratios_of({"plain": [1.0, 2.0, 4.0, 1.0], "ours": [2.0, 2.0, 2.0, None]})
    ratio = time_ratio(found, "smollm2-128x1", "ours")
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 0.75, 1.5)


def test_lxt_is_compared_by_the_plain_gradient_of_its_own_environment() -> None:
    found = ratios_of({"plain": [1.0], "ours": [0.9], "lxt_plain": [3.0], "lxt": [3.6]})
    ratio = time_ratio(found, "smollm2-128x1", "ours", "lxt")
    assert ratio.value == pytest.approx(0.9 / 1.2)


def test_the_readme_says_the_times_that_were_measured() -> None:
    found = json.loads((ROOT / "docs/speed.json").read_text())
    said = (ROOT / "README.md").read_text().split("## What does it cost?")[1].split("\n## ")[0]
    rows = {"lxt_fx": "ours", 'lxt_fx, `positions="last"`': "ours_last"}
    rows |= {"the same, by `torch.compile`": "ours_last_compiled", "LXT 2.1": "lxt"}
    rows |= {"LXT 2.1, `logits_to_keep=1`": "lxt_last", "autoLRP 0.2": "autolrp"}
    for name, method in rows.items():
        ratios = [time_ratio(found, f"smollm2-{tokens}x1", method).value for tokens in (128, 2048)]
        short, long = ("" if ratio is None else f"{ratio:.2f} " for ratio in ratios)
        assert f"| {name} | {short}| {long}|" in said
    for model, cell in {"MiniLM": "minilm-128x1", "ViT-B/16": "vit-basex1", "GPT-2": "gpt2-128x1"}.items():
        assert f"{time_ratio(found, cell, 'ours').value:.2f} ({model})" in said


def test_a_bound_is_met_up_to_its_limit_and_not_beyond() -> None:
    (bound,) = [bound for bound in BOUNDS if bound.said.startswith("eager, same logits") and bound.cell == "smollm2-128x1"]
    for ours, said in ((1.0, "met"), (1.01, "not met")):
        found = ratios_of({"plain": [1.0], "ours": [ours]})
        assert verdict(bound, bound.measured(found)) == said


@pytest.mark.slow
def test_growth_of_transform_is_its_time_a_node_on_the_largest_graph_over_that_on_the_smallest(written: Path) -> None:
    linear = json.loads(Path(written, "speed.json").read_text())["linear"]
    assert linear["layers"] == [1, 2] and 50 < linear["nodes"][0] < linear["nodes"][1]
    assert all(0 < ours[0] < total[0] for ours, total in zip(linear["after_capture"], linear["total"], strict=True))
    found = {"linear": {"after_capture": [[1.0, 2.0, 4.0], [9.0, 9.0, 9.0], [1.5, 3.0, 5.0]]}}
    assert linear_ratio(found, "after_capture").value == 1.5
    assert linear_ratio({"cells": {}}, "after_capture").why == "not run"


def test_every_bound_is_about_a_cell_of_the_default_grid() -> None:
    cells = {cell.name for cell in GRIDS["default"].cells} | {"meta", "linear"}
    assert {bound.cell for bound in BOUNDS} <= cells
    assert len(cells) == len(GRIDS["default"].cells) + 2  # no two cells of one name: the second would take its place
    for grid in GRIDS.values():
        assert len({cell.name for cell in grid.cells}) == len(grid.cells)


def test_a_missing_environment_is_the_reason_of_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speed_run, "EXTRAS_FOLDER", ROOT / ".cache" / tmp_path.name)
    speed_run.interpreter.cache_clear()
    cell = Cell("llama-tiny", 12, methods=("autolrp",), rounds=2)
    rows = speed_run.measure_times(cell, speed_run.Settings(install=False), lambda said: None)
    speed_run.interpreter.cache_clear()
    assert rows["autolrp"]["why"].startswith("not installed") and rows["autolrp"]["seconds"] == []


def test_a_process_that_dies_is_the_reason_of_its_rows() -> None:
    process = speed_run.Process({"threads": 1}, sys.executable, "")  # no mode: speed_worker.py raises KeyError
    assert process.answer()["why"].startswith("process ended with 1: ")
    assert process.ask("plain")["why"].startswith("process ended with 1: ")


def test_what_switch_off_measures_is_what_a_model_without_these_weights_answers(tmp_path: Path) -> None:
    model = tiny.MODELS["llama"]().eval()
    prompts = prompts_of(model, [[5, 9, 17, 23], [5, 11, 17, 23], [5, 7, 30]])
    found: dict[str, Any] = {"off": {}, "steering": {}, "asked": {"facts": 2, "number": 1, "opposites": 0}}
    found["prompts"] = [asdict(prompt) for prompt in prompts]
    with Progress(disable=True) as progress:
        switch_off.measure(model, prompts, progress, None, found, tmp_path / "switch_off.json")
    assert Path(tmp_path, "switch_off.json").read_text() == json.dumps(found)
    drop = found["off"]["neurons"]["set to 0"]["attnlrp"]["1"][0][:2]
    assert drop == pytest.approx(drop_without_top_neuron(model, prompts[0]), abs=1e-5)
    assert max(map(abs, drop)) > 1e-4
    assert len(found["steering"]["heads"]["all"]["all"]) == 2
    switch_off_report.report(found, tmp_path, Console(quiet=True))
    page = Path(tmp_path, "switch_off.md").read_text()
    assert "| facts | 2 | 2 |" in page and "gradient x activation" in page
    assert Path(tmp_path, "switch_off.png").stat().st_size > 5000


def prompts_of(model: Any, texts: list[list[int]]) -> list[Any]:
    """Two facts that are each other's controls, and a verb; their answers are those of the model."""
    found = []
    for index, ids in enumerate(texts):
        best = model(input_ids=torch.tensor([ids])).logits[0, -1].topk(2).indices.tolist()
        kind, other = ("facts", 1 - index) if index < 2 else ("number", None)
        found.append(Prompt(kind, kind, "", tuple(ids), best[0], best[1], other))
    return found


def drop_without_top_neuron(model: Any, prompt: Any) -> list[float]:
    """How far the logits of answer and control fall in a copy of the model without its most relevant neuron."""
    ids, both = torch.tensor([prompt.ids]), [prompt.answer, prompt.control]
    latent = lxt_fx.latent(lxt_fx.transform(model), {"input_ids": ids}, prompt.answer, "mlp.*.neurons")
    ((place, (unit,)),) = latent.top(1).items()
    without = copy.deepcopy(model)
    with torch.no_grad():
        without.model.layers[int(place.split(".")[1])].mlp.down_proj.weight[:, unit] = 0
        before, after = (each(input_ids=ids).logits[0, -1, both] for each in (model, without))
    drop: list[float] = (before - after).tolist()
    return drop
