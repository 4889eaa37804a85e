"""How does memory grow with the number of layers, and what do checkpoints save?

    python benchmarks/cost/memory.py           (about ten minutes; --quick: tiny sizes, half a minute; Linux)

Random Llamas on the CPU in float32. Plain is input * gradient with frozen parameters, as transformers runs the model; ours
is `lxt_fx.transform(model)`, with and without `checkpoint=`. Each case runs in a process of its own, after a short call
that warms up. Peak is the largest resident memory during forward and backward, above what the process held before:
weights, libraries and the graph. Saved is what autograd keeps at the end of the forward: storages, each counted once,
without the weights. Growth is the slope of the logarithms, least squares: 1.0 is linear in layers, 0.5 the square root.
Time is CPU time, the median ratio to plain of calls in turns in one process. The allocator gives freed blocks back at once
(MALLOC_MMAP_THRESHOLD_), so that the peak is that of the tensors.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx

METHODS: dict[str, str | None] = {"plain": None, "ours": None, "ours, layers": "layers", "ours, sqrt": "sqrt"}
"""What is measured, and the checkpoint that it is transformed with."""

LAYERS, HIDDEN, VOCABULARY = (4, 16, 64), 256, 4096
BOUND = 0.30
"""Peak with checkpoint="sqrt" at the most layers, over plain."""

MEBIBYTE = 1 << 20
COLOURS = {"plain": "#5f6b7a", "ours": "#b71824", "ours, layers": "#1762b6", "ours, sqrt": "#14804a"}

Case = dict[str, float]
Results = dict[str, dict[int, Case]]


def llama(layers: int, hidden: int) -> nn.Module:
    """A random Llama whose parameters ask no gradient."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def embeddings(hidden: int, tokens: int) -> Tensor:
    """[1, tokens, hidden]."""
    return torch.randn(1, tokens, hidden, generator=torch.Generator().manual_seed(1))


def relevance(module: nn.Module, leaf: Tensor) -> Tensor:
    """Of one logit at the last position, by token."""
    leaf = leaf.clone().requires_grad_(True)
    module(inputs_embeds=leaf, use_cache=False).logits[0, -1, 42].backward()
    assert leaf.grad is not None
    return (leaf.detach() * leaf.grad).sum(-1)


def saved_bytes(module: nn.Module, leaf: Tensor) -> int:
    """What the forward keeps for the backward, each storage once, without parameters and buffers."""
    known = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = module(inputs_embeds=leaf.clone().requires_grad_(True), use_cache=False)
    del output
    return sum(found.values())


def measure_case(method: str, layers: int, hidden: int, tokens: int) -> Case:
    """Peak above the start and bytes saved, in MiB, in this process."""
    model = llama(layers, hidden)
    module = model if method == "plain" else lxt_fx.transform(model, checkpoint=METHODS[method])
    relevance(module, embeddings(hidden, 8))
    leaf = embeddings(hidden, tokens)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    relevance(module, leaf)
    peak = status("VmHWM") - before
    return {"peak": peak / MEBIBYTE, "saved": saved_bytes(module, leaf) / MEBIBYTE}


def status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def measure_time(layers: int, hidden: int, tokens: int, rounds: int) -> dict[str, Case]:
    """Of each method the median time over plain, and the largest difference of its relevance from that without
    checkpoints, over the largest relevance; in this process."""
    model, leaf = llama(layers, hidden), embeddings(hidden, tokens)
    ours = lxt_fx.transform(model)
    modules: dict[str, Callable[..., Any]] = {"plain": model, "ours": ours}
    for method, checkpoint in METHODS.items():
        if checkpoint is not None:
            modules[method] = lxt_fx.transform(ours, kwargs={"inputs_embeds": leaf}, checkpoint=checkpoint)
    seconds: dict[str, list[float]] = {method: [] for method in modules}
    found: dict[str, Tensor] = {}
    for turn in range(rounds + 1):
        for method, module in modules.items():
            gc.collect()
            start = time.process_time()
            found[method] = relevance(module, leaf)
            if turn:  # the first round warms up
                seconds[method].append(time.process_time() - start)
    ratios = {
        method: statistics.median(a / b for a, b in zip(times, seconds["plain"], strict=True))
        for method, times in seconds.items()
    }
    largest = found["ours"].abs().max()
    return {
        method: {"time": ratios[method], "difference": float((found[method] - found["ours"]).abs().max() / largest)}
        for method in modules
    }


