"""The command as a person types it: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import shell_run
from shell_run import TEXT, run
from tiny_text import byte_tokenizer, llama, vit

from lxt_fx.base import progress
from lxt_fx.base.progress_line import Step
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table.tables import TABLES
from lxt_fx.shell.main import COMMANDS


@pytest.fixture(scope="module")
def language_model() -> str:
    return shell_run.language_model()


@pytest.fixture(scope="module")
def classifier() -> str:
    return shell_run.classifier()


@pytest.fixture(autouse=True)
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def test_explain_prints_the_heatmap_and_writes_what_is_asked(
    language_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"out.{kind}" for kind in ("html", "png", "pdf", "json")}
    options = [part for kind, path in files.items() for part in (f"--{kind}", str(path))]
    assert run("explain", language_model, TEXT, "--contrast", " Paris", " London", *options) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("logit of ' Paris' (rank ")
    assert TEXT in shown.out and "rules attnlrp" in shown.out
    assert shown.err.splitlines()[-4:] == [f"wrote {path}" for path in files.values()]
    assert json.loads(files["json"].read_text())["explained"] in shown.out.replace("\n", "")
    assert files["html"].read_text().startswith("<!doctype html>")
    assert files["png"].read_bytes().startswith(b"\x89PNG") and files["pdf"].read_bytes().startswith(b"%PDF")


def test_a_steered_model_is_shown_before_and_after(language_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--steer", "residual.1:3=5", "--steer", "mlp.0.neurons:1,2=0")
    assert run("explain", language_model, TEXT) == 0
    plain = capsys.readouterr().out
    assert run("explain", language_model, TEXT, *options) == 0
    shown = capsys.readouterr().out
    titles, first, *_ = shown.splitlines()
    assert titles.split() == ["before", "steered"] and len(first.split()) == 5
    _, before, _, after, _ = first.split()
    assert plain.startswith(f"logit of {before} (rank 1)") and before != after
    assert f"logit of {after} (rank 1) at position 4, after ' is' = " in shown


def test_a_steered_classifier_shows_its_labels(classifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", classifier, "play playing", "--steer", "residual.1=0.5") == 0
    shown = capsys.readouterr().out
    assert all(shown.count(f"{label} ") >= 2 for label in ("bad", "good", "fair"))


def test_target_position_and_rules_reach_the_explanation(language_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--target", "id:17", "--position", "1", "--rules", "gradient")
    assert run("explain", language_model, TEXT, *options) == 0
    shown = capsys.readouterr().out
    assert "at position 1, after ' capital'" in shown and "rules gradient" in shown


def test_a_name_of_several_tokens_is_a_target(language_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", language_model, TEXT, "--target", " Parisian") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("log-probability of ' Paris' + 'i' + 'an', each given those before") and "▸Paris" in shown


def test_a_classifier_is_loaded_with_its_head_and_labels(classifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", classifier, "play playing", "--target", "good") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("logit of 'good' (class 2") and "BertForSequenceClassification" in shown


def test_inspect_prints_one_layer_of_one_stage(language_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", language_model, "--layer", "model.layers.0.mlp") == 0
    shown = capsys.readouterr().out
    assert "stage rules" in shown and "lxt_fx.silu" in shown and "self_attn" not in shown


def test_inspect_shows_what_changed_between_two_stages(language_model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("inspect", language_model, "--diff", "canonical", "rules") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("--- canonical\n+++ rules\n") and "\n+" in shown


def test_inspect_loads_an_image_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vit().save_pretrained(tmp_path)
    assert run("inspect", str(tmp_path), "--stage", "canonical") == 0
    assert "ViTForImageClassification   stage canonical" in capsys.readouterr().out


def test_tables_are_listed_and_one_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tables") == 0
    listed = capsys.readouterr().out
    assert "attnlrp " in listed and "cp_lrp " in listed and "Achtibat et al." in listed
    assert run("tables", "attnlrp") == 0
    assert "prop. 3.1" in capsys.readouterr().out


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS), ("cache",)])
def test_help_has_examples(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    shown = capsys.readouterr().out
    assert "Examples" in shown and f"lxt-fx {' '.join(command)}" in shown


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("lxt-fx ")


@pytest.mark.parametrize("options", [(), ("--quiet",), ("-q",), ("--no-progress",)])
def test_quiet_shows_no_progress(
    tmp_path: Path, options: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []

    def step(words: str, total: int | None, since: float) -> Step:
        shown.append(words)
        return Step(words, total, since)

    monkeypatch.setattr(progress, "Step", step)
    monkeypatch.setattr(progress, "notebook", lambda: SimpleNamespace(execution_count=1))
    byte_tokenizer().save_pretrained(tmp_path)
    llama(20).save_pretrained(tmp_path)
    assert run("explain", str(tmp_path), "hi", *options) == 3
    assert "is outside the vocabulary of LlamaForCausalLM" in capsys.readouterr().err
    assert shown == ([] if options else shown) and ("loading the model" in shown) == (not options)
    with progress.stage("after the command"):
        assert "after the command" in shown


def test_audit_prints_a_ledger_that_closes_and_writes_what_is_asked(
    language_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    png, data = tmp_path / "waterfall.png", tmp_path / "ledger.json"
    assert run("audit", language_model, TEXT, "--png", str(png), "--json", str(data)) == 0
    shown = capsys.readouterr().out
    assert "Ledger of LlamaForCausalLM, rules attnlrp" in shown and "The ledger closes" in shown
    found = json.loads(data.read_text())
    assert f"{found['value'][0]:.4f}" in shown and png.read_bytes().startswith(b"\x89PNG")


def test_audit_fails_where_a_rule_absorbs_more_than_it_says(
    language_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    native = replace(basic.UNIFORM, ops=dict.fromkeys(basic.UNIFORM.ops))
    right = TABLES["attnlrp"]
    broken = replace(right, name="broken", rules=tuple(native if rule is basic.UNIFORM else rule for rule in right.rules))
    monkeypatch.setitem(TABLES, "broken", broken)
    assert run("audit", language_model, TEXT, "--rules", "broken") == 5
    shown = capsys.readouterr()
    assert "NOT ACCOUNTED FOR" in shown.out
    assert "LedgerError: ledger: %mul" in shown.err and "rule 'uniform' claims to conserve" in shown.err


def test_a_classifier_is_audited_too(classifier: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("audit", classifier, TEXT, "--rules", "cp_lrp") == 0
    assert "position_embeddings.weight" in capsys.readouterr().out


def test_certificate_prints_the_rules_and_what_is_not_proven(
    language_model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "certificate.json"
    assert run("certificate", language_model, "--json", str(path)) == 0
    short = capsys.readouterr().out
    assert "not proven    nothing" in short and json.loads(path.read_text())["proven"] is True
    assert run("certificate", language_model, "--full") == 0
    assert len(capsys.readouterr().out) > 2 * len(short)
