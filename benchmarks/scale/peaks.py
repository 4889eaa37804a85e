"""The peak of a process that explains a text, beside what the plan says of it.

    python benchmarks/scale/peaks.py               # a minute on one core
    python benchmarks/scale/scale.py --peaks       # the same, into docs/scale.md

Random Llamas: one wide with a short text, one narrow with a long one, one with a larger vocabulary. Each runs in a process
of its own: `relevance_of` a few tokens and the text first, so that what is loaded once is loaded, then the text again.
Measured is by how much resident memory (`VmHWM`) went beyond what the process had before; that is why small allocations are
returned at once (`MALLOC_MMAP_THRESHOLD_`). Weights are in neither number.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Shape:
    """A model and the length of its text."""

    layers: int
    hidden: int
    inner: int
    heads: int
    vocabulary: int
    tokens: int


SHAPES = {
    "wide": Shape(6, 512, 1408, 8, 2048, 128),
    "long text": Shape(12, 128, 352, 4, 1024, 2048),
    "many entries": Shape(16, 256, 704, 4, 4096, 512),
}
CHECKPOINTS = (None, "layers", "sqrt")


def worker(name: str, checkpoint: Any) -> None:
    """Prints the peak that is planned and the one that is measured, in bytes."""
    torch.set_num_threads(1)
    shape = SHAPES[name]
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, vocab_size=shape.vocabulary,
    )  # fmt: skip
    explained = lxt_fx.transform(LlamaForCausalLM(config).eval(), checkpoint=checkpoint)
    plan = lxt_fx.plan(explained, "1xA100", tokens=shape.tokens, on="cpu")
    for tokens in (8, shape.tokens, shape.tokens):
        gc.collect()
        before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
        lxt_fx.relevance_of(explained, {"input_ids": torch.zeros(1, tokens, dtype=torch.long)}, [42])
    print(json.dumps([plan.arrangement.peak - plan.weights, status("VmHWM") - before]))


def status(field: str) -> int:
    """A number of the kernel about this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measured(name: str, checkpoint: Any) -> tuple[int, int]:
    """The peak that is planned and the one that is measured, in bytes above the weights."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, name, json.dumps(checkpoint)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    planned, found = json.loads(done.stdout.splitlines()[-1])
    return planned, found


def table() -> Iterator[str]:
    """All shapes and checkpoints, in Markdown."""
    yield "| layers, hidden | vocabulary | tokens | `checkpoint=` | planned | measured | planned / measured |"
    yield "|---|---|---|---|---|---|---|"
    for name, shape in SHAPES.items():
        for checkpoint in CHECKPOINTS:
            planned, found = measured(name, checkpoint)
            cells = [
                f"{shape.layers}, {shape.hidden}", str(shape.vocabulary), str(shape.tokens), f"`{checkpoint!r}`",
                f"{planned / 2**20:.1f} MiB", f"{found / 2**20:.1f} MiB", f"{planned / found:.2f}",
            ]  # fmt: skip
            yield f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    if len(sys.argv) == 3:
        worker(sys.argv[1], json.loads(sys.argv[2]))
    else:
        print("\n".join(table()))
