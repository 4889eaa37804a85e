"""Many targets in one call against one call for each, and the memory that a chunk takes.

    python benchmarks/many_targets.py             (some minutes; --quick: a tiny random Llama)

The relevance of 32 tokens after the last position of a text, by `lxt_fx.relevance_of` (one forward, batched backwards) and
by 32 single calls of forward and backward, as one writes them by hand. Of these a few are timed, in turn with the others,
and counted 32 times. Shown are medians of wall-clock and processor seconds, and the ratio of both, which is what counts on
a machine that has other work.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import models  # noqa: E402

TARGETS, BOUND = 32, 0.45
SINGLES = 2
"""Single calls that are timed a round."""

Seconds = tuple[float, float]
"""By the wall clock, and of the processor."""


def timed(call: Any) -> tuple[Seconds, Tensor]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return (time.perf_counter() - wall, time.process_time() - cpu), result


def single(explained: lxt_fx.Explained, embeds: Tensor, token: int) -> Tensor:
    """The relevance of one token [tokens], by hand."""
    leaf = embeds.clone().requires_grad_(True)
    logit = explained(inputs_embeds=leaf).logits[0, -1, token]
    (gradient,) = torch.autograd.grad(logit, leaf)
    return (leaf * gradient).detach().sum(-1)[0]


def measure(explained: lxt_fx.Explained, embeds: Tensor, chunk: int | None) -> dict[str, Seconds]:
    """Seconds of `TARGETS` single calls and of one call. Raises where their relevance differs."""
    tokens = list(range(100, 100 + TARGETS)) if explained.config.vocab_size > 200 else list(range(TARGETS))
    taken = [timed(lambda token=token: single(explained, embeds, token)) for token in tokens[:SINGLES]]
    targets = [lxt_fx.Target.at(-1, token) for token in tokens]
    many, found = timed(lambda: lxt_fx.relevance_of(explained, {"inputs_embeds": embeds}, targets, chunk=chunk))
    expected = torch.stack([relevance for _, relevance in taken])
    torch.testing.assert_close(found[:SINGLES, 0], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    one = [TARGETS * statistics.mean(seconds[i] for seconds, _ in taken) for i in (0, 1)]
    return {"singles": (one[0], one[1]), "many": many}


def tiny_llama() -> nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    ).eval()


def main(
    out: Annotated[Path, typer.Option(help="The folder for many_targets.json.")] = Path("out"),
    quick: Annotated[bool, typer.Option("--quick", help="A tiny random Llama.")] = False,
    rounds: Annotated[int, typer.Option(help="How often each is timed.")] = 3,
    tokens: Annotated[int, typer.Option(help="The length of the text.")] = 128,
    threads: Annotated[int, typer.Option(help="Of torch.")] = 2,
) -> None:
    """Time 32 targets in one call against 32 single calls."""
    torch.set_num_threads(threads)
    console = Console(width=None if sys.stdout.isatty() else 120)
    rows = []
    for attention in ("sdpa", "eager"):
        model = tiny_llama() if quick else models.load("smollm2")[0]
        model.set_attn_implementation(attention)
        explained = lxt_fx.transform(model)
        ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
        embeds = lxt_fx.embed(explained, ids).detach()
        for token in (0, 1):  # the first calls are slower
            single(explained, embeds, token)
        for chunk in (4, 16, None):
            with Progress(console=console) as progress:
                runs = [
                    measure(explained, embeds, chunk)
                    for _ in progress.track(range(rounds), description=f"{attention}, chunk {chunk}")
                ]
            row: dict[str, Any] = {"attention": attention, "chunk": chunk or "auto", "tokens": tokens, "threads": threads}
            for kind, index in (("wall", 0), ("cpu", 1)):
                ratios = [run["many"][index] / run["singles"][index] for run in runs]
                row |= {f"{name}_{kind}": statistics.median(run[name][index] for run in runs) for name in runs[0]}
                row |= {f"ratio_{kind}": statistics.median(ratios), f"ratios_{kind}": ratios}
            rows.append(row)
    table = Table(title=f"{TARGETS} targets, {tokens} tokens, {threads} threads", box=None, padding=(0, 1))
    for heading in ("attention", "chunk", "singles wall s", "one call wall s", "ratio wall", "ratio cpu", "bound"):
        table.add_column(heading, justify="right")
    for row in rows:
        seconds = [f"{row[key]:.2f}" for key in ("singles_wall", "many_wall")]
        ratios = [
            f"{row[f'ratio_{kind}']:.3f} ({min(row[f'ratios_{kind}']):.3f} to {max(row[f'ratios_{kind}']):.3f})"
            for kind in ("wall", "cpu")
        ]
        table.add_row(row["attention"], str(row["chunk"]), *seconds, *ratios, f"{BOUND}")
    console.print(table)
    out.mkdir(parents=True, exist_ok=True)
    Path(out, "many_targets.json").write_text(json.dumps(rows, indent=1))
    console.print(f"wrote {out / 'many_targets.json'}")


if __name__ == "__main__":
    typer.run(main)