def alone(*options: object) -> Any:
    """What this script prints with these options in a process of its own."""
    command = [sys.executable, __file__, *map(str, options)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def growth(by_layers: Mapping[int, Case], what: str) -> float:
    """The slope of log(what) over log(layers), least squares."""
    points = [(math.log(layers), math.log(case[what])) for layers, case in by_layers.items()]
    mean_x, mean_y = (statistics.fmean(axis) for axis in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def table(results: Results, what: str, title: str) -> Table:
    """A row for each method: MiB by layers, growth, and the ratio to plain at the most layers."""
    layers = list(results["plain"])
    shown = Table(title=title, box=box.SIMPLE_HEAD)
    for column in ("", *(f"{count} layers" for count in layers), "growth", f"/ plain at {layers[-1]}", "bound"):
        shown.add_column(column, justify="left" if not column else "right")
    for method, found in results.items():
        ratio = found[layers[-1]][what] / results["plain"][layers[-1]][what]
        bound = f"{BOUND:.2f}" if method == "ours, sqrt" and what == "peak" else ""
        cells = [f"{found[count][what]:.1f}" for count in layers]
        shown.add_row(method, *cells, f"{growth(found, what):.2f}", f"{ratio:.2f}", bound)
    return shown


def time_table(results: Results) -> Table:
    """A row for each method: time over plain by layers, and how far its relevance is from that without checkpoints."""
    layers = list(results["plain"])
    shown = Table(title="CPU time / plain, median of calls in turns", box=box.SIMPLE_HEAD)
    for column in ("", *(f"{count} layers" for count in layers), "relevance differs by"):
        shown.add_column(column, justify="left" if not column else "right")
    for method, found in results.items():
        difference = "" if method == "plain" else f"{max(found[count]['difference'] for count in layers):.1g}"
        shown.add_row(method, *(f"{found[count]['time']:.2f}" for count in layers), difference)
    return shown


def draw(results: Results, path: Path) -> None:
    """Peak and saved memory over layers, both axes logarithmic."""
    figure = Figure(figsize=(8.4, 3.4), layout="constrained")
    panels = figure.subplots(1, 2)
    titles = {"peak": "peak memory above the weights (MiB)", "saved": "saved for the backward (MiB)"}
    for panel, (what, title) in zip(panels, titles.items(), strict=True):
        for method, found in results.items():
            label = f"{method}: growth {growth(found, what):.2f}"
            panel.plot(list(found), [case[what] for case in found.values()], marker="o", color=COLOURS[method], label=label)
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set_xticks(list(results["plain"]), [str(count) for count in results["plain"]])
        panel.set(title=title, xlabel="layers")
        panel.title.set_fontsize(9)
        panel.grid(color="#e3e6eb", linewidth=0.6)
        panel.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=140)


def main(
    quick: Annotated[bool, typer.Option(help="Tiny sizes, only to see that it runs.")] = False,
    tokens: Annotated[int, typer.Option(help="The length of the text.")] = 512,
    rounds: Annotated[int, typer.Option(help="How often each method is timed.")] = 5,
    out: Annotated[Path, typer.Option(help="The folder for memory.json and memory.png.")] = Path("out"),
    only: Annotated[str, typer.Option(hidden=True)] = "",
    count: Annotated[int, typer.Option(hidden=True)] = 0,
    hidden: Annotated[int, typer.Option(hidden=True)] = HIDDEN,
) -> None:
    """Print memory by number of layers, its growth, and the price in time."""
    torch.set_num_threads(1)
    if only:
        found = measure_time(count, hidden, tokens, rounds) if only == "time" else measure_case(only, count, hidden, tokens)
        print(json.dumps(found))
        return
    if quick:
        tokens, rounds, hidden = 32, 1, 32
    results: Results = {method: {} for method in METHODS}
    layer_counts = (2, 4) if quick else LAYERS
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("memory", total=len(layer_counts) * (len(METHODS) + 1))
        for layers in layer_counts:
            size = ("--count", layers, "--hidden", hidden, "--tokens", tokens, "--rounds", rounds)
            for method in METHODS:
                progress.update(bar, description=f"{layers} layers, {method}")
                results[method][layers] = alone("--only", method, *size)
                progress.advance(bar)
            progress.update(bar, description=f"{layers} layers, time")
            for method, case in alone("--only", "time", *size).items():
                results[method][layers] |= case
            progress.advance(bar)
    console = Console(width=110)
    said = f"Llama, hidden {hidden}, {tokens} tokens, vocabulary {VOCABULARY}, float32, one thread"
    console.print(table(results, "peak", f"Peak memory above the weights, MiB\n{said}"))
    console.print(table(results, "saved", "Saved for the backward, MiB"))
    console.print(time_table(results))
    out.mkdir(parents=True, exist_ok=True)
    Path(out, "memory.json").write_text(json.dumps({"said": said, "bound": BOUND, "results": results}, indent=1))
    draw(results, Path(out, "memory.png"))


if __name__ == "__main__":
    typer.run(main)
