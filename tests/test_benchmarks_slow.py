"""The benchmarks of faithfulness in their quick sizes: attnlrp must lead plain gradients and chance by far."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import lxt_fx
import models
from lxt_fx.referee.tasks.next_token import next_token

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def skip_without(*needed: str) -> None:
    """Skips the test unless what it needs was fetched."""
    if missing := [name for name in needed if not (models.cache_folder() / name).is_dir()]:
        pytest.skip(f"not in {models.cache_folder()}; to fetch: python3 dev.py models {' '.join(missing)}")


def quick(script: str, out: Path, needed: tuple[str, ...], *options: str) -> Any:
    """What that script of benchmarks/ wrote as JSON, in its quick size; skips the test unless what it needs was fetched."""
    skip_without(*needed)
    command = [sys.executable, f"benchmarks/{script}/{script}.py", "--quick", "--out", str(out), *options]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    return json.loads(Path(out, f"{script}.json").read_text())


def test_attnlrp_is_more_faithful_than_gradients_and_chance() -> None:
    skip_without("smollm2")
    methods, task = ("attnlrp", "gradient", "random"), replace(next_token(), part="development")
    found = lxt_fx.bench(models.fetch("smollm2"), methods=methods, tasks=task, metrics="area", cases=24)
    (table,) = found
    others = [one for one in table.measured if one.method != "attnlrp"]
    assert [one.paired and one.paired.verdict("higher") for one in others] == ["worse", "worse"], str(found)


def test_a_contrast_finds_the_subject_of_a_fact(tmp_path: Path) -> None:
    skip_without("smollm2", "gemma3")
    command = [sys.executable, "benchmarks/faithfulness/remedies.py", "--quick", "--out", str(tmp_path / "found.json")]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    means = json.loads(Path(tmp_path, "found.json").read_text())["smollm2"]["means"]
    plain, contrast = (means[f"attnlrp, {value}"]["any token"][0] for value in ("logit", "logit less the others'"))
    assert contrast > plain and means["attnlrp, logit less the others'"]["neither first nor last"][0] > 70


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_relevance_of_small_vision_transformers_is_faithful(name: str, tmp_path: Path) -> None:
    data = {"digits": ("vit_digits",), "fashion": ("vit_fashion", "fashion")}[name]
    found = quick("vision", tmp_path, data, "--model", name)[name]["methods"]
    area = {method: row["area"][0] for method, row in found.items()}
    # Measured on all images: 4.9 and 5.0; 2.0 and 3.2; 0.05 and 0.13, with standard errors up to 0.15.
    assert min(area["attnlrp"], area["attnlrp_gamma"]) > 4
    assert area["attnlrp"] > area["gradient"] + 1 and area["random"] < 1
    assert area["attnlrp"] > area["cp_lrp"] + 0.5
    assert Path(tmp_path, f"vision_{name}.png").stat().st_size > 5000
    assert Path(tmp_path, "vision_curves.png").stat().st_size > 5000


def test_relevance_of_a_saliency_model_is_faithful(tmp_path: Path) -> None:
    found = quick("vision", tmp_path, ("dino_saliency", "photos"), "--model", "saliency")["saliency"]["methods"]
    area = {method: row["area"][0] for method, row in found.items()}
    # Two photos only; on 27: 1.29, 0.94, 0.09 and 0.01 with standard errors of 0.16, 0.10, 0.10 and 0.04.
    assert area["attnlrp_gamma"] > max(area["gradient"], area["random"]) + 0.3
    assert Path(tmp_path, "vision_saliency.png").stat().st_size > 5000
