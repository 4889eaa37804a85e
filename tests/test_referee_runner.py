"""A contest as it runs: what is shared, what is left out and why, and a file that goes on after any stop."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import bench_parts
import pytest
import torch
from bench_parts import Counting, Drop, Gold, LastOnly, NeverHere, NotEven, subject
from tiny_text import byte_tokenizer, llama
from torch import Tensor, nn

import lxt_fx
from lxt_fx.base.errors import InputError, LxtFxError, NonFiniteError, UnknownNameError
from lxt_fx.referee import named
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain, Judged, NotForThisError
from lxt_fx.referee.declared import path_hash
from lxt_fx.referee.given_models import subjects_of
from lxt_fx.rule_table.tables import TABLES

TESTS = Path(__file__).parent
PARTS: dict[str, Any] = {
    "methods": bench_parts.METHODS, "tasks": Counting(), "metrics": [Drop(), Gold()], "reference": None
}  # fmt: skip


def bench(models: Any = None, **changed: Any) -> lxt_fx.BenchResults:
    return lxt_fx.bench(subject() if models is None else models, **{**PARTS, "cases": 4, **changed})


def written(path: Path) -> list[dict[str, Any]]:
    """The lines of a file without their seconds."""
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for line in found:
        line.get("result", {}).pop("seconds", None)
    return found


def results(path: Path) -> list[tuple[str, str, str, str]]:
    lines = [line["result"] for line in written(path) if "result" in line]
    return [(one["model"], one["task"], one["case"], one["method"]) for one in lines]


# what runs


def test_every_method_of_a_case_stands_together() -> None:
    models = [subject("one"), subject("two", 1)]
    found = bench(models, tasks=[Counting(), Counting("again", 4)]).contents.lines
    order = [(one.model, one.task, one.case, one.method) for one in found]
    assert order == [
        (model, task, f"c{case}", method)
        for model in ("one", "two") for task in ("counting", "again") for case in range(4)
        for method in ("gradient", "chance", "last")
    ]  # fmt: skip
    assert all(set(one.values) == {"drop", "gold"} and one.seconds >= 0 for one in found)


def test_values_are_those_of_a_loop_by_hand() -> None:
    one, task = subject(), Counting()
    found = bench(one)
    for case in task.cases(one, 4, 0):
        leaf = one.leaf(case)
        whole, without = one.model(inputs_embeds=leaf), leaf.clone()
        without[0, -1] = 0
        expected = (whole.logits - one.model(inputs_embeds=without).logits)[0, 0].item()
        assert found.values("net", "counting", "last", "drop")[case.key] == pytest.approx(expected, rel=1e-5)
        leaf.requires_grad_(True)
        (slope,) = torch.autograd.grad(one.model(inputs_embeds=leaf).logits[0, 0], leaf)
        most = int((leaf * slope).sum(-1)[0].argmax())
        assert found.values("net", "counting", "gradient", "gold")[case.key] == float(most == 4)


def test_a_method_is_prepared_once_a_model_and_answers_are_shared() -> None:
    seen: list[Any] = []

    class Watched(LastOnly):
        def prepare(self, subject: Any) -> Explain:
            seen.append(subject.name)
            return super().prepare(subject)

    class Asks:
        name, better = "asks", "higher"

        def of(self, judged: Judged) -> float:
            answers.append(id(judged.answers))
            kept.append(judged.answers)
            return 0.0

    answers: list[int] = []
    kept: list[Any] = []
    bench([subject("one"), subject("two")], methods={"a": Watched(), "b": LastOnly()}, metrics=[Asks()])
    assert seen == ["one", "two"]
    assert len(answers) == 16 and len(set(answers)) == 8 and answers[0::2] == answers[1::2]


def test_a_metric_may_ask_the_method_about_another_model() -> None:
    model, prepared = subject("other", 5).model, list[str]()

    class Watched(LastOnly):
        def prepare(self, subject: Any) -> Explain:
            prepared.append(subject.name)
            return lambda case: subject.leaf(case)

    class Sanity:
        name, better = "sanity", "lower"

        def of(self, judged: Judged) -> float:
            other = replace(judged.subject, name="other", model=model)  # a new Subject each time
            expected = other.leaf(judged.case).sum(-1)[0].double()
            torch.testing.assert_close(judged.explain_with(other), expected)
            return float((judged.relevance - expected).abs().sum())

    found = bench(methods={"w": Watched()}, metrics=[Sanity()])
    assert all(value > 0 for value in found.values("net", "counting", "w", "sanity").values())
    assert prepared == ["net", "other"]


def test_few_preparations_are_held_for_other_models_and_that_of_the_contest_always() -> None:
    prepared: list[str] = []

    class Watched(LastOnly):
        def prepare(self, subject: Any) -> Explain:
            prepared.append(subject.name)
            return super().prepare(subject)

    class Sanity:
        name, better = "sanity", "lower"

        def of(self, judged: Judged) -> float:
            for seed in range(5):
                judged.explain_with(subject(f"other {seed}", seed))
            return 0.0

    bench(methods={"w": Watched()}, metrics=[Sanity()], cases=3)
    assert prepared.count("net") == 1 and len(prepared) == 16


def test_what_a_part_remembers_is_none_of_its_parameters(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Remembering(Drop):
        seen: list[str] = field(default_factory=list, compare=False)

        def of(self, judged: Judged) -> float:
            self.seen.append(judged.case.key)
            return super().of(judged)

    metric = Remembering()
    bench(metrics=[metric], file=tmp_path / "out.jsonl")
    assert metric.seen
    bench(metrics=[metric], file=tmp_path / "out.jsonl")


def test_the_model_and_the_state_of_torch_stay_as_they_were() -> None:
    one = subject()
    one.model.train()
    next(one.model.parameters()).requires_grad_(False)
    flags = [(p.requires_grad, p.grad) for p in one.model.parameters()]

    def greedy(model: nn.Module, inputs: Any, value: Any) -> Tensor:
        assert not model.training and torch.is_grad_enabled()
        leaf = inputs["inputs_embeds"]
        value(model(**inputs)).sum().backward(inputs=[leaf])
        return leaf * leaf.grad

    torch.manual_seed(7)
    state = torch.get_rng_state()
    with torch.no_grad():
        bench(one, methods=[greedy, bench_parts.chance])
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state) and all(module.training for module in one.model.modules())
    assert [(p.requires_grad, p.grad) for p in one.model.parameters()] == flags


def test_chance_is_the_same_whatever_ran_before() -> None:
    alone = bench(methods={"chance": bench_parts.chance})
    assert alone.values("net", "counting", "chance", "drop") == bench().values("net", "counting", "chance", "drop")


# what does not run


def test_what_is_not_for_a_model_is_left_out_and_said(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    parts = {"methods": [NeverHere(), LastOnly(), NotEven()], "tasks": [Counting(), Counting("none", most=0)]}
    found = bench([subject("text"), subject("sight", kind="image")], **parts, file=path)
    said = {(one.model, one.task, one.method, one.metric): (one.cases, one.why) for one in found.not_run()}
    assert said == {
        ("text", "", "never", ""): (None, "never: a package is missing"),
        ("text", "none", "", ""): (None, "the model can be asked none of its cases"),
        ("sight", "counting", "", ""): (None, "counting is for language models"),
        ("sight", "none", "", ""): (None, "none is for language models"),
        ("text", "counting", "not_even", ""): (2, "not_even: the number is even"),
    }
    assert set(found.values("text", "counting", "not_even", "drop")) == {"c1", "c3"}
    before = path.read_bytes()
    bench([subject("text"), subject("sight", kind="image")], **parts, file=path)
    assert path.read_bytes() == before


def test_a_metric_that_cannot_judge_a_case_is_said() -> None:
    class NoGold(Counting):
        def case(self, number: int, seed: int) -> Case:
            return replace(super().case(number, seed), gold=None)

    (one,) = (found := bench(tasks=NoGold())).not_run()
    assert (one.method, one.metric, one.cases, one.why) == ("", "gold", 4, "gold: no gold units")
    assert f"{one.model}, {one.task}: gold (4 cases each): gold: no gold units" in found.to_markdown()


def test_nan_under_shuffled_weights_ends_no_run() -> None:
    one = subject()

    def overflows(model: nn.Module, inputs: Any, value: Any) -> Tensor:
        return torch.full((5,), 1.0 if model is one.model else math.inf)

    found = bench(one, methods=[overflows, bench_parts.gradient], metrics=["randomised_weights"], cases=3)
    assert len(found.values("net", "counting", "gradient", "randomised_weights")) == 3
    (missing,) = found.not_run()
    assert (missing.method, missing.metric, missing.cases) == ("overflows", "randomised_weights", 3)
    assert missing.why == "randomised_weights: under the other weights relevance has NaN or infinity"


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"methods": [lambda m, i, v: torch.full((5,), math.nan)]}, NonFiniteError, "on case c0 of counting .net.: .*NaN"),
        ({"methods": [lambda m, i, v: torch.ones(7)]}, InputError, "on case c0 of counting .net.: case c0: relevance has"),
        ({"methods": [lambda m, i, v: 3]}, InputError, "must return a tensor of relevance"),
        ({"methods": {}}, InputError, "give methods of different names"),
        ({"methods": [LastOnly(), LastOnly()]}, InputError, "different names"),
        ({"methods": [LastOnly]}, InputError, "a class; make an object of it"),
        ({"methods": ["no.module:name"]}, InputError, "no method 'no.module:name' .No module named"),
        ({"metrics": [LastOnly()]}, InputError, "a metric is a name or an object with name, better, of"),
        ({"tasks": [3]}, InputError, "without name, cases, replacements"),
        ({"cases": 0}, InputError, "cases must be a whole number of at least 1"),
        ({"seed": "a"}, InputError, "seed must be a whole number"),
        ({"reference": "gradients"}, UnknownNameError, "reference 'gradients' is none of the methods: gradient"),
        ({"data": {"counting": "nowhere.json"}}, InputError, "nowhere.json, the data of task counting, is not there"),
        ({"data": {"other": "nowhere.json"}}, InputError, "none of the tasks: counting"),
        ({"models": []}, InputError, "give models of different names"),
        ({"models": nn.Linear(2, 2)}, InputError, "Linear is no causal language model"),
        ({"models": {"net": nn.Linear(2, 2)}}, InputError, "Linear is no causal language model, no encoder"),
        ({"models": {"net": subject("other")}}, InputError, "the Subject 'other' is given the name 'net'"),
        ({"models": 3}, InputError, "a model is a folder, a name or a torch.nn.Module, got int"),
        ({"models": [subject(), subject()]}, InputError, "give models of different names"),
        ({"models": subject(constants={"scale": 2.0})}, InputError, "leave these constants out"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_or_used_is_refused(parts: dict[str, Any], error: type[LxtFxError], message: str) -> None:
    with pytest.raises(error, match=message):
        bench(**parts)


def test_a_metric_without_a_finite_number_is_refused_before_it_is_written(tmp_path: Path) -> None:
    class Nan(Drop):
        def of(self, judged: Judged) -> float:
            return math.nan

    with pytest.raises(InputError, match="metric drop gives nan for gradient on case c0 of counting"):
        bench(metrics=[Nan()], file=tmp_path / "out.jsonl")
    assert not results(tmp_path / "out.jsonl")


def test_a_method_that_changes_the_weights_is_found_before_its_result_is_written(tmp_path: Path) -> None:
    def spoils(model: Any, inputs: Any, value: Any) -> Tensor:
        with torch.no_grad():
            model.second.bias += 1
        return torch.ones(5)

    with pytest.raises(LxtFxError, match="spoils on case c0 of counting .net.: the weights of the model are others"):
        bench(methods=[LastOnly(), spoils], file=tmp_path / "out.jsonl")
    assert results(tmp_path / "out.jsonl") == [("net", "counting", "c0", "last")]


def test_a_method_that_changes_the_weights_later_is_found_too(tmp_path: Path) -> None:
    seen: list[int] = []

    def spoils(model: Any, inputs: Any, value: Any) -> Tensor:
        seen.append(1)
        if len(seen) == 3:
            with torch.no_grad():
                model.second.bias += 1
        return torch.ones(5)

    with pytest.raises(LxtFxError, match="spoils on case c2 of counting .net.: the weights of the model are others"):
        bench(methods=[LastOnly(), spoils], file=tmp_path / "out.jsonl")
    assert [case for *_, case, method in results(tmp_path / "out.jsonl") if method == "spoils"] == ["c0", "c1"]


def test_a_case_without_replacements_is_said_and_the_others_run() -> None:
    class Sometimes(Counting):
        def replacements(self, subject: Any, case: Case, seed: int) -> Any:
            if case.key == "c1":
                raise NotForThisError("no other token fits")
            return super().replacements(subject, case, seed)

    found = bench(tasks=Sometimes(), methods=[LastOnly(), bench_parts.gradient])
    assert list(found.values("net", "counting", "last", "drop")) == ["c0", "c2", "c3"]
    (missing,) = found.not_run()
    assert (missing.method, missing.cases, missing.why) == ("last, gradient", 1, "no other token fits")


@pytest.mark.parametrize(("size", "right"), [(1e-5, True), (1.0, False)])
def test_constants_may_change_a_small_number_by_rounding_alone(size: float, right: bool) -> None:
    """Here a constant changes one of two logits of size 100 by so much, and a small difference of both is explained."""

    class Rounded(bench_parts.TokenNet):
        def forward(self, *args: Any, scale: float = 1.0, **kwargs: Any) -> Any:
            logits = super().forward(*args, **kwargs).logits
            shift = torch.tensor([100.0, 100.0 + 1e-4 + size * (scale != 1), 0.0])
            return {"logits": 0 * logits + shift}

    class Difference(Counting):
        def case(self, number: int, seed: int) -> Case:
            return replace(super().case(number, seed), value=lambda out: out["logits"][:, 1] - out["logits"][:, 0])

    asked = Subject("net", Rounded().eval(), constants={"scale": 2.0})
    if right:
        bench(asked, tasks=Difference(), methods=[LastOnly()], cases=1)
    else:
        with pytest.raises(InputError, match="leave these constants out"):
            bench(asked, tasks=Difference(), methods=[LastOnly()], cases=1)


@dataclass(frozen=True)
class InPairs(Counting):
    """Cases 0 and 1 are a group, 2 and 3 another one; `Counting` has each case alone."""

    together: int = field(default=2, compare=False)

    def case(self, number: int, seed: int) -> Case:
        return replace(super().case(number, seed), group=f"group {number // self.together}")


def test_the_file_holds_the_groups_of_cases_and_goes_on_with_no_others(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    found = bench(tasks=InPairs(), file=path)
    lines = [line["result"] for line in written(path) if "result" in line]
    assert {line["case"]: line["group"] for line in lines} == {f"c{case}": f"group {case // 2}" for case in range(4)}
    assert all((one.found.cases, one.found.groups) == (4, 2) for one in found.table("net", "counting", "drop").measured)
    assert lxt_fx.read_bench(path, None).contents == found.contents
    with pytest.raises(InputError, match="case 2 of counting for net is 'c2' now, .* or one of another group"):
        bench(tasks=InPairs(together=4), file=path)
    bench(file=tmp_path / "alone.jsonl")
    assert '"group"' not in (tmp_path / "alone.jsonl").read_text()


def test_a_case_that_a_method_refused_has_its_group_too() -> None:
    found = bench(tasks=InPairs(), methods=[NotEven()])
    assert [(one.refused != "", one.group) for one in found.contents.lines] == [
        (True, "group 0"), (False, "group 0"), (True, "group 1"), (False, "group 1"),
    ]  # fmt: skip


# the file


def test_the_file_holds_what_results_hold(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    found, read = bench(file=path), lxt_fx.read_bench(path, None)
    assert read.contents == found.contents and repr(read) == repr(found)
    header = written(path)[0]
    assert header["lxt_fx_bench"] == 1 and header["seed"] == 0 and header["versions"]["torch"] == torch.__version__
    declared = {next(iter(line)): line for line in written(path)[1:6]}
    assert declared["model"]["model"]["weights"] and declared["task"]["task"]["parameters"]["tokens"] == 5


def test_a_run_that_is_complete_computes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    bench(file=path)
    before = path.read_bytes()

    def never(model: Any, inputs: Any, value: Any) -> Tensor:
        raise AssertionError

    class Never(Counting):
        def replacements(self, subject: Any, case: Any, seed: int) -> Any:
            raise AssertionError

    bench(file=path, cases=2)
    assert path.read_bytes() == before


def test_more_cases_methods_tasks_metrics_and_models_extend_the_file(tmp_path: Path) -> None:
    whole, path = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    tasks = [Counting(), Counting("again", 4)]
    models = [subject(), subject("second", 1)]
    bench(models, file=whole, tasks=tasks, cases=5)
    first = {"methods": {"gradient": bench_parts.gradient}, "metrics": [Drop()]}
    bench(file=path, cases=2, **first)
    begun = path.read_bytes()
    bench(file=path, cases=3, metrics=[Drop()])
    bench(file=path, cases=3)
    bench(models, file=path, cases=5, tasks=tasks)
    assert path.read_bytes().startswith(begun)
    one, other = lxt_fx.read_bench(whole, "gradient"), lxt_fx.read_bench(path, "gradient")
    assert [table.measured[1].paired for table in one] == [table.measured[1].paired for table in other]
    for table in one:
        for method in one.methods:
            asked = (table.model, table.task, method, table.metric)
            assert one.values(*asked) == other.values(*asked) and len(one.values(*asked)) == 5
    assert len(other.contents.lines) == len(one.contents.lines) + 3 * 3  # gold was added to three cases of three methods


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "the run is another: seed: 0 in the file, 1 now"),
        ({"models": subject("net", 1)}, "model 'net' is another: weights: "),
        ({"models": subject(kind="image")}, "model 'net' is another: kind: language in the file, image now"),
        ({"tasks": Counting(tokens=6)}, "task 'counting' is another: parameters tokens: 5 in the file, 6 now"),
        ({"methods": {"gradient": bench_parts.chance}}, "method 'gradient' is another: parameters function content: "),
        ({"metrics": [Drop(better="lower")]}, "metric 'drop' is another: .*better: higher in the file, lower now"),
    ],
)
def test_a_file_of_something_else_is_not_continued(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    path = tmp_path / "out.jsonl"
    bench(file=path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=message):
        bench(**{"file": path, **changed})
    assert path.read_bytes() == before


def test_a_class_of_ones_own_with_other_code_is_another(tmp_path: Path) -> None:
    """Somebody mends a method or a metric and runs the same command: what is in the file is of the old one."""

    def made(factor: float, method: int) -> dict[str, Any]:
        class Mine:
            name = "mine"

            def prepare(self, subject: Any) -> Explain:
                return lambda case: torch.arange(5.0) if method else torch.ones(5)

        class Other(Mine):
            def prepare(self, subject: Any) -> Explain:
                return lambda case: torch.ones(5)

        class Scaled(Drop):
            def of(self, judged: Judged) -> float:
                return super().of(judged)

        class Doubled(Drop):
            def of(self, judged: Judged) -> float:
                return 2 * super().of(judged)

        Doubled.__name__, Other.__name__ = "Scaled", "Mine"
        return {"methods": Other() if method == 2 else Mine(), "metrics": Scaled() if factor == 1 else Doubled()}

    path = tmp_path / "out.jsonl"
    bench(file=path, **made(1, 1))
    before = path.read_bytes()
    bench(file=path, **made(1, 3))  # what stands around a class is no part of it
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="metric 'drop' is another: code: "):
        bench(file=path, **made(2, 1))
    with pytest.raises(InputError, match="method 'mine' is another: code: "):
        bench(file=path, **made(1, 2))
    assert "code" not in lxt_fx.bench({"tiny": llama(300)}, tasks=Counting(), metrics="pointing", methods="random", cases=1,
                                      reference=None).contents.declared["method"]["random"]  # fmt: skip


def test_a_model_of_the_same_weights_and_another_config_is_another(tmp_path: Path) -> None:
    model = llama(300)
    parts: dict[str, Any] = {"tasks": Counting(), "metrics": "pointing", "methods": "random", "cases": 1, "reference": None}
    lxt_fx.bench({"tiny": model}, file=tmp_path / "out.jsonl", **parts)
    model.config._name_or_path, model.config.transformers_version = "elsewhere", "9"
    lxt_fx.bench({"tiny": model}, file=tmp_path / "out.jsonl", **parts)
    model.config.rms_norm_eps = 0.1
    with pytest.raises(InputError, match="model 'tiny' is another: config: "):
        lxt_fx.bench({"tiny": model}, file=tmp_path / "out.jsonl", **parts)


def test_other_versions_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench(file=tmp_path / "out.jsonl")
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(InputError, match="versions torch: .* in the file, 9.9.9 now"):
        bench(file=tmp_path / "out.jsonl")


def test_another_file_of_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "out.jsonl", tmp_path / "data.json"
    monkeypatch.setattr(named, "from_path", lambda: {"counting": lambda given: Counting(tokens=int(given.read_text()))})
    data.write_text("6")
    found = bench(file=path, data={"counting": data})
    assert found.contents.declared["task"]["counting"]["data"]["name"] == "data.json"
    bench(file=path, data={"counting": data})
    data.write_text("6 ")
    with pytest.raises(InputError, match="task 'counting' is another: data sha256: "):
        bench(file=path, data={"counting": data})
    with pytest.raises(InputError, match="task 'counting' is another: .*parameters tokens: 6 in the file, 5 now"):
        bench(file=path)


def test_data_of_a_task_that_reads_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "from_path", dict)
    with pytest.raises(InputError, match="task counting reads no data; leave .*test_referee_runner.py out"):
        bench(data={"counting": __file__})


def test_names_are_looked_up_and_the_nearest_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    every = {"method": bench_parts.METHODS, "task": {"counting": Counting()}, "metric": {"drop": Drop(), "gold": Gold()}}
    monkeypatch.setattr(named, "known", lambda kind: every[kind])
    found = bench(methods="last", tasks=None, metrics=None)
    assert (found.methods, found.tasks, list(found.metrics)) == (("last",), ("counting",), ["drop", "gold"])
    assert bench(methods={"mine": "last"}, metrics="drop").methods == ("mine",)
    assert bench(methods=["last", "bench_parts:gradient"], metrics=["drop"]).methods == ("last", "gradient")
    with pytest.raises(UnknownNameError, match="no method 'chanc'; did you mean 'chance'. There are gradient, chance"):
        bench(methods="chanc")
    with pytest.raises(UnknownNameError, match="no metric 'zzz'. There are drop, gold"):
        bench(metrics="zzz")


def test_a_folder_of_data_is_known_by_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, text in (("a", "1"), ("inner/b", "2")):
        (tmp_path / name).write_text(text)
    hashes = {path_hash(tmp_path)}
    (tmp_path / "inner" / "b").write_text("3")
    hashes.add(path_hash(tmp_path))
    (tmp_path / "inner" / "b").rename(tmp_path / "inner" / "c")
    assert len(hashes | {path_hash(tmp_path)}) == 3


def test_a_task_that_gives_other_cases_than_before_is_refused(tmp_path: Path) -> None:
    class Wandering(Counting):
        def cases(self, subject: Any, count: int, seed: int) -> Any:
            return [self.case(number + (count > 4), seed) for number in range(count)]

    class Renamed(Wandering):
        def case(self, number: int, seed: int) -> Case:
            return replace(super().case(number, seed), key="same")

    path = tmp_path / "out.jsonl"
    bench(file=path, tasks=Wandering())
    with pytest.raises(InputError, match="case 0 of counting for net is 'c1' now, and another one .'c0'."):
        bench(file=path, tasks=Wandering(), cases=5)
    with pytest.raises(InputError, match="two cases of counting have the key 'same'"):
        bench(tasks=Renamed())


def test_a_case_of_the_same_key_with_another_input_is_refused(tmp_path: Path) -> None:
    class Changing(Counting):
        def case(self, number: int, seed: int) -> Case:
            found = super().case(number, seed)
            return replace(found, inputs={"input_ids": (found.inputs["input_ids"] + shift) % 8})

    shift, path = 0, tmp_path / "out.jsonl"
    bench(file=path, tasks=Changing())
    shift = 1
    with pytest.raises(InputError, match="case 0 of counting for net is 'c0' now, and another one"):
        bench(file=path, tasks=Changing())


@pytest.mark.parametrize("text", ["mine", '{"a": 1}\n', "\n", '{"lxt_fx_bench": 7}\n', '{"lxt_fx_bench": 1}\n[]\n'])
def test_a_file_of_anything_else_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="is no file of lxt_fx.bench|has format 7|line 2 is no line"):
        bench(file=path)
    assert path.read_text() == text


def test_a_path_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: No such file"):
        bench(file=tmp_path / "no" / "out.jsonl")
    with pytest.raises(InputError, match="cannot be read: No such file"):
        lxt_fx.read_bench(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="is empty"):
        lxt_fx.read_bench(tmp_path / "empty.jsonl")


def test_two_runs_do_not_write_one_file(tmp_path: Path) -> None:
    """The second one would take the first one's last line, half written, for a torn one, and cut it off."""
    path = tmp_path / "out.jsonl"

    class Meanwhile(Drop):
        def of(self, judged: Judged) -> float:
            if not seen:
                seen.append(path.read_bytes())
                with pytest.raises(InputError, match="another run is writing .*out.jsonl; wait until it is done"):
                    bench(file=path)
                assert path.read_bytes() == seen[0]
                assert not lxt_fx.read_bench(path, None).contents.lines  # to read is no matter
            return super().of(judged)

    seen: list[bytes] = []
    bench(metrics=[Meanwhile()], file=path)
    assert seen and len(results(path)) == 12
    with pytest.raises(InputError, match="seed: 0 in the file, 1 now"):
        bench(metrics=[Meanwhile()], file=path, seed=1)
    bench(metrics=[Meanwhile()], file=path)  # neither a run that is done nor one that was refused holds it


