"""The printed graph of one block, as text that a person would want to read. Update with `UPDATE_GOLDEN=1 pytest
tests/test_show.py` and read the diff as code. Line numbers of the model's source are left out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import torch
from shared_captures import each_model, one_worker
from shared_captures import explained as compiled
from tiny import Mlp

import lxt_fx

FOLDER = Path(__file__).parent / "printed"
BLOCKS = {
    "llama": "model.layers.0",
    "bert": "bert.encoder.layer.0",
    "vit": "vit.encoder.layer.0",
    "gpt2": "transformer.h.0",
    "gemma3": "model.layers.0",
}


def without_lines(text: str) -> str:
    return re.sub(r"(\w+\.py):\d+", r"\1", text)


def check_golden(name: str, text: str) -> None:
    path = FOLDER / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("name", each_model(["llama", "bert", "vit"]))
def test_printed_block_is_the_golden_text(name: str) -> None:
    explained = compiled(name)
    check_golden(name, without_lines(lxt_fx.show(explained, module=block_of(explained, name))))


def block_of(explained: lxt_fx.Explained, name: str) -> str:
    """transformers moved ViT's blocks between versions; whichever path holds one is printed."""
    paths = {path for node in explained.graph.nodes for path, _ in (node.meta.get("nn_module_stack") or {}).values()}
    wanted = BLOCKS[name]
    return wanted if wanted in paths else next(p for p in sorted(paths) if re.fullmatch(r".*layers?\.0", p))


@one_worker("llama")
def test_printed_block_that_runs_is_the_golden_text() -> None:
    explained = compiled("llama")
    check_golden("llama_fused", without_lines(lxt_fx.show(explained, "fused", module="model.layers.0")))


@one_worker("llama")
def test_diff_of_two_stages_is_the_golden_text() -> None:
    explained = compiled("llama")
    check_golden("llama_diff", without_lines(lxt_fx.diff(explained, "canonical", "rules", module="model.layers.0")))


@one_worker("llama")
def test_cp_lrp_prints_what_is_held() -> None:
    explained = compiled("llama", attention="eager", rules="cp_lrp")
    text = lxt_fx.show(explained, module="model.layers.0")
    assert re.search(r"%softmax.* = lxt_fx.softmax\(.*\| weights held", text)
    assert re.search(r"%mul_\d+: f32\[b,s,48\]\* = mul\(%hold\w*, %linear_5\) +\| gate held", text)
    assert re.search(r"%hold\w*: f32\[b,s,32\]\+ = lxt_fx.hold\(%\w+\)", text)


@one_worker("llama")
@pytest.mark.parametrize("stage", ["capture", "canonical", "groups", "rules", "lowered", "fused"])
def test_every_stage_prints(stage: str) -> None:
    explained = compiled("llama")
    text = lxt_fx.show(explained, stage)
    leaf = "%embedding: f32[b,s,32]*" if stage == "capture" else "%inputs_embeds: f32[b,s,32]*"
    assert f"stage {stage}" in text and leaf in text
    assert ("lxt_fx.sdpa" in text) == (stage in ("rules", "lowered"))
    assert ("rms_norm" in text) == (stage in ("groups", "rules", "lowered", "fused"))
    assert len(lxt_fx.show(explained, stage, full=True)) > len(text)


def test_symbolic_sizes_print_as_batch_and_sequence() -> None:
    explained = lxt_fx.transform(Mlp().eval(), (torch.randn(3, 6),))
    assert "%x: f32[b,6]*" in lxt_fx.show(explained)


@pytest.mark.parametrize("columns", [80, 160])
def test_rule_tables_print_in_the_width_of_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for table in lxt_fx.TABLES.values():
        assert max(map(len, str(table).splitlines())) <= columns
    text = str(lxt_fx.TABLES["attnlrp"])
    assert "getitem" in text and "built-in" not in text and "silu, gelu, relu," in text
    if columns == 80:
        flat = " ".join(text.split())
        assert all(rule.formula in flat and rule.source in flat for rule in lxt_fx.TABLES["attnlrp"].rules)


def test_rule_tables_print_their_rules_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    text = str(lxt_fx.TABLES["attnlrp"])
    assert text.index("norm") < text.index("attention") < text.index("uniform") < text.index(" move")
    assert "AttnLRP (Achtibat et al. 2024)" in text and "R_a = R_b = R_out / 2" in text
