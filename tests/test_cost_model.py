"""The cost model of docs/cost.md against what a small Llama costs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[1] / "benchmarks" / "cost" / "cost_model.py"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_flops_are_as_predicted_and_saved_bytes_no_more(attention: str) -> None:
    spec = importlib.util.spec_from_file_location("cost_model", FILE)
    assert spec and spec.loader
    sys.modules["cost_model"] = cost_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cost_model)
    shape = cost_model.Shape(L=2, h=32, H=4, K=2, d=16, m=48, V=64, B=2, T=12)  # heads wider than the hidden size
    guess, (cost, _) = cost_model.predicted(shape, attention), cost_model.measured(shape, attention)
    assert cost.forward == guess.forward
    assert cost.backward == guess.backward
    assert cost.saved <= guess.saved  # leaner ops may save less than the page says, never more