def test_a_file_that_is_cut_anywhere_is_completed(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    parts: dict[str, Any] = {"methods": [NeverHere(), LastOnly(), NotEven()], "cases": 2, "file": path}
    bench(**parts)
    whole, expected = path.read_bytes(), written(path)
    for length in (*range(0, 20), *range(20, len(whole), 97), len(whole) - 1):
        path.write_bytes(whole[:length])
        bench(**parts)
        assert written(path) == expected, length


def test_a_torn_line_is_dropped_on_reading_too_and_the_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    bench(file=path)
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    assert len(lxt_fx.read_bench(path, None).contents.lines) == 11
    assert path.read_bytes() == torn


KILLED = """
import os, sys
import torch
torch.set_num_threads(1)
import lxt_fx
from bench_parts import METHODS, Counting, Gold, Killing, subject

def run(path, counter):
    lxt_fx.bench(subject(), methods=METHODS, tasks=[Counting(), Counting("again", 4)], metrics=[Gold(), Killing(counter)],
                 cases=3, file=path, reference=None)

def child(path, counter):
    pid = os.fork()
    if pid == 0:
        run(path, counter)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

counter = sys.argv[1] + "/counter"
open(counter, "w").write("1000000")
run(None, counter)  # which imports what the children need
assert child(sys.argv[1] + "/whole.jsonl", counter) == 0
for first in (1, 2, 7, 12, 18):
    path, kills = f"{sys.argv[1]}/killed{first}.jsonl", 0
    open(counter, "w").write(str(first))
    while (status := child(path, counter)) != 0:
        assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9, status
        kills += 1
        open(counter, "w").write(str(first + 3))  # then a little later
    print(first, kills)
"""


def test_a_process_that_is_killed_goes_on_to_the_same_file(tmp_path: Path) -> None:
    """`kill -9` within a metric, at several points and again and again, until the run is done."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=TESTS.parent, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": f"{TESTS.parent}:{TESTS}"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    kills = dict(map(int, line.split()) for line in done.stdout.splitlines())  # type: ignore[arg-type]
    assert kills[1] >= 4 and kills[18] == 1
    for first in kills:
        assert written(tmp_path / f"killed{first}.jsonl") == written(tmp_path / "whole.jsonl")


def test_models_are_given_alone_with_a_processor_and_by_name(tmp_path: Path) -> None:
    model, tokenizer = llama(300), byte_tokenizer()
    tokenizer.save_pretrained(tmp_path / "saved")
    model.save_pretrained(tmp_path / "saved")
    for given, name, processed in (
        (model, "LlamaForCausalLM", False), ((model, tokenizer), "LlamaForCausalLM", True),
        ({"mine": (model, tokenizer)}, "mine", True), ([model], "LlamaForCausalLM", False),
        ((model,), "LlamaForCausalLM", False),
        (tmp_path / "saved", "saved", True), ({"it": str(tmp_path / "saved")}, "it", True),
    ):  # fmt: skip
        (found,) = subjects_of(given)  # type: ignore[arg-type]
        assert (found.name, found.kind, found.processor is not None) == (name, "language", processed)
    assert [one.name for one in subjects_of({"a": model, "b": subject("b")})] == ["a", "b"]


def test_methods_and_metrics_that_are_known_by_name_run_on_a_language_model(tmp_path: Path) -> None:
    """The five that are compared where none is named, and the metrics that need no more than this task says."""
    path = tmp_path / "out.jsonl"
    metrics = ["area_zero", "gold_recall", "pointing"]
    found = lxt_fx.bench({"tiny": llama(300)}, tasks=Counting(), metrics=metrics, cases=3, file=path)
    assert found.methods == named.METHODS and not found.not_run() and len(found) == 3
    own = lxt_fx.bench({"tiny": llama(300)}, methods=bench_parts.gradient, tasks=Counting(), metrics=metrics, cases=3,
                       reference=None)  # fmt: skip
    for metric in metrics:
        ours = found.values("tiny", "counting", "gradient", metric)
        assert ours == pytest.approx(own.values("tiny", "counting", "gradient", metric), rel=1e-5)
    assert found.contents.declared["method"]["attnlrp"]["parameters"]["rules"]["table"] == "attnlrp"
    before = path.read_bytes()
    lxt_fx.bench({"tiny": llama(300)}, tasks=Counting(), metrics=metrics, cases=3, file=path)
    assert path.read_bytes() == before


def test_a_table_of_other_rules_under_one_name_is_another_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {"tasks": Counting(), "metrics": "pointing", "methods": "attnlrp", "cases": 1}
    lxt_fx.bench({"tiny": llama(300)}, file=tmp_path / "out.jsonl", **given)
    monkeypatch.setitem(TABLES, "attnlrp", replace(TABLES["cp_lrp"], name="attnlrp"))
    with pytest.raises(InputError, match="method 'attnlrp' is another: parameters rules rules: "):
        lxt_fx.bench({"tiny": llama(300)}, file=tmp_path / "out.jsonl", **given)
