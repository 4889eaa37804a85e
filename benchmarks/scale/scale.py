"""Writes the tables of docs/scale.md: explanations an hour of three shapes on machines, and measured pipelines beside it.

    python benchmarks/scale/scale.py [--quick] [--measured FILE ...] [--peaks] [--docs docs]

The first table is counted on tensors without values: ten minutes on one core, no weights, no GPU, 3 GB of memory. The
second one comes from files that `benchmarks/distributed/pipeline.py --out FILE` wrote, if they are given, the third one
from processes that `--peaks` measures (`benchmarks/scale/peaks.py`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peaks
import torch
from transformers import LlamaConfig

import lxt_fx
from lxt_fx.planning.shapes import SHAPES, model_on_meta

ROOT = Path(__file__).parents[2]
PLANNED = "<!-- planned by benchmarks/scale/scale.py -->", "<!-- end of planned -->"
PEAKS = "<!-- measured peaks, by benchmarks/scale/scale.py -->", "<!-- end of measured peaks -->"
MEASURED = "<!-- measured runs, by benchmarks/scale/scale.py -->", "<!-- end of measured runs -->"

MODELS = {"llama-7b": "Llama, 7B", "llama-70b": "Llama 3, 70B", "qwen3-moe-30b": "Qwen 3, 30B, 128 experts"}
MACHINES = ("1x24GB", "8x24GB", "1x80GB", "4x80GB", "8x80GB", "8xH100")
TOKENS = (512, 4096)

WAYS: tuple[dict[str, Any], ...] = ({}, {"checkpoint": "layers"}, {"bits": 4}, {"checkpoint": "layers", "bits": 4})
"""How a model is made to fit: the first of these with which it does."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes what was counted, and what was measured, into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, only to see that it runs")
    parser.add_argument("--measured", type=Path, nargs="+", metavar="FILE", help="what distributed/pipeline.py wrote")
    parser.add_argument("--peaks", action="store_true", help="measure the peaks of processes, and write them only")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="the folder of scale.md")
    given = parser.parse_args(arguments)
    page = given.docs / "scale.md"
    text = page.read_text(encoding="utf-8")
    if (given.measured is None and not given.peaks) or given.quick:
        text = filled(text, PLANNED, "\n".join(planned(given.quick)))
    if given.measured is not None:
        text = filled(text, MEASURED, "\n".join(beside(given.measured)))
    if given.peaks:
        text = filled(text, PEAKS, "\n".join(peaks.table()))
    page.write_text(text, encoding="utf-8")
    print(f"wrote {page}")


def planned(quick: bool) -> Iterator[str]:
    """The table of shapes, machines and lengths, in Markdown."""
    yield "| model | parameters, weights | machine | tokens | how | split | peak of a device | explanations an hour |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, said in MODELS.items():
        model = lxt_fx.transform(_small() if quick else model_on_meta(name, torch.bfloat16))
        for tokens in (16,) if quick else TOKENS:
            for machine in MACHINES:
                plan, how = fitting(model, machine, tokens)
                yield row(said, plan, machine, tokens, how)


def _small() -> torch.nn.Module:
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return model_on_meta(LlamaConfig(**sizes), torch.bfloat16)


def fitting(model: Any, machine: str, tokens: int) -> tuple[lxt_fx.DevicePlan, str]:
    """The plan by the first way in which the model fits, or by the last one, and how it is called."""
    for way in WAYS:
        plan = lxt_fx.plan(model, machine, tokens=tokens, **way)
        if plan.fits:
            break
    return plan, ", ".join(f"`{name}={value!r}`" for name, value in way.items()) or "as it is"


def row(said: str, plan: lxt_fx.DevicePlan, machine: str, tokens: int, how: str) -> str:
    """A line of the table."""
    found = plan.arrangement
    split = f"{len(found.stages)} x {found.copies} copies" if found.copies > 1 else str(len(found.stages))
    rate = f"{plan.per_hour:,.0f}" if plan.fits else "does not fit"
    size = f"{plan.parameters / 1e9:.1f}B, {plan.weights / 1e9:.0f} GB"
    return f"| {said} | {size} | {machine} | {tokens} | {how} | {split} | {found.peak / 1e9:.1f} GB | {rate} |"


def beside(paths: Sequence[Path]) -> Iterator[str]:
    """The table of measured runs beside what the plan says of them, in Markdown."""
    columns = ("layers, hidden", "tokens", "ranks", "micro-batches", "speed-up, planned", "measured", "planned / measured")
    yield f"| {' | '.join((*columns, 'peak, planned', 'measured'))} |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for path in paths:
        yield measured_row(json.loads(path.read_text(encoding="utf-8"))["run"])


def measured_row(run: Mapping[str, Any]) -> str:
    """A line of the table. The flops a second of a rank are those that one rank alone reached, so the plan says by how much
    several are faster, and not how fast the processor is. Peaks are those of the fullest rank."""
    config = LlamaConfig(**run["config"])
    settings: dict[str, Any] = {
        "tokens": run["tokens"], "micro_batches": run["micro_batches"], "schedule": run.get("schedule", "1f1b"),
        "on": "cpu", "dtype": torch.float32, "efficiency": 1.0, "bandwidth": 1e10, "checkpoint": run.get("checkpoint"),
    }  # fmt: skip
    alone = lxt_fx.plan(config, "1x1000GB", flops=1.0, **settings).arrangement
    speed = run["micro_batches"] * alone.times.total / run["alone"]
    plan = lxt_fx.plan(config, f"{run['ranks']}x1000GB", flops=speed, stages=run["ranks"], **settings)
    expected, got = run["alone"] / plan.arrangement.times.total, run["alone"] / run["seconds"]
    cells = [
        f"{config.num_hidden_layers}, {config.hidden_size}",
        *(str(run[name]) for name in ("tokens", "ranks", "micro_batches")),
        f"{expected:.2f}", f"{got:.2f}", f"{expected / got:.2f}", f"{plan.arrangement.peak / 2**20:.0f} MiB",
        f"{max(run['peaks']) / 2**20:.0f} MiB",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def filled(page: str, marks: tuple[str, str], text: str) -> str:
    """The page with the text between the marks."""
    before, begun, rest = page.partition(marks[0])
    _, ended, after = rest.partition(marks[1])
    if not begun or not ended:
        raise ValueError(f"the page has no {marks[0]} with {marks[1]} behind it")
    return f"{before}{marks[0]}\n\n{text.rstrip()}\n\n{marks[1]}{after}"


if __name__ == "__main__":
    assert set(MODELS) <= set(SHAPES)
    main()
