"""What does an explanation of a model on disk cost, against the same model in memory?

    python benchmarks/placement/offload.py compare     (two minutes; 0.7 GB of disk for a while; Linux)

A random Llama in float32 whose weights are mostly MLPs, saved in shards and read by `from_pretrained(device_map=...)`, with
all of its layers, its embedding and its head on disk. Peak is the largest resident memory while the model is loaded,
transformed and explained for one logit, above what the process held after it had explained a tiny model; each case runs in
a process of its own. Pages of mapped files count. Time is wall time, because reads are waited for: the median ratio of
explanations in turns in one process, after one of each that warms up. So it needs a machine with nothing else on it, and
its files fit into the page cache there: it measures the reads from it, not those of a disk.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import lxt_fx

MEBIBYTE = 1 << 20
ON_DISK = dict.fromkeys(("model.embed_tokens", "model.layers", "model.norm", "lm_head"), "disk")
ON_DISK["model.rotary_emb"] = "cpu"
app = typer.Typer(add_completion=False)


def save_model(folder: Path, layers: int, hidden: int, inner: int) -> int:
    """Writes a random Llama in shards. Returns the bytes of its weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=8, vocab_size=128,
        max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="40MB")
    return sum(parameter.nbytes for parameter in model.parameters())


def loaded(folder: Path, *, on_disk: bool) -> nn.Module:
    """The model of a folder, with its weights in memory or on disk."""
    if not on_disk:
        return AutoModelForCausalLM.from_pretrained(folder).eval()
    off = tempfile.mkdtemp(dir=folder)
    return AutoModelForCausalLM.from_pretrained(folder, device_map=ON_DISK, offload_folder=off).eval()


def relevance(explained: lxt_fx.Explained, tokens: int) -> Tensor:
    """The relevance of each token of a text for one logit."""
    output, leaves = explained.with_leaves(input_ids=torch.arange(tokens)[None] % 128)
    output.logits[0, -1, 7].backward()
    leaf = leaves["inputs_embeds"]
    return (leaf * leaf.grad).sum(-1).detach()


def memory(field: str) -> float:
    """A field of this process's status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


@app.command()
def peak(folder: Path, case: str, tokens: int = 16) -> None:
    """Prints what one case takes as JSON: `disk` or `memory`."""
    with tempfile.TemporaryDirectory() as tiny:
        save_model(Path(tiny), 2, 64, 64)
        relevance(lxt_fx.transform(loaded(Path(tiny), on_disk=case == "disk")), 4)
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, start = memory("VmRSS"), time.perf_counter()
    explained = lxt_fx.transform(loaded(folder, on_disk=case == "disk"))
    made = time.perf_counter()
    found = relevance(explained, tokens)
    done = {"transform": made - start, "explain": time.perf_counter() - made}
    print(json.dumps({"peak": memory("VmHWM") - before, "seconds": done, "relevance": found[0].tolist()}))


def measured(folder: Path, case: str) -> dict[str, Any]:
    """One case in a process of its own."""
    command = [sys.executable, __file__, "peak", str(folder), case]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def ratio(folder: Path, tokens: int, rounds: int) -> tuple[float, list[float]]:
    """The time of an explanation with weights on disk over that in memory: the median and all ratios of rounds."""
    modules = [lxt_fx.transform(loaded(folder, on_disk=on_disk)) for on_disk in (True, False)]
    ratios = []
    for _ in range(rounds + 1):
        seconds = []
        for module in modules:
            start = time.perf_counter()
            relevance(module, tokens)
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios[1:]), ratios[1:]


@app.command()
def compare(
    layers: Annotated[int, typer.Option(help="Layers of the model.")] = 12,
    hidden: int = 512,
    inner: int = 2560,
    rounds: Annotated[int, typer.Option(help="Rounds that are timed.")] = 7,
) -> None:
    """Peaks of both cases, and the ratio of their times for texts of several lengths."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        weights = save_model(folder, layers, hidden, inner) / MEBIBYTE
        print(f"weights {weights:.0f} MiB, {layers} layers")
        found = {case: measured(folder, case) for case in ("disk", "memory")}
        for case, each in found.items():
            seconds = ", ".join(f"{name} {value:.1f} s" for name, value in each["seconds"].items())
            print(f"{case:6s} peak {each['peak']:.0f} MiB ({each['peak'] / weights:.2f} of the weights), {seconds}")
        for tokens in (16, 128, 480):
            median, ratios = ratio(folder, tokens, rounds)
            print(f"{tokens} tokens: time on disk / in memory {median:.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    app()
