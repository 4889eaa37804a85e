"""`lxt-fx bench`: what it runs, what it writes, how it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shell_run import filled, run

import lxt_fx
from lxt_fx.referee import named
from lxt_fx.shell import bench_command

PARTS = ("--tasks", "bench_parts:counting", "--metrics", "bench_parts:drop,bench_parts:gold")
METHODS = ("--methods", "bench_parts:gradient,bench_parts:last", "--reference", "gradient")

Capture = pytest.CaptureFixture[str]


def ran(capsys: Capture, place: Path, *arguments: str) -> tuple[str, str]:
    assert run("bench", *filled(arguments, place)) == 0
    shown = capsys.readouterr()
    return shown.out, shown.err


def test_results_are_printed_and_written(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    files = ("--out", "HERE/out.jsonl", "--html", "HERE/out.html", "--markdown", "HERE/out.md")
    out, err = ran(capsys, tmp_path, "LLAMA", *METHODS, *PARTS, "--cases", "3", *files)
    assert max(map(len, out.splitlines())) <= 80
    assert "llama · counting · 3 cases" in out and "BenchResults(1 model, 1 task, 2 methods, 2 metrics, 6 results" in out
    assert err.splitlines()[-3:] == [f"wrote {tmp_path}/out.{kind}" for kind in ("jsonl", "html", "md")]
    found = lxt_fx.read_bench(tmp_path / "out.jsonl", "gradient")
    assert (tmp_path / "out.md").read_text() == found.to_markdown()
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")
    assert found.contents.declared["model"]["llama"]["constants"]["logits_to_keep"] == 1


def test_a_file_is_gone_on_with_and_shown_without_a_model(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "out.jsonl"
    ran(capsys, tmp_path, "LLAMA", *METHODS, *PARTS, "--cases", "2", "--out", "HERE/out.jsonl", "--seed", "3")
    begun = path.read_bytes()
    more, _ = ran(capsys, tmp_path, "LLAMA", *METHODS, *PARTS, "--cases", "3", "--out", "HERE/out.jsonl", "--seed", "3")
    assert path.read_bytes().startswith(begun) and json.loads(begun.splitlines()[0])["seed"] == 3
    shown, err = ran(capsys, tmp_path, "--out", "HERE/out.jsonl", "--reference", "gradient")
    assert shown == more and not err
    alone, _ = ran(capsys, tmp_path, "--out", "HERE/out.jsonl", "--reference", "none")
    assert "won" in shown and "won" not in alone
    assert ran(capsys, tmp_path, "--out", "HERE/out.jsonl", "--reference", "none", "--no-show", "--quiet") == ("", "")


def test_several_models_have_the_names_of_their_folders(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def bench(models: Any, **given: Any) -> Any:
        asked.append((models, given))
        return lxt_fx.bench([], reference=None) if not models else lxt_fx.read_bench(tmp_path / "out.jsonl", None)

    ran(capsys, tmp_path, "LLAMA", *METHODS, *PARTS, "--cases", "1", "--out", "HERE/out.jsonl")
    monkeypatch.setattr("lxt_fx.referee.bench.bench", bench)
    ran(capsys, tmp_path, "LLAMA", "VIT", "--reference", "none", "--seed", "5")
    ((models, given),) = asked
    found = [(one.name, one.kind, one.unit) for one in models]
    assert found == [("llama", "language", "token"), ("vit", "image", 4)]
    assert all(one.processor is not None for one in models)
    assert given == {
        "methods": None, "tasks": None, "metrics": None, "cases": 50, "seed": 5, "data": {}, "file": None,
        "reference": None,
    }  # fmt: skip


def test_data_are_given_by_path(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    import bench_parts

    (tmp_path / "six.txt").write_text("6")
    made = {"counting": lambda path: bench_parts.Counting(tokens=int(path.read_text()))}
    monkeypatch.setattr(named, "from_path", lambda: made)
    given = ("--data", "counting=HERE/six.txt", "--out", "HERE/out.jsonl", "--cases", "1")
    ran(capsys, tmp_path, "LLAMA", *METHODS, *PARTS, *given)
    task = lxt_fx.read_bench(tmp_path / "out.jsonl", None).contents.declared["task"]["counting"]
    assert task["parameters"]["tokens"] == 6 and task["data"]["name"] == "six.txt"


def test_a_module_beside_the_command_is_found(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_own_method.py").write_text("def flat(model, inputs, value):\n    return inputs['inputs_embeds'] * 0 + 1\n")
    own = ("--methods", "my_own_method:flat", "--reference", "none")
    out, _ = ran(capsys, tmp_path, "LLAMA", *own, *PARTS, "--cases", "1")
    assert "flat" in out


def fails(capsys: Capture, place: Path, *arguments: str) -> tuple[int, str]:
    code = run("bench", *filled(arguments, place))
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err and not shown.out
    return code, " ".join(shown.err.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give one MODEL or more, or the file of results to show: --out FILE"),
        (("LLAMA", "LLAMA", *PARTS), 2, "are not different; name each once"),
        (("LLAMA", *METHODS, *PARTS, "--cases", "0"), 2, "Input should be greater than or equal to 1"),
        (("LLAMA", "--data", "facts"), 2, "--data 'facts': write TASK=FILE"),
        (("LLAMA", "--out", "HERE/a", "--html", "HERE/a"), 2, "would write over"),
        (("LLAMA", "--html", "-"), 2, "--html -: only --json writes"),
        (("LLAMA", *METHODS[:2], *PARTS), 2, "the reference 'attnlrp' is none of the methods: gradient, last"),
        (("LLAMA", "--data", "facts=HERE/none.json"), 3, "there is no file"),
        (("./nowhere", *METHODS, *PARTS), 3, "there is no folder ./nowhere"),
        (("LLAMA", "--methods", "bench_parts:grad", *PARTS), 3, "no method 'bench_parts:grad' (module 'bench_"),
        (("--out", "HERE/none.jsonl"), 3, "there is no file"),
        (("nobody/nothing", "--out", "HERE/there.txt"), 6, "is no file of lxt_fx.bench"),
        (("nobody/nothing", "--out", "HERE/no/out.jsonl"), 6, "there is no folder"),
        (("nobody/nothing", "--html", "HERE/there.txt"), 6, "is there already; --force"),
        (("nobody/nothing", "--out", "HERE"), 6, "it is a folder"),
    ],
)
def test_what_cannot_be_done_has_the_code_of_its_kind(
    arguments: tuple[str, ...], code: int, message: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "there.txt").write_text("mine")
    found, said = fails(capsys, tmp_path, *arguments)
    assert message in said and found == code, said
    assert (tmp_path / "there.txt").read_text() == "mine"


def test_a_file_of_another_run_is_code_3(tmp_path: Path, capsys: Capture) -> None:
    arguments = ("LLAMA", *METHODS, *PARTS, "--cases", "1", "--out", "HERE/out.jsonl")
    ran(capsys, tmp_path, *arguments)
    code, said = fails(capsys, tmp_path, *arguments, "--seed", "1")
    assert code == 3 and "seed: 0 in the file, 1 now" in said


def test_the_kinds_of_models_that_are_loaded() -> None:
    """A model without a head is loaded as it is."""

    class Source:
        def __init__(self, architecture: str) -> None:
            self.architecture = architecture

        def config(self) -> Any:
            return type("Config", (), {"architectures": [self.architecture]})

        def tokenizer(self) -> str:
            return "tokenizer"

        def image_processor(self) -> str:
            return "image processor"

        def loader(self) -> Any:
            import transformers

            vision = self.architecture.endswith("ImageClassification")
            return transformers.AutoModelForImageClassification if vision else transformers.AutoModelForCausalLM

    for architecture, loader, processor in (
        ("BertModel", "AutoModel", "tokenizer"), ("GPT2LMHeadModel", "AutoModelForCausalLM", "tokenizer"),
        ("Dinov2ForImageClassification", "AutoModelForImageClassification", "image processor"),
    ):  # fmt: skip
        found = bench_command._loaded(Source(architecture))  # type: ignore[arg-type]
        assert (found[0].__name__, found[1]) == (loader, processor)
