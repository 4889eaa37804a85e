"""How does memory grow with the number of tokens?

    python benchmarks/cost/long_inputs.py           (about a quarter of an hour; --quick: a minute; Linux)

Random Llamas on the CPU in float32, relevance of one logit at the last token. Peak memory above the weights, each case in a
process of its own, measured as in `memory.py`. Two tables: a small Llama (2 layers, hidden 64, 4 heads) by tokens, with the
slope of the logarithms from the first to the last column, and one of 8 layers, hidden 512 and 4 heads at 4096 tokens, over
plain input * gradient with eager attention. Padded: 50 tokens on the left are padding, so that the mask is not causal, and
torch's kernel cannot do without it.
"""

from __future__ import annotations

import gc
import json
import math
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx

BOUND, GROWTH_BOUND = 0.25, 1.1
"""Peak over that of the plain gradient with eager attention, and growth."""

MEBIBYTE = 1 << 20
TOKENS = (1024, 2048, 4096, 8192, 16384, 32768)
PADDING = 50


@dataclass(frozen=True, slots=True)
class Method:
    """How relevance is computed: as transformers runs the model (`plain`) or by lxt_fx."""

    attention: str
    plain: bool = False
    padded: bool = False
    last: bool = False
    """`positions="last"` and `checkpoint="sqrt"`."""


METHODS = {
    "plain, eager": Method("eager", plain=True),
    "plain, sdpa": Method("sdpa", plain=True),
    "ours, sdpa": Method("sdpa"),
    "ours, sdpa, padded": Method("sdpa", padded=True),
    "ours, eager": Method("eager"),
    "ours, eager, padded": Method("eager", padded=True),
    'ours, sdpa, last, "sqrt"': Method("sdpa", last=True),
}


def llama(size: str, attention: str) -> nn.Module:
    """A random Llama whose parameters ask no gradient: `small`, or `large` for the comparison with plain."""
    torch.manual_seed(0)
    layers, hidden = {"small": (2, 64), "large": (8, 512), "tiny": (2, 32)}[size]
    config = LlamaConfig(
        vocab_size=256, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=TOKENS[-1], attn_implementation=attention,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def relevance(module: nn.Module, hidden: int, tokens: int, padded: bool) -> Tensor:
    """Of one logit at the last position, by token."""
    leaf = torch.randn(1, tokens, hidden, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    mask = torch.ones(1, tokens, dtype=torch.long)
    mask[:, : PADDING if padded else 0] = 0
    module(inputs_embeds=leaf, attention_mask=mask, use_cache=False).logits[0, -1, 42].backward()
    assert leaf.grad is not None
    return (leaf.detach() * leaf.grad).sum(-1)


def measure(name: str, size: str, tokens: int) -> dict[str, float]:
    """Peak above the start in MiB, in this process, and the sum of relevance."""
    method = METHODS[name]
    model = llama(size, method.attention)
    hidden = model.config.hidden_size
    settings: dict[str, Any] = {"positions": "last", "checkpoint": "sqrt"} if method.last else {}
    module = model if method.plain else lxt_fx.transform(model, **settings)
    relevance(module, hidden, 64, method.padded)
    gc.collect()
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    found = relevance(module, hidden, tokens, method.padded)
    return {"peak": (status("VmHWM") - before) / MEBIBYTE, "sum": float(found.sum())}


def status(field: str) -> int:
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def alone(name: str, size: str, tokens: int) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, __file__, "--only", name, "--size", size, "--tokens", str(tokens)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def growth(by_tokens: dict[int, dict[str, float]]) -> float:
    """The slope of log(peak) over log(tokens), least squares."""
    points = [(math.log(tokens), math.log(case["peak"])) for tokens, case in by_tokens.items()]
    mean_x, mean_y = (statistics.fmean(axis) for axis in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)


def growth_table(size: str, counts: tuple[int, ...], most: int, out: dict[str, Any]) -> Table:
    """Peak by number of tokens. Plain eager attention is measured up to `most` tokens."""
    shown = Table(title="Peak memory above the weights, MiB", box=box.SIMPLE_HEAD)
    for column in ("", *map(str, counts), "growth", "bound"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, method in METHODS.items():
        quadratic = method.plain and method.attention == "eager"
        found = {tokens: alone(name, size, tokens) for tokens in counts if not (quadratic and tokens > most)}
        cells = [f"{case['peak']:.0f}" for case in found.values()]
        cells += ["-"] * (len(counts) - len(cells))
        out[name] = {"by_tokens": found, "growth": growth(found)}
        shown.add_row(name, *cells, f"{out[name]['growth']:.2f}", "" if method.plain else str(GROWTH_BOUND))
    return shown


def ratio_table(size: str, tokens: int, out: dict[str, Any]) -> Table:
    """Peak over that of the plain gradient with eager attention."""
    shown = Table(title=f"{tokens} tokens, peak above the weights", box=box.SIMPLE_HEAD)
    for column in ("", "MiB", "/ plain, eager", "bound"):
        shown.add_column(column, justify="left" if not column else "right")
    for name, method in METHODS.items():
        out[name] = alone(name, size, tokens)
        ratio = out[name]["peak"] / out["plain, eager"]["peak"]
        bound = "" if method.plain else str(BOUND)
        shown.add_row(name, f"{out[name]['peak']:.0f}", f"{ratio:.3f}", bound)
    return shown


def main(
    quick: Annotated[bool, typer.Option(help="Small sizes, only to see that it runs.")] = False,
    out: Annotated[Path, typer.Option(help="The folder for long_inputs.json.")] = Path("out"),
    only: Annotated[str, typer.Option(hidden=True)] = "",
    size: Annotated[str, typer.Option(hidden=True)] = "",
    tokens: Annotated[int, typer.Option(hidden=True)] = 0,
) -> None:
    """Print memory by number of tokens, its growth, and the ratio to the plain gradient."""
    torch.set_num_threads(1)
    if only:
        print(json.dumps(measure(only, size, tokens)))
        return
    console = Console(width=130)
    results: dict[str, dict[str, Any]] = {"growth": {}, "ratio": {}}
    console.print(growth_table("tiny" if quick else "small", TOKENS[:2] if quick else TOKENS, 4096, results["growth"]))
    console.print(ratio_table("tiny" if quick else "large", 1100 if quick else 4096, results["ratio"]))
    out.mkdir(parents=True, exist_ok=True)
    Path(out, "long_inputs.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    typer.run(main)
