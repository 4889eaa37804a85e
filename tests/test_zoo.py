"""A sample of the zoo, chosen to hold every op and every family; the whole runs by tests/zoo/run.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "zoo"))
import zoo_check
import zoo_ids
import zoo_models
from zoo_sample import BY_IDS, SAMPLE
from zoo_scaled import scaled_cases
from zoo_table import MARKS

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("entry", [pytest.param(e, id=e, marks=pytest.mark.xdist_group(e)) for e in SAMPLE])
def test_an_architecture_is_captured_explained_and_proven(entry: str) -> None:
    """Strict rules, forward equal, table `gradient` equal to the plain gradient, a closed ledger, two forms that agree.
    Sizes are fixed here, for speed; the command frees them."""
    result = zoo_check.check(entry, dynamic=False, by_ids=False)
    assert all(result.passes.values()), (result.passes, result.unknown, result.why)


@pytest.mark.parametrize("entry", [pytest.param(e, id=e, marks=pytest.mark.xdist_group(e)) for e in BY_IDS])
def test_an_architecture_called_by_ids_answers_as_the_model(entry: str) -> None:
    """On full and on padded texts; padding that the model ignores has no relevance, and a text alone has the same as in a
    batch. The list has models that read their ids more than once, or scale what they look up."""
    result = zoo_ids.check_by_ids((zoo_models.cases() | scaled_cases())[entry])
    assert result.passes, result
    assert result.padding == 0 and result.alone is not None and result.notes == [] or "scaled" not in entry, result.notes


def test_a_wrong_rule_fails_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation that gets its plain gradient under the name of identity: ledger and forms both see it."""
    from dataclasses import replace

    import torch

    import lxt_fx
    from lxt_fx.rule_table import basic_rules as basic

    table = lxt_fx.TABLES["attnlrp"]
    broken = replace(basic.IDENTITY, ops={**basic.IDENTITY.ops, torch.ops.aten.gelu.default: None})
    chosen = tuple(broken if rule is basic.IDENTITY else rule for rule in table.rules)
    monkeypatch.setitem(lxt_fx.TABLES, "attnlrp", replace(table, rules=chosen))
    entry = next(e for e in zoo_models.cases() if e.startswith("bert/"))
    passes = zoo_check.check(entry, dynamic=False, by_ids=False).passes
    assert passes["gradient"] and not passes["residual"]


def test_every_case_of_the_zoo_is_whole() -> None:
    cases = zoo_models.cases()
    assert len(cases) == 349 and set(SAMPLE) <= set(cases)
    assert {case["family"] for case in cases.values()} == {cases[entry]["family"] for entry in SAMPLE}


def test_the_readme_shows_the_summary_of_the_page() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0].strip()
    page = (ROOT / "docs" / "supported_models.md").read_text(encoding="utf-8")
    assert table in page and "| captured as a graph | 349 (100.0%) | 349 |" in table
    assert page.count("| free |") + page.count("| fixed |") + page.count("| - |") >= 349
