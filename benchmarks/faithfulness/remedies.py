"""What helps against a first token that gets too much relevance, and what it costs.

    python benchmarks/faithfulness/remedies.py --out out/remedies.json     (--quick: fewer prompts)

Remedies are tables that hold attention weights constant (everywhere, or in the last layers), a contrast (the logit less the
mean of the relation's other answers), leaving the first token out, and a special token in front. How often does a token of
the subject have the largest relevance, in facts of many relations that the model answers right? What it costs: the area of
`lxt-fx bench` on `next_token`, where tokens are replaced by random ones, paired by text.

Needs the fetched smollm2 and gemma3: python3 dev.py models smollm2 gemma3.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from known_facts import (
    PART,
    Fact,
    answered,
    known_facts,
    mean_error,
    means_table,
    over_texts,
    relevance,
    with_front,
    without_front,
)
from rich.console import Console
from rich.progress import track
from torch import Tensor

import lxt_fx
from lxt_fx.referee.case import Subject
from lxt_fx.referee.methods.by_gradient import TableMethod
from lxt_fx.referee.subjects import subject
from lxt_fx.referee.tasks.next_token import next_token
from lxt_fx.rule_table import basic_rules as basic

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
import models  # noqa: E402

COUNTED = {"any token": slice(None), "not the first": slice(1, None), "neither first nor last": slice(1, -1)}
FRONT = ("<|endoftext|>", "<|im_start|>")


def remedy_tables(layers: int) -> dict[str, lxt_fx.RuleTable]:
    """The tables, and attnlrp with the attention weights held constant in the last layers."""

    def held(last: int) -> lxt_fx.RuleTable:
        table = lxt_fx.TABLES["attnlrp"]
        for layer in range(layers - last, layers):
            table = table.override(f"model.layers.{layer}.self_attn", basic.ATTENTION_HELD)
        return table

    return {
        **{name: lxt_fx.TABLES[name] for name in ("attnlrp", "cp_lrp", "gradient")},
        "attnlrp, held in the last layer": held(1),
        "attnlrp, held in the last third": held(layers // 3),
        "attnlrp, held everywhere": held(layers),
    }


def hits(found: Tensor, fact: Fact) -> dict[str, float]:
    """The first token's share of absolute relevance, and whether a token of the subject has the largest, in percent."""
    share = 100 * float(found[0].abs() / found.abs().sum())
    tops = {name: range(len(found))[counted][int(found[counted].argmax())] for name, counted in COUNTED.items()}
    return {"first token, %": share} | {name: 100.0 * (top in fact.subject) for name, top in tops.items()}


def measured(modules: dict[str, lxt_fx.Explained], known: Sequence[Fact], said: str) -> dict[str, Any]:
    """By table and what is explained, the mean and standard error of each of `hits`."""
    found: dict[str, list[dict[str, float]]] = {}
    for fact in track(known, description=said):
        for table, module in modules.items():
            for value, tokens in relevance(module, fact).items():
                found.setdefault(f"{table}, {value}", []).append(hits(tokens, fact))
    return {name: over_texts(each) for name, each in found.items()}


def reported(console: Console, title: str, modules: dict[str, lxt_fx.Explained], asked: Subject, known: list[Fact]) -> Any:
    """Prints one table, and gives its numbers."""
    even = mean_error([100 / fact.ids.shape[1] for fact in known])[0]
    right = answered(asked.model, known)
    summary = measured(modules, known, title)
    said = f"{title}: {len(known)} facts, {right} answered right; an even share is {even:.1f} %"
    console.print(means_table(said, summary, 1))
    return {"facts": len(known), "answered": right, "even share, %": even, "means": summary}


def modules_of(asked: Subject) -> dict[str, lxt_fx.Explained]:
    """The model under each table."""
    return {name: lxt_fx.transform(asked.model, rules=table) for name, table in remedy_tables(depth(asked)).items()}


def depth(asked: Subject) -> int:
    """How many layers the model has."""
    return int(asked.model.config.num_hidden_layers)  # type: ignore[union-attr, arg-type]


def main(
    out: Annotated[Path | None, typer.Option(help="The file for all numbers, as JSON.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer texts.")] = False,
) -> None:
    """Measure what remedies do for the first token, and what they cost."""
    count, texts = (8, 6) if quick else (150, 50)
    console, result = Console(width=160), dict[str, Any]()
    asked = subject(models.fetch("smollm2"), name="smollm2")
    modules, known = modules_of(asked), known_facts(asked, count)
    result["smollm2"] = reported(console, "SmolLM2", modules, asked, known)
    for token in FRONT:
        front = with_front(asked.processor.convert_tokens_to_ids(token), known)  # type: ignore[union-attr]
        result[f"smollm2, {token}"] = reported(console, f"SmolLM2, {token} in front", modules, asked, front)
    tables = {name: TableMethod(name, table) for name, table in remedy_tables(depth(asked)).items()}
    bench = lxt_fx.bench(asked, methods=tables, tasks=replace(next_token(), part=PART), metrics="area", cases=texts)
    console.print(bench)
    result["smollm2, area"] = json.loads(bench.to_dataframe().to_json(orient="records"))
    asked = subject(models.fetch("gemma3"), name="gemma3")
    modules, known = modules_of(asked), known_facts(asked, count)
    result["gemma3"] = reported(console, "Gemma 3, with <bos>", modules, asked, known)
    result["gemma3, no <bos>"] = reported(console, "Gemma 3, without <bos>", modules, asked, without_front(known))
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        console.print(f"wrote {out}")


if __name__ == "__main__":
    typer.run(main)
