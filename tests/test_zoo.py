"""A sample of the zoo that holds every family; a larger one with most ops is in the longer run, and the whole runs by
tests/zoo/run.py."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lxt_fx

sys.path.insert(0, str(Path(__file__).parent / "zoo"))
import zoo_check
import zoo_ids
import zoo_models
from zoo_sample import LONGER, SAMPLE
from zoo_scaled import scaled_cases
from zoo_table import MARKS

ROOT = Path(__file__).parents[1]


def each(entries: Iterable[str], *marks: pytest.MarkDecorator) -> list[Any]:
    """Parameters for `parametrize`, each a group of its own."""
    return [pytest.param(entry, id=entry, marks=(pytest.mark.xdist_group(entry), *marks)) for entry in entries]


@pytest.mark.parametrize("entry", [*each(SAMPLE), *each(LONGER, pytest.mark.slow("more ops in whole models"))])
def test_an_architecture_is_captured_explained_and_proven(entry: str) -> None:
    """Strict rules, forward equal, table `gradient` equal to the plain gradient, a closed ledger, two forms that agree.
    Sizes are fixed here, for speed; the command frees them."""
    result = zoo_check.check(entry, dynamic=False, by_ids=False)
    assert all(result.passes.values()), (result.passes, result.unknown, result.why)


BY_IDS = (
    "m2m_100, scaled",  # scales what it looks up, and counts positions from the padding
    "gemma2 for classification, scaled",  # finds the last word by the ids
    "canine/CanineModelTest",  # looks up eight hashes of each token
    "ctrl/CTRLModelTest",  # looks token types up in the table of the tokens
)


@pytest.mark.parametrize("entry", each(BY_IDS))
def test_an_architecture_called_by_ids_answers_as_the_model(entry: str) -> None:
    """On full and on padded texts; padding that the model ignores has no relevance, and a text alone has the same as in a
    batch."""
    result = zoo_ids.check_by_ids((zoo_models.cases() | scaled_cases())[entry])
    assert result.passes and {"full", "right", "left"} <= set(result.forward), result
    assert result.padding == 0, result
    assert result.alone is not None or result.length is False, result


def test_the_check_by_ids_sees_a_call_that_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lookup that is scaled once the module is made; before that, `transform` would refuse it."""
    from lxt_fx.passes.canonical.cut_at_lookups import Front

    lookup, batches, made = Front.__call__, zoo_ids.batches, list[bool]()

    def after(*args: object) -> object:
        made.append(True)
        return batches(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(Front, "__call__", lambda front, given: lookup(front, given) * (1.1 if made else 1.0))
    monkeypatch.setattr(zoo_ids, "batches", after)
    result = zoo_ids.check_by_ids(scaled_cases()["xglm, scaled"])
    assert not result.passes and result.forward["as given"] > zoo_ids.FORWARD


def test_a_wrong_rule_fails_the_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An activation that gets its plain gradient under the name of identity: ledger and forms both see it."""
    from dataclasses import replace

    from lxt_fx.rule_table import basic_rules as basic

    table = lxt_fx.TABLES["attnlrp"]
    broken = replace(basic.IDENTITY, ops={**basic.IDENTITY.ops, torch.ops.aten.gelu.default: None})
    chosen = tuple(broken if rule is basic.IDENTITY else rule for rule in table.rules)
    monkeypatch.setitem(lxt_fx.TABLES, "attnlrp", replace(table, rules=chosen))
    entry = next(e for e in zoo_models.cases() if e.startswith("bert/"))
    passes = zoo_check.check(entry, dynamic=False, by_ids=False).passes
    assert passes["gradient"] and not passes["residual"]


class Codec(nn.Module):
    """Looks up the codes of a sound in a codebook that is a buffer, as Mimi does."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Buffer(torch.randn(5, 3))
        self.decoder = nn.Linear(3, 2)

    def forward(self, input_values: Tensor) -> Tensor:
        codes = torch.cdist(input_values, self.codebook).argmin(-1)
        return self.decoder(torch.nn.functional.embedding(codes, self.codebook))


@pytest.mark.parametrize("factor", (1.0, 1.1))
def test_the_gradient_is_compared_at_a_codebook_that_is_a_buffer(factor: float) -> None:
    """The check found no table; and it sees a gradient that is another."""
    torch.manual_seed(0)
    model, inputs = Codec().eval().requires_grad_(False), {"input_values": torch.randn(2, 4, 3)}
    other = copy.deepcopy(model)
    other.codebook = model.codebook
    other.decoder.weight *= factor
    explained = lxt_fx.transform(other, kwargs=inputs, rules="gradient")
    found = zoo_check._gradient_difference(model, explained, inputs, zoo_check.Result("codec", "Codec", ""))
    assert found == pytest.approx(factor - 1, abs=1e-6)


def test_every_case_of_the_zoo_is_whole() -> None:
    cases = zoo_models.cases()
    assert len(cases) == 349 and {*SAMPLE, *LONGER} <= set(cases)
    assert {case["family"] for case in cases.values()} == {cases[entry]["family"] for entry in SAMPLE}


def test_the_readme_shows_the_summary_of_the_page() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8").split(MARKS[0])[1].split(MARKS[1])[0].strip()
    page = (ROOT / "docs" / "supported_models.md").read_text(encoding="utf-8")
    assert table in page and "| captured as a graph | 349 (100.0%) | 349 |" in table
    assert page.count("| free |") + page.count("| fixed |") + page.count("| - |") >= 349
