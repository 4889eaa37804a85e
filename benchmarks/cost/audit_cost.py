"""What an audit costs beside one explanation of the same input: SmolLM2-135M, 128 tokens, float32, one thread.

    python benchmarks/cost/audit_cost.py     (1 minute; needs `python3 dev.py models smollm2`)

Time: explanation and audit in turns in one process, medians. Memory: each alone in a process of its own, the peak above
what the process held before the call, and the peak in all (weights included). The bounds are 6 times the time and 4 times
the memory.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import lxt_fx

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from models import load, wiki_paragraphs  # noqa: E402

TIME_BOUND, MEMORY_BOUND = 6.0, 4.0
MEBIBYTE = 1024


def calls(tokens: int) -> dict[str, Callable[[], Any]]:
    """An explanation and an audit of one paragraph, on one explained module."""
    model, tokenizer = load("smollm2")
    explained = lxt_fx.transform(model)
    text = max((paragraph for _, paragraph in wiki_paragraphs()), key=len)
    ids = tokenizer(text, return_tensors="pt")["input_ids"][:, :tokens]
    assert ids.shape[1] == tokens, f"the paragraph has only {ids.shape[1]} tokens"

    def top(output: Any) -> Tensor:
        return output.logits[:, -1].amax(-1)

    def explanation() -> Tensor:
        embeds = lxt_fx.embed(explained, ids)
        top(explained(inputs_embeds=embeds)).backward()
        assert embeds.grad is not None
        return (embeds.detach() * embeds.grad).sum(-1)

    return {"explanation": explanation, "audit": lambda: lxt_fx.audit(explained, {"input_ids": ids}, top)}


def measure_time(tokens: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, in turns; the first round warms up."""
    found = calls(tokens)
    seconds: dict[str, list[float]] = {name: [] for name in found}
    for turn in track(range(rounds + 1), description="time"):
        for name, call in found.items():
            gc.collect()
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_memory(name: str, tokens: int) -> dict[str, float]:
    """Peak resident memory of one call, in MiB, above what was held before and in all. Linux only."""
    call = calls(tokens)[name]
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    call()
    return {"above": (status("VmHWM") - before) / MEBIBYTE, "in all": status("VmHWM") / MEBIBYTE}


def status(field: str) -> int:
    """A line of /proc/self/status in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def alone(name: str, tokens: int) -> dict[str, float]:
    """`measure_memory` in a new process."""
    command = [sys.executable, __file__, "--only", name, "--tokens", str(tokens)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(
    tokens: Annotated[int, typer.Option(help="length of the paragraph")] = 128,
    rounds: Annotated[int, typer.Option(help="how often each is timed")] = 7,
    only: Annotated[str, typer.Option(hidden=True)] = "",
) -> None:
    """Print time and memory of an audit beside an explanation."""
    torch.set_num_threads(1)
    if only:
        print(json.dumps(measure_memory(only, tokens)))
        return
    seconds = measure_time(tokens, rounds)
    memory = {name: alone(name, tokens) for name in track(list(seconds), description="memory")}
    table = Table(title=f"SmolLM2-135M, {tokens} tokens, float32, one thread", box=box.SIMPLE_HEAD)
    for column in ("", "explanation", "audit", "ratio", "bound"):
        table.add_column(column, justify="left" if not column else "right")
    first, second = (statistics.median(found) for found in seconds.values())
    table.add_row("seconds, median", f"{first:.2f}", f"{second:.2f}", f"{second / first:.2f}", f"{TIME_BOUND:g}")
    spreads = [f"{min(found):.2f} to {max(found):.2f}" for found in seconds.values()]
    table.add_row("seconds, range", *spreads, "", "")
    for kind in ("above", "in all"):
        one, other = memory["explanation"][kind], memory["audit"][kind]
        label = "peak MiB above the start" if kind == "above" else "peak MiB in all"
        table.add_row(label, f"{one:.0f}", f"{other:.0f}", f"{other / one:.2f}", f"{MEMORY_BOUND:g}")
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
