"""One process of speed.py: it makes methods ready on a model and runs them when asked.

It is started with a JSON object, and writes one JSON object a line. In mode `time` it reads the name of a method a line
and answers with its seconds; in mode `memory` it measures one method; in the modes `meta` and `linear`, transform
itself.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

Answer = dict[str, Any]


def main() -> None:
    """What the packages print goes to stderr, so that stdout holds answers only."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    if spec["process"].startswith("lxt"):
        stand_in_for_torchvision()
    if spec["mode"] in ("meta", "linear"):
        settings = {name: spec[name] for name in ("layers", "rounds") if name in spec}
        answers.write(json.dumps(tried(lambda: {"meta": meta, "linear": linear}[spec["mode"]](**settings))) + "\n")
        return
    session = Session(spec)
    if spec["mode"] == "memory":
        answers.write(json.dumps(tried(lambda: session.memory(spec["methods"][0]))) + "\n")
        return
    for name in spec["methods"]:
        answers.write(json.dumps(tried(lambda name=name: session.prepare(name))) + "\n")  # type: ignore[misc]
    for line in sys.stdin:
        answers.write(json.dumps(tried(lambda line=line: session.timed(line.strip()))) + "\n")  # type: ignore[misc]


def tried(measure: Callable[[], Answer]) -> Answer:
    """The answer, or why there is none: a row of the tables, whatever it is."""
    try:
        return measure()
    except Exception as error:
        first = next(iter(str(error).splitlines()), "")
        return {"why": first if type(error).__name__ == "NotBuiltError" else f"{type(error).__name__}: {first}"[:200]}


def stand_in_for_torchvision() -> None:
    """torchvision's wheel registers kernels for two of its ops; without its binary, torch must know them by name first."""
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class Session:
    """A model, and the methods made ready on it."""

    def __init__(self, spec: Answer) -> None:
        from speed_grid import Cell  # after torch knows torchvision's ops, which transformers may import
        from speed_models import work_of

        self.device = spec["device"]
        self.methods: Any = importlib.import_module("speed_methods")
        self.work = work_of(Cell(**spec["cell"]), spec["folder"], self.device, spec["dtype"])
        self.ready: dict[str, Any] = {}

    def prepare(self, name: str) -> Answer:
        """Make the method ready and run it once: what that cost, and its relevance."""
        ready = self.methods.PREPARE[name](self.work)
        self.ready[name] = ready
        first, _, relevance = self.run(ready)
        found = {} if relevance is None else {"relevance": relevance.float().flatten(0, -2).tolist()}
        return {"name": name, "first_seconds": first, **ready.facts, **found}

    def timed(self, name: str) -> Answer:
        """Seconds of one run by the clock and of all its threads, without Python's garbage collector."""
        gc.collect()
        gc.disable()
        try:
            seconds, of_threads, _ = self.run(self.ready[name])
        finally:
            gc.enable()
        return {"name": name, "seconds": seconds, "cpu_seconds": of_threads}

    def run(self, ready: Any) -> tuple[float, float, Any]:
        """Seconds by the clock and of all threads, and relevance. Parameters ask for a gradient only for the method that is
        meant to pay for them."""
        model = self.work.model
        if ready.with_parameters:
            model.requires_grad_(True)
        leaf = self.work.leaf()
        self.wait()
        start, used = time.perf_counter(), time.process_time()
        relevance = ready.run(leaf)
        self.wait()
        seconds, of_threads = time.perf_counter() - start, time.process_time() - used
        if ready.with_parameters:
            model.zero_grad(set_to_none=True)
            model.requires_grad_(False)
        return seconds, of_threads, relevance

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def memory(self, name: str) -> Answer:
        """MiB at the peak of one run above what the process held before it (weights, graph), and bytes saved for the
        backward. A first run, not measured, makes torch allocate what it keeps, and compiles."""
        ready = self.methods.PREPARE[name](self.work)
        self.run(ready)
        held = self.held()
        self.run(ready)
        peak = self.peak()
        found = {"name": name, "held_mib": held, "peak_mib": peak - held}
        return found | ({} if ready.value is None else {"saved_bytes": self.saved(ready)})

    def held(self) -> float:
        gc.collect()
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated() / 2**20
        return held_by_process()

    def peak(self) -> float:
        return status("VmHWM") if self.device == "cpu" else torch.cuda.max_memory_allocated() / 2**20

    def saved(self, ready: Any) -> int:
        """Bytes of the storages that the forward saves for the backward, each counted once, parameters left out."""
        model = self.work.model
        if ready.with_parameters:
            model.requires_grad_(True)
        owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        sizes: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in owned:
                sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            value = ready.value(self.work.leaf())
        del value
        return sum(sizes.values())


def held_by_process() -> float:
    """MiB of resident memory, after free memory was given back; the peak starts again from here. Linux with glibc."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    return held


def status(field: str) -> float:
    """A line of /proc/self/status in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def meta(layers: int) -> Answer:
    """Transform a Llama in the shape of the 70B model, without weights: seconds by stage, peak memory, nodes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    lxt_fx: Any = importlib.import_module("lxt_fx")
    config = LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=layers, num_attention_heads=64,
        num_key_value_heads=8,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval().to(torch.bfloat16)
    held_by_process()
    start = time.perf_counter()
    record = lxt_fx.transform(model).record
    total = time.perf_counter() - start
    return {
        "seconds": total,
        "after_capture": total - sum(record.seconds.get(stage, 0.0) for stage in ("example", "capture")),
        "stages": dict(record.seconds),
        "peak_mib": status("VmHWM"),
        "nodes": len(record.stages["capture"].graph.nodes),
    }


def linear(layers: list[int], rounds: int) -> Answer:
    """Is transform linear in the size of the graph? Narrow random Llamas of these numbers of layers are transformed in
    turns: nodes of each, and round by round its milliseconds of CPU a node, in all and after capture, which is torch's own.
    """
    models = [narrow_llama(number) for number in layers]
    _transformed(narrow_llama(1))  # the first transform of a process also imports torch.export
    nodes: list[int] = [0] * len(models)
    total: list[list[float]] = [[] for _ in models]
    after_capture: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for number, model in enumerate(models):
            nodes[number], seconds, ours = _transformed(model)
            total[number].append(1000 * seconds / nodes[number])
            after_capture[number].append(1000 * ours / nodes[number])
    return {"layers": layers, "nodes": nodes, "total": total, "after_capture": after_capture}


def narrow_llama(layers: int) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2,
        )
    ).eval()  # fmt: skip


def _transformed(model: torch.nn.Module) -> tuple[int, float, float]:
    """Nodes of the captured graph, and seconds of CPU of transform: all, and those after capture. Python's garbage
    collector, whose pauses would strike one stage or another, is off."""
    from lxt_fx.compiler.captures import captured_from
    from lxt_fx.compiler.options import Options, table_named
    from lxt_fx.compiler.pipeline import compiled_by

    gc.collect()
    gc.disable()
    start = time.process_time()
    source = captured_from(model, (), None, dynamic=True)  # the two halves of transform
    middle = time.process_time()
    explained = compiled_by(source, table_named("attnlrp"), Options("gradient", 0.0, True))
    end = time.process_time()
    gc.enable()
    return len(explained.record.stages["capture"].graph.nodes), end - start, end - middle


if __name__ == "__main__":
    main()
