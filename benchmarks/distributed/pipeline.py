"""A pipeline over ranks beside one process: time, peak memory of each rank, bytes between stages.

    python benchmarks/distributed/pipeline.py        # 2 ranks, 16 micro-batches: some 5 minutes, 2 quiet cores
    python benchmarks/distributed/pipeline.py --ranks 4 --share 0.5    # on 2 cores: the kernel gives each rank half a core
    python benchmarks/distributed/pipeline.py --tiny                # seconds; the times mean nothing

A random Llama is written to safetensors once. Then one rank and `--ranks` ranks explain the same micro-batches in turns,
each rank on one thread, all on the meta path: no process ever holds a weight that is not its own. Printed, and written to
`--out` as JSON:

- speed-up: the median time of a call of one rank by that of the pipeline. P stages and M micro-batches without any cost
  of their own give P M / (M + P - 1), 1.88 for 2 and 16.
- memory: by how much a rank's resident memory grew at most, from before its weights were read to the end of its calls,
  weights that are mapped from their files included (`VmRSS`, every 5 ms): by the bytes of its stage's weights, and by its
  share of what one rank with the whole model needs.
- bytes that a rank sent in one call.

It needs nothing but torch, transformers and as many quiet cores as ranks. With `--share` each rank, and the one rank
beside them, gets that part of a core by a quota of its own (Linux, as root: a control group), so that fewer cores do."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx

ROOT = Path(__file__).parents[2]


class Peak:
    """The largest resident memory of this process while it is open, in bytes above what it had at the start."""

    def __init__(self) -> None:
        self.start = self.most = resident()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(0.005):
            self.most = max(self.most, resident())

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return max(self.most, resident()) - self.start


def resident() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024


GROUPS = Path("/sys/fs/cgroup")
PERIOD = 20_000
"""Microseconds in which a rank uses up its share of a core."""


@contextlib.contextmanager
def share_of_a_core(share: float) -> Iterator[None]:
    """Inside the block, all threads of this process together get so much of a core: 1 or more is no limit."""
    if share >= 1:
        yield
        return
    second = (GROUPS / "cgroup.controllers").exists()  # version 2 of control groups, where all controllers share a folder
    root = GROUPS if second else GROUPS / "cpu"
    own = root / f"lxt_fx-{os.getpid()}"
    own.mkdir()
    try:
        if second:
            (own / "cpu.max").write_text(f"{int(share * PERIOD)} {PERIOD}")
        else:
            (own / "cpu.cfs_period_us").write_text(str(PERIOD))
            (own / "cpu.cfs_quota_us").write_text(str(int(share * PERIOD)))
        (own / "cgroup.procs").write_text(str(os.getpid()))
        yield
    finally:
        (root / "cgroup.procs").write_text(str(os.getpid()))
        own.rmdir()


def config_of(options: argparse.Namespace) -> LlamaConfig:
    hidden = options.hidden
    return LlamaConfig(
        vocab_size=options.vocabulary, hidden_size=hidden, intermediate_size=hidden * 3, num_hidden_layers=options.layers,
        num_attention_heads=hidden // 64 or 1, max_position_embeddings=4096,
    )  # fmt: skip


def worker(options: argparse.Namespace) -> None:
    """One rank: the weights are read, one call is not counted, `--rounds` are."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank, folder = torch.distributed.get_rank(), Path(options.folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config_of(options)).eval()
    module = lxt_fx.transform(model)
    torch.manual_seed(0)
    ids = torch.randint(options.vocabulary, (options.micro_batches, options.tokens))
    peak = Peak()
    pipe = lxt_fx.distributed.pipeline(module, folder, schedule=options.schedule)
    found = pipe.relevance_of({"input_ids": ids}, [7], size=1)
    seconds = []
    with share_of_a_core(options.share):
        for _ in range(options.rounds):
            torch.distributed.barrier()
            begun = time.perf_counter()
            pipe.relevance_of({"input_ids": ids}, [7], size=1)
            seconds.append(time.perf_counter() - begun)
    made = {
        "rank": rank, "seconds": seconds, "peak": peak.stop(), "weights": pipe.size, "sent": found.sent,
        "layers": len(pipe.stage.layers), "sum": None if found.relevance is None else float(found.relevance.double().sum()),
    }  # fmt: skip
    (folder / f"{torch.distributed.get_world_size()}.{rank}.json").write_text(json.dumps(made))
    torch.distributed.destroy_process_group()


