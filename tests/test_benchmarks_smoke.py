"""The speed suite runs on a tiny model: every method of ours is measured or says why not. No time is compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `benchmarks/speed.py --grid tiny` wrote."""
    out = tmp_path_factory.mktemp("speed")
    command = [sys.executable, "benchmarks/speed.py", "--grid", "tiny", "--no-install", "--threads", "1", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def methods(written: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(written, "speed.json").read_text())
    (cell,) = found["cells"].values()
    rows: dict[str, Any] = cell["methods"]
    return rows


def test_every_method_is_measured_or_says_why_not(methods: dict[str, Any]) -> None:
    for name in ("forward", "plain", "plain_parameters", "plain_last", "ours", "targets_batched"):
        assert "why" not in methods[name], methods[name]
        assert len(methods[name]["seconds"]) == 2 and min(methods[name]["seconds"]) > 0
    for row in methods.values():
        assert row["seconds"] or row["why"]


def test_what_transform_cannot_do_is_not_built_rather_than_broken(methods: dict[str, Any]) -> None:
    for name in ("ours_last", "ours_checkpoint"):
        assert methods[name].get("why", "not built").startswith("not built"), methods[name]


def test_methods_that_must_agree_agree(methods: dict[str, Any]) -> None:
    compared = [methods[name] for name in ("ours_last", "ours_checkpoint") if "why" not in methods[name]]
    assert all(row["difference"] < 1e-5 for row in compared)
    assert methods["ours"]["difference"] == 0.0
    assert methods["plain"]["difference"] > 0.1  # so the number that is compared says something


def test_memory_and_saved_bytes_are_measured(methods: dict[str, Any]) -> None:
    ours = methods["ours"]
    assert ours["held_mib"] > 10 and ours["peak_mib"] >= 0
    # 2 x 12 tokens of 32 floats are 3072 bytes; two layers save several such tensors, and no weight of 64 x 32.
    assert 10 * 3072 < ours["saved_bytes"] < 100 * 3072
    assert ours["nodes"] > 50


def test_the_page_is_written_with_every_bound(written: Path, methods: dict[str, Any]) -> None:
    page = Path(written, "speed.md").read_text()
    assert "ours: attnlrp, eager" in page and "cell not run" in page
    assert page.count("smollm2-128x1 |") >= 10
    assert Path(written, "speed.png").stat().st_size > 5000
