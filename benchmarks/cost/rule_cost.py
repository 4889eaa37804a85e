"""What the rules for linear maps cost: forward and backward against the epsilon row on the same layer, interleaved.

    python benchmarks/cost/rule_cost.py [--rounds 30] [--threads 1] [--device cpu]

Prints the median time of each, and the median ratio to epsilon's time in the same round; the bound is 3.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
import typer
from torch import Tensor, nn

import lxt_fx
from lxt_fx.rule_table import linear_rules as rules

BOUND = 3.0
BOUNDED = ("gamma", "z-plus", "alpha-beta")
"""The rows that the bound is for."""

ROWS = {
    "gamma": rules.gamma(0.25),
    "z-plus": rules.z_plus(),
    "excitation": rules.excitation(),
    "alpha-beta": rules.alpha_beta(2, 1),
    "z-box": rules.z_box(-6.0, 6.0),
    "w-square": rules.w_square(),
    "flat": rules.flat(),
}


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    """A ViT-B MLP layer on an image's tokens, and convolutions of a ResNet and of a first layer."""
    torch.manual_seed(0)
    return {
        "linear 768 -> 3072, 196 tokens": (nn.Linear(768, 3072), torch.randn(1, 196, 768)),
        "conv2d 64 -> 64, 3 x 3, 56 x 56": (nn.Conv2d(64, 64, 3, padding=1), torch.randn(1, 64, 56, 56)),
        "conv2d 128 -> 128, 3 x 3 by 2, batch 4": (nn.Conv2d(128, 128, 3, 2, 1), torch.randn(4, 128, 28, 28)),
    }


def pass_of(rule: lxt_fx.Rule | None, layer: nn.Module, x: Tensor) -> Callable[[], None]:
    """One forward and backward; with None by the epsilon row."""
    table = lxt_fx.TABLES["attnlrp"] if rule is None else lxt_fx.TABLES["attnlrp"].override("0", rule)
    explained = lxt_fx.transform(nn.Sequential(layer).eval(), (x,), rules=table, epsilon=1e-6, dynamic=False)
    leaf = x.clone().requires_grad_()
    seed = torch.ones_like(explained(x))

    def run() -> None:
        torch.autograd.grad(explained(leaf), leaf, seed)
        if x.is_cuda:
            torch.cuda.synchronize()

    return run


def timed(passes: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds by round, in turns so that a change of the machine's speed meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(rounds + 3):
        for name, run in passes.items():
            start = time.perf_counter()
            run()
            if turn >= 3:
                taken[name].append(1000 * (time.perf_counter() - start))
    return taken


def main(rounds: int = 30, threads: int = 1, device: str = "cpu") -> None:
    """Print what each row costs on each layer, against the epsilon row."""
    torch.set_num_threads(threads)
    broken = []
    for title, (layer, x) in layers().items():
        layer, x = layer.to(device), x.to(device)
        passes = {"epsilon": pass_of(None, layer, x)} | {name: pass_of(rule, layer, x) for name, rule in ROWS.items()}
        found = timed(passes, rounds)
        print(f"{title}   ({device}, {threads} threads, {rounds} rounds)")
        for name, times in found.items():
            ratio = statistics.median(a / b for a, b in zip(times, found["epsilon"], strict=True))
            kept = name not in BOUNDED or ratio <= BOUND
            said = f"bound {BOUND:g}: {'kept' if kept else 'BROKEN'}" if name in BOUNDED else ""
            print(f"  {name:<12} {statistics.median(times):8.2f} ms   {ratio:5.2f} x epsilon   {said}".rstrip())
            broken += [] if kept else [f"{name}, {title}"]
    sys.exit(f"bound broken: {'; '.join(broken)}" if broken else 0)


if __name__ == "__main__":
    typer.run(main)
