"""`benchmarks/circuits/circuits.py` on a tiny model: what it writes, how it goes on, and whose numbers it reports."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from rich.console import Console

import lxt_fx
from lxt_fx.referee.tasks.patching_pairs import PatchingPair
from lxt_fx.referee.tasks.text_task import NextToken

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks" / "circuits"))
import circuits  # noqa: E402
import circuits_report  # noqa: E402

pytestmark = pytest.mark.usefixtures("captures_in_files")

QUIET = Console(quiet=True)


@pytest.fixture(autouse=True, scope="module")
def two_methods() -> Iterator[None]:
    """Two methods and few neurons: the others have the same path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(circuits, "METHODS", {name: circuits.METHODS[name] for name in ("attnlrp", "EAP")})
        patch.setattr(circuits, "NEURONS", 20)
        patch.setattr(circuits, "BATCH", 2)
        yield


def pairs() -> list[PatchingPair]:
    """Eight pairs in five groups and of two lengths."""
    torch.manual_seed(0)
    target, groups = NextToken((3,), (4, 5)), ("a", "a", "b", "c", "d", "", "d", "b")
    return [
        PatchingPair(*torch.randint(5, 60, (2, 1, 5 + at % 2)), target, ("", ""), group) for at, group in enumerate(groups)
    ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> circuits.Study:
    study = circuits.Study("tiny", pairs(), tmp_path_factory.mktemp("circuits"))
    circuits.run(study, circuits.modules(tiny.llama()), QUIET)
    return study


def written(study: circuits.Study) -> list[str]:
    return Path(study.folder, "circuits.jsonl").read_text().splitlines()


def without_time(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "seconds"}


def test_no_group_is_in_both_halves_and_every_pair_in_one(ran: circuits.Study) -> None:
    first, second = ran.half(0), ran.half(1)
    assert sorted(first + second) == list(range(8)) and first and second
    assert not {ran.group(at) for at in first} & {ran.group(at) for at in second}


def test_each_measurement_of_each_pair_is_one_line(ran: circuits.Study) -> None:
    keys = [(line["what"], line.get("method"), line.get("order"), line.get("at"), line["pair"]) for line in ran.lines]
    first, second = len(ran.half(0)), len(ran.half(1))
    # scores by two methods and patching of two runs; two orders of two methods and one of chance
    assert len(set(keys)) == len(keys) == 4 * first + 5 * second


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(ran: circuits.Study, tmp_path: Path) -> None:
    study = circuits.Study(ran.name, ran.pairs, tmp_path)
    lines = written(ran)
    begun = "".join(f"{line}\n" for line in lines[: len(lines) // 2]) + lines[len(lines) // 2][:40]
    Path(tmp_path, "circuits.jsonl").write_text(begun)
    circuits.run(study, circuits.modules(tiny.llama()), QUIET)
    once = {str(sorted(without_time(line).items())) for line in ran.lines}
    assert {str(sorted(without_time(line).items())) for line in study.lines} == once
    before = written(study)
    circuits.run(study, circuits.modules(tiny.llama()), QUIET)
    assert written(study) == before


def test_areas_are_those_of_the_library_on_the_second_half(ran: circuits.Study) -> None:
    """Circuits by the mean score of the first half, measured on the second, one pair at a time."""
    explained = lxt_fx.transform(tiny.llama(), rules="attnlrp")
    found = [lxt_fx.circuit_scores(explained, *batch, at="clean") for _, batch in ran.batches(ran.half(0))]
    mean = torch.cat([each.edges for each in found]).mean(0)
    numbers = circuits_report.numbers_of(ran.lines)
    for name, by, area in (("CPR", "signed", lambda f: f), ("CMD", "absolute", lambda f: (1 - f).abs())):
        made = circuits.Scored(mean, [0], found[0]).circuits(by)
        sums = torch.zeros(len(made) + 2)
        for at in ran.half(1):
            pair = ran.pairs[at]
            inputs = ({"input_ids": pair.clean}, {"input_ids": pair.corrupted}, pair.target)
            curve = lxt_fx.circuit_faithfulness(explained, *inputs, made)
            sums += torch.cat([curve.values[:, 0], curve.clean, curve.corrupted])
        faithfulness = (sums[:-2] - sums[-1]) / (sums[-2] - sums[-1])
        expected = float(torch.trapezoid(area(faithfulness), torch.tensor(list(made))))
        assert numbers["attnlrp"][name].value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("at", "name"), [("clean", "noising"), ("corrupted", "denoising")])
def test_correlations_are_those_of_mean_scores_and_mean_effects(ran: circuits.Study, at: Any, name: str) -> None:
    explained = lxt_fx.transform(tiny.llama(), rules="gradient")
    scores, effects = list[torch.Tensor](), list[torch.Tensor]()
    for _, batch in ran.batches(ran.half(0)):
        patched = lxt_fx.activation_patching(explained, *batch, "attention.*.heads", at=at)
        found = lxt_fx.circuit_scores(explained, *batch, at="clean")
        scores.append(torch.stack([found.node(part) for part in patched.parts], 1))
        effects.append(patched.effects)
    both = torch.stack([torch.cat(scores).mean(0), torch.cat(effects).mean(0)])
    found = circuits_report.numbers_of(ran.lines)["EAP"][f"heads, {name}"]
    assert found.value == pytest.approx(float(torch.corrcoef(both)[0, 1]), abs=1e-5)
    assert found.value > 0.5  # a tiny model is nearly linear, so true effects are what the gradient says


def test_draws_take_whole_groups_and_the_difference_to_itself_is_none() -> None:
    weights = circuits_report.weights_of(["a", "b", "a", "c"])
    assert torch.equal(weights[0], torch.ones(4, dtype=torch.float64))
    assert torch.equal(weights[:, 0], weights[:, 2]) and not torch.equal(weights[:, 0], weights[:, 1])
    assert set((weights[1:, 0] + weights[1:, 1] + weights[1:, 3]).tolist()) == {3.0}


def test_the_report_has_every_method_its_difference_and_the_cpu_time(ran: circuits.Study) -> None:
    page = "\n".join(circuits_report.tables(ran.lines))
    assert "| attnlrp | " in page and page.count("| EAP | ") == 2 and page.count("| random | ") == 2
    assert "CPU time a pair" in page and "ten circuits" in page
    numbers = circuits_report.numbers_of(ran.lines)
    assert numbers["EAP"]["CPR"].less(numbers["EAP"]["CPR"]).said() == "0.00 (0.00 to 0.00)"


def test_a_method_that_is_not_measured_on_all_pairs_is_left_out(ran: circuits.Study) -> None:
    last = max(ran.half(1))
    some = [line for line in ran.lines if (line.get("method"), line.get("order"), line["pair"]) != ("EAP", "signed", last)]
    assert set(circuits_report.numbers_of(some)) == {"attnlrp", "random"}


def test_what_is_not_measured_on_all_pairs_is_left_out(ran: circuits.Study) -> None:
    last = max(line["pair"] for line in ran.lines if line["what"] == "patched")
    some = [line for line in ran.lines if (line["what"], line.get("at"), line["pair"]) != ("patched", "corrupted", last)]
    assert {*circuits_report.numbers_of(some)["EAP"]} == {"CPR", "CMD", "heads, noising", "200 neurons, noising"}
    assert any(line.startswith("| EAP |") and line.endswith("|  |  |") for line in circuits_report.tables(some))