def measured(ranks: int, options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """What each of so many ranks measured."""
    own = [f"--{name}={getattr(options, name.replace('-', '_'))}" for name in NUMBERS]
    own += [f"--schedule={options.schedule}", f"--share={options.share}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", __file__]
    paths = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    paths["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    subprocess.run([*command, f"--folder={folder}", *own], check=True, env=paths)
    return [json.loads((folder / f"{ranks}.{rank}.json").read_text()) for rank in range(ranks)]


NUMBERS = {"layers": 12, "hidden": 768, "vocabulary": 8192, "tokens": 128, "micro-batches": 16, "rounds": 3}
TINY = {"layers": 4, "hidden": 64, "vocabulary": 256, "tokens": 16, "micro-batches": 4, "rounds": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in NUMBERS.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3, help="how often one rank and all ranks are measured, in turns")
    parser.add_argument("--share", type=float, default=1.0, help="how much of a core each rank gets")
    parser.add_argument("--schedule", default="1f1b")
    parser.add_argument("--folder", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    options = parser.parse_args()
    if options.folder:
        return worker(options)
    if options.tiny:
        vars(options).update({name.replace("-", "_"): number for name, number in TINY.items()}, turns=1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        torch.manual_seed(0)
        LlamaForCausalLM(config_of(options)).save_pretrained(folder, max_shard_size="200MB")
        turns = [(measured(1, options, folder), measured(options.ranks, options, folder)) for _ in range(options.turns)]
    report = reported(turns, options)
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1))
    return None


def reported(turns: list[tuple[list[Any], list[Any]]], options: argparse.Namespace) -> dict[str, Any]:
    """The medians over all turns, printed."""
    one = statistics.median(s for single, _ in turns for s in single[0]["seconds"])
    many = statistics.median(s for _, parts in turns for s in parts[0]["seconds"])
    count, batches = options.ranks, options.micro_batches
    best = count * batches / (batches + count - 1)
    print(f"one rank {one:.3f} s, {count} ranks {many:.3f} s: {one / many:.2f}x, of {best:.2f}x without any cost")
    sums = [parts[0]["sum"] for turn in turns for parts in turn]
    print(f"all relevance, in each run: {', '.join(f'{each:.6g}' for each in sums)}")
    whole = statistics.median(single[0]["peak"] for single, _ in turns)
    peaks = [statistics.median(parts[rank]["peak"] for _, parts in turns) for rank in range(count)]
    for part, peak in zip(turns[0][1], peaks, strict=True):
        share = whole * part["weights"] / sum(each["weights"] for each in turns[0][1])
        print(
            f"rank {part['rank']}: {part['layers']} layers, weights {part['weights'] / 2**20:.1f} MiB, peak memory "
            f"{peak / part['weights']:.2f} of them and {peak / share:.2f} of their share of one rank's, "
            f"{part['sent'] / 2**20:.2f} MiB sent"
        )
    sizes = {name: getattr(options, name) for name in ("ranks", "micro_batches", "tokens", "schedule", "share")}
    return {
        "run": {"config": config_of(options).to_diff_dict(), **sizes, "seconds": many, "alone": one, "peaks": peaks},
        "one": one,
        "many": many,
        "speed_up": one / many,
        "best": best,
        "turns": turns,
        "options": vars(options) | {"out": None},
    }


if __name__ == "__main__":
    main()
