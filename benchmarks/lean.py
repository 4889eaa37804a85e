"""What a lean explanation costs: our module against the plain input*gradient of the model itself, interleaved in one run.

    python benchmarks/lean.py [--rounds 9] [--threads 2] [--lengths 128,512] [--compiled] [--quick]

For each model, attention and length: the median over rounds of (time of ours / time of plain), forward and backward from
one logit of the last token, all logits computed, parameters frozen; and the bytes that both save for the backward (each
storage once, parameters left out). `--compiled` adds our module under torch.compile, over the plain eager pass. `--layers`
takes fewer layers and `--vocabulary` fewer tokens of the random model; `--cpu-time` measures the time of the process, which
other processes of the machine disturb less.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx

sys.path.append(str(Path(__file__).resolve().parents[1] / "examples"))
import models  # noqa: E402

TIME, BYTES, COMPILED = 1.00, 0.68, 0.92
"""Bounds, as ratios to the plain pass in eager mode."""


def random_llama(layers: int, vocabulary: int) -> nn.Module:
    """SmolLM2's shape with random weights: 134M parameters with 30 layers and a vocabulary of 49152."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def passes_of(model: nn.Module, length: int, compiled: bool) -> dict[str, Callable[[], Tensor]]:
    """Forward and backward by name; each returns the gradient of the embeddings."""
    model.requires_grad_(False)
    torch.manual_seed(length)
    ids = torch.randint(model.config.vocab_size, (1, length))
    embeds = model.get_input_embeddings()(ids).detach()
    explained = lxt_fx.transform(model)
    calls: dict[str, Any] = {
        "plain": lambda e: model(inputs_embeds=e, use_cache=False),
        "lxt_fx": lambda e: explained(inputs_embeds=e),
    }
    if compiled:
        fast = torch.compile(explained, fullgraph=True)
        calls["compiled"] = lambda e: fast(inputs_embeds=e)

    def run(call: Any) -> Tensor:
        leaf = embeds.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(leaf).logits[0, -1, 7], leaf)
        return gradient

    return {name: lambda call=call: run(call) for name, call in calls.items()}  # type: ignore[misc]


def timed(passes: dict[str, Callable[[], Tensor]], rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Seconds by round, in turns so that a change of the machine's speed meets all alike."""
    taken: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(rounds + 2):
        for name, run in passes.items():
            start = clock()
            run()
            if turn >= 2:
                taken[name].append(clock() - start)
    return taken


def bytes_saved(model: nn.Module, run: Callable[[], Tensor]) -> int:
    """What autograd keeps for the backward: each storage once, without the model's parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    storages: dict[int, int] = {}
    kept = []  # a storage that was freed could lend its address to another

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storages.values())


def report(title: str, model: nn.Module, length: int, rounds: int, compiled: bool, clock: Callable[[], float]) -> None:
    """Prints the ratios of one model at one length."""
    passes = passes_of(model, length, compiled)
    saved = {name: bytes_saved(model, passes[name]) for name in ("plain", "lxt_fx")}
    found = timed(passes, rounds, clock)
    print(f"{title}, {length} tokens: plain {1000 * statistics.median(found['plain']):.0f} ms")
    for name, bound in (("lxt_fx", TIME), ("compiled", COMPILED)):
        if name in found:
            ratios = [a / b for a, b in zip(found[name], found["plain"], strict=True)]
            line(f"{name} / plain, time", statistics.median(ratios), bound, f"{min(ratios):.3f} to {max(ratios):.3f}")
    megabytes = f"{saved['lxt_fx'] / 1e6:.1f} of {saved['plain'] / 1e6:.1f} MB"
    line("lxt_fx / plain, bytes saved", saved["lxt_fx"] / saved["plain"], BYTES, megabytes)


def line(name: str, ratio: float, bound: float, spread: str) -> None:
    """Prints one ratio beside its bound."""
    said = "kept" if ratio <= bound else "BROKEN"
    print(f"  {name:<28} {ratio:.3f}   bound {bound:.2f}: {said}   ({spread})", flush=True)


def main(
    rounds: int = 9,
    threads: int = 2,
    lengths: str = "128,512",
    attention: str = "sdpa",
    compiled: bool = False,
    layers: int = 30,
    vocabulary: int = 49152,
    only: str = "",
    cpu_time: bool = False,
) -> None:
    """Print the ratios against their bounds."""
    torch.set_num_threads(threads)
    made: dict[str, Callable[[], nn.Module]] = {"random llama": lambda: random_llama(layers, vocabulary)}
    if (models.cache_folder() / "smollm2").is_dir():
        made["smollm2"] = lambda: models.load("smollm2")[0]
    clock = time.process_time if cpu_time else time.perf_counter
    for name, make in made.items():
        for kind in attention.split(",") if only in name else []:
            model = make()
            model.set_attn_implementation(kind)
            for length in map(int, lengths.split(",")):
                report(f"{name} ({kind})", model, length, rounds, compiled, clock)


if __name__ == "__main__":
    typer.run(main)
