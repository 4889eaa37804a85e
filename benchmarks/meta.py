"""Models too big for this machine, transformed on the meta device: seconds by stage, peak memory, nodes.

    python benchmarks/meta.py                 (minutes; --quick: two layers of each)

A Llama of the shape of 70B (80 layers, hidden 8192, 64 heads, 8 of them for keys and values, 28672, vocabulary 128256) and
a mixture of experts of the shape of Qwen3-30B-A3B (48 layers, hidden 2048, 128 experts of 768, 8 a token), each in a
process of its own, so that its peak (`ru_maxrss`) is its own. Shown are wall-clock seconds and, since other work on the
machine stretches these, processor seconds of the whole transform and of what comes after capture.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

BOUNDS = {"total": 45.0, "total_cpu": 45.0, "after_capture": 15.0, "after_capture_cpu": 15.0, "gigabytes": 6.0}
"""Of the Llama: seconds of the whole transform, of the stages after capture, and peak memory."""


def llama_70b(layers: int = 80) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128256,
            hidden_size=8192,
            intermediate_size=28672,
            num_hidden_layers=layers,
            num_attention_heads=64,
            num_key_value_heads=8,
        )
    )


def moe_30b(layers: int = 48) -> nn.Module:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            vocab_size=151936,
            hidden_size=2048,
            intermediate_size=6144,
            moe_intermediate_size=768,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=4,
            head_dim=128,
            num_experts=128,
            num_experts_per_tok=8,
        )
    )


MODELS = {"llama_70b": llama_70b, "moe_30b": moe_30b}


def measure(name: str, layers: int | None) -> dict[str, Any]:
    """One transform in this process."""
    import lxt_fx
    from lxt_fx.compiler.options import Options, table_named
    from lxt_fx.compiler.pipeline import captured_from, compiled_by

    torch.set_num_threads(1)
    with torch.device("meta"):
        model = (MODELS[name]() if layers is None else MODELS[name](layers)).eval()
    built = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter(), time.process_time()
    source = captured_from(model, (), None, dynamic=True)  # the two halves of transform
    middle = time.perf_counter(), time.process_time()
    explained = compiled_by(source, table_named("attnlrp"), Options("gradient", 0.0, True))
    end = time.perf_counter(), time.process_time()
    record = explained.record
    assert lxt_fx.certificate(explained).nodes
    return {
        "model": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "nodes": len(record.stages["capture"].graph.nodes),
        "method": record.method,
        "seconds": dict(record.seconds),
        "total": end[0] - start[0],
        "total_cpu": end[1] - start[1],
        "after_capture": end[0] - middle[0],
        "after_capture_cpu": end[1] - middle[1],
        "gigabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "gigabytes_before": built / 2**20,
    }


def main(
    out: Annotated[Path, typer.Option(help="The folder for meta.json.")] = Path("out"),
    quick: Annotated[bool, typer.Option("--quick", help="Two layers of each.")] = False,
    only: Annotated[str | None, typer.Option(help="Measure one model here and print JSON.")] = None,
) -> None:
    """Transform big models on the meta device."""
    layers = 2 if quick else None
    if only is not None:
        print(json.dumps(measure(only, layers)))
        return
    rows = []
    for name in MODELS:
        command = [sys.executable, __file__, "--only", name, *(["--quick"] if quick else [])]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        rows.append(json.loads(said.splitlines()[-1]))
    console = Console(width=None if sys.stdout.isatty() else 160)
    stages = list(dict.fromkeys(stage for row in rows for stage in row["seconds"]))
    table = Table(title="transform on the meta device, seconds by the clock", box=None, padding=(0, 1))
    for heading in ("model", "parameters", "nodes", *stages, "after capture", "total", "after, cpu", "total, cpu", "GB"):
        table.add_column(heading, justify="right")
    for row in rows:
        shown = [f"{row['seconds'].get(stage, 0):.2f}" for stage in stages]
        last = [f"{row[key]:.2f}" for key in ("after_capture", "total", "after_capture_cpu", "total_cpu", "gigabytes")]
        table.add_row(row["model"], f"{row['parameters'] / 1e9:.1f}B", str(row["nodes"]), *shown, *last)
    console.print(table)
    for key, bound in BOUNDS.items():
        console.print(f"llama_70b {key}: {rows[0][key]:.2f} of {bound:g} allowed, ratio {rows[0][key] / bound:.2f}")
    out.mkdir(parents=True, exist_ok=True)
    Path(out, "meta.json").write_text(json.dumps(rows, indent=1))
    console.print(f"wrote {out / 'meta.json'}")


if __name__ == "__main__":
    typer.run(main)
