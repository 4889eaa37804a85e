"""The ledgers of trained models close: nothing is lost but what a rule accounts for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import flow_smollm2
import ledgers
import lxt_fx
import models

pytestmark = pytest.mark.slow

FLOAT32, FLOAT64 = 1e-4, 1e-9
"""Of the largest relevance; measured at most 4.4e-7 and 5.2e-16."""


def needs(*names: str) -> None:
    """Skip the test unless the models or data sets `names` were fetched."""
    missing = [name for name in names if not (models.cache_folder() / name).is_dir()]
    if missing:
        pytest.skip(f"not in {models.cache_folder()}; to fetch: python3 dev.py models {' '.join(missing)}")
    if "vit_digits" in names:
        pytest.importorskip("sklearn", reason="the digits are in scikit-learn: pip install lxt_fx[models]")


def check(ledger: lxt_fx.Ledger, tolerance: float) -> None:
    """It closes, and something reached the input."""
    ledger.check(tolerance)
    assert max(ledgers.missing(ledger)) <= tolerance
    assert float(ledger.value.abs()) > 0.1
    assert float(ledger.relevance.abs()) > 0.1


@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp"])
@pytest.mark.parametrize("name", ledgers.MODELS)
def test_ledger_of_a_trained_model_closes_in_float32(name: str, rules: str) -> None:
    needs(name)
    model, tokenizer = models.load(name)
    check(ledgers.audit(model, ledgers.case(name, model, tokenizer), rules), FLOAT32)


@pytest.mark.parametrize("name", ledgers.DOUBLE)
def test_ledger_of_a_trained_model_closes_in_float64(name: str) -> None:
    needs(name)
    model, tokenizer = models.load(name)
    model = model.double()
    check(ledgers.audit(model, ledgers.case(name, model, tokenizer), "attnlrp"), FLOAT64)


def test_example_prints_the_ledgers_and_draws_them(tmp_path: Path) -> None:
    needs("minilm", "vit_digits")
    app = typer.Typer()
    app.command()(ledgers.main)
    result = CliRunner().invoke(app, ["--only", "minilm", "--only", "vit_digits", "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "embeddings.position_embeddings.weight" in result.output
    assert "The ledger closes" in result.output
    assert "vit_digits, float64" in result.output
    assert all((tmp_path / f"ledger_{name}.png").stat().st_size > 5000 for name in ("minilm", "vit_digits"))


def test_heads_of_largest_relevance_carry_the_answer(tmp_path: Path, capsys: Any) -> None:
    needs("smollm2", "texts")
    losses = list(flow_smollm2.main(prompts=4, graph=tmp_path / "flow.graphml", out=tmp_path).values())
    largest, same_layers, anywhere, nearest, negative = losses
    for prompt, lost in enumerate(largest):
        assert lost > 1  # of a logit of about 15; measured 1.2 to 12.3 in 16 prompts
        assert lost > max(same_layers[prompt], anywhere[prompt], nearest[prompt], negative[prompt])
    assert "23.4" in capsys.readouterr().out  # the strongest head for Paris
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("flow.graphml", "flow_smollm2.png"))
