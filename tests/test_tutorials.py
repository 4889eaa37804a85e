"""The notebooks of docs/tutorials run, on tiny models; their outputs are those of trained ones, and of this code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

import remake

NOTEBOOKS = sorted(remake.HERE.glob("*.ipynb"))
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Any]]:
    with remake.one_kernel(LXT_FX_MODELS=str(tmp_path_factory.mktemp("no_models"))) as run:
        yield run


@pytest.mark.xdist_group("tutorials")
@names
def test_every_cell_runs_on_tiny_models(path: Path, run: Callable[[Path], Any]) -> None:
    said = [output.get("text", "") for cell in run(path).cells for output in cell.get("outputs", [])]
    assert any("tiny random model" in text for text in said), "a trained model would take minutes here"


@names
def test_outputs_are_those_of_this_code_with_trained_models(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata["lxt_fx"]["outputs_of"] == remake.code_hash(notebook), "python3 dev.py tutorials remakes them"
    assert "tiny random model" not in path.read_text()
    assert any(cell.get("outputs") for cell in notebook.cells)


@names
def test_outputs_are_small_and_say_nothing_of_the_machine_that_made_them(path: Path) -> None:
    text = path.read_text()
    assert path.stat().st_size < 700_000
    assert not re.findall(r"/(?:work|root|home|tmp|usr)/", text)
    assert not re.findall(r"0x[0-9a-f]{8,}", text)
    assert '"name": "stderr"' not in text, "progress bars and warnings of the run"
