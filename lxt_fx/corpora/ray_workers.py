"""Windows of a corpus explained by Ray Data: actors that hold the explained module, started here if Ray is not running.

The windows are those of one process, so the lines are too. Rounds of windows lie in Ray's store at once, and Ray Data gives
each to an actor that is free; an actor that dies is started again, and its window explained by another one. What comes back
is written by the process that called, one window at a time, so a window counts once whoever died.
"""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.saved_module import load, save
from lxt_fx.corpora.explainer import CorpusExplainer
from lxt_fx.corpora.steps import Step, step_of
from lxt_fx.corpora.stream import Keyed
from lxt_fx.corpora.wanted import Wanted

ROUND = 2**30
"""How many bytes of samples lie in Ray's store at once. Behind each round the actors are started anew, which takes as long
as to load the model."""

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
"""What Ray is told where it is started here: to send nothing about its use, and to write its own log into files."""


def steps_on_ray(
    windows: Iterator[Sequence[Keyed]], explainer: CorpusExplainer, header: Mapping[str, Any], workers: int
) -> Iterator[Step]:
    """The steps of the windows, as they are done, by so many workers.

    Raises InputError without Ray, and for a module that cannot be saved; what a worker raises is raised here.
    """
    ray, function = needs_ray(explainer.function), explainer.function
    first = next(windows, None)
    if first is None:
        return
    with tempfile.TemporaryDirectory(prefix="lxt_fx-workers-") as folder, _running(ray, workers) as local:
        path = Path(folder) / "module.safetensors"
        device = _device(explainer.module(()), function)
        save(explainer.module(()), path)
        threads = max(1, (os.cpu_count() or 1) // workers) if local else 1
        setup = Setup(str(path), device, threads, explainer.processor, explainer.wanted, header, function)
        module = None if local else ray.put(path.read_bytes())  # on other machines there is no such file
        for blocks in _rounds(ray, chain([first], windows)):
            yield from _round(ray, blocks, setup, module, workers)


def needs_ray(function: str) -> Any:
    """The module ray with ray.data. Raises InputError if it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            f"{function}: workers need Ray; pip install 'lxt_fx[ray]', or leave workers out: one process gives the same "
            "lines"
        ) from error
    return ray


@dataclass(frozen=True, slots=True)
class Setup:
    """What a worker is told: where the saved module lies, its device and threads, and what it explains."""

    path: str
    device: str
    threads: int
    processor: Any
    wanted: Wanted
    header: Mapping[str, Any]
    function: str


class Worker:
    """The actor: it loads the module once, and explains one window after another."""

    def __init__(self, setup: Setup, module: Any) -> None:
        import ray

        torch.set_num_threads(setup.threads)
        wanted, path = setup.wanted, Path(setup.path)
        with tempfile.TemporaryDirectory(prefix="lxt_fx-worker-") as folder:
            if module is not None:
                path = Path(folder) / "module.safetensors"
                path.write_bytes(ray.get(module))
            explained = load(path).to(setup.device)
        self.explainer = CorpusExplainer(
            explained, setup.processor, wanted.target, labels=wanted.labels, latent=wanted.places, top=wanted.top,
            batch_tokens=wanted.batch_tokens, function=setup.function,
        )  # fmt: skip
        self.header = setup.header

    def __call__(self, block: Any) -> Any:
        """The steps of the windows of a block."""
        import pyarrow

        steps = [step_of(pickle.loads(each.as_py()), self.explainer, self.header) for each in block["window"]]
        return pyarrow.table({
            "name": [step.name for step in steps],
            "lines": pyarrow.array([_packed(step.lines) for step in steps], pyarrow.large_binary()),
            "bad": [json.dumps(step.bad) for step in steps],
        })  # fmt: skip


def _rounds(ray: Any, windows: Iterator[Sequence[Keyed]]) -> Iterator[list[Any]]:
    """The windows in Ray's store, a block for each, as many as it is to hold at once."""
    import pyarrow

    blocks, size = list[Any](), 0
    for window in windows:
        data = pickle.dumps(window)
        blocks.append(ray.put(pyarrow.table({"window": pyarrow.array([data], pyarrow.large_binary())})))
        size += len(data)
        if size > ROUND:
            yield blocks
            blocks, size = [], 0
    if blocks:
        yield blocks


def _round(ray: Any, blocks: Sequence[Any], setup: Setup, module: Any, workers: int) -> Iterator[Step]:
    """The steps of these windows, in whatever order they are done."""
    data = ray.data.from_arrow_refs(list(blocks))
    data.context.enable_progress_bars = False
    found = data.map_batches(
        Worker,
        fn_constructor_args=(setup, module),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=min(workers, len(blocks))),
        num_cpus=1,
        num_gpus=0 if setup.device == "cpu" else 1,
    )
    try:
        for block in found.iter_batches(batch_size=None, batch_format="pyarrow"):
            for row in block.to_pylist():
                yield Step(row["name"], _unpacked(row["lines"]), json.loads(row["bad"]))
    except ray.exceptions.RayTaskError as error:
        cause = _ours(error)
        raise error if cause is None else cause from error


def _ours(error: BaseException) -> LxtFxError | None:
    """The error of ours that a worker raised."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, LxtFxError):
            return seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return None


@contextmanager
def _running(ray: Any, workers: int) -> Iterator[bool]:
    """Ray inside the block. If it does not run it is started here and ended; where RAY_ADDRESS names a cluster, that one is
    joined and left. Gives whether it was started on this machine."""
    logs = [logging.getLogger(name) for name in ("ray", "ray.data")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    local = ours and not os.environ.get("RAY_ADDRESS")
    where: dict[str, Any] = {"address": "local", "num_cpus": workers, "include_dashboard": False} if local else {}
    before = {name: os.environ.get(name) for name in QUIET}
    try:
        if ours:
            os.environ.update({name: value for name, value in QUIET.items() if before[name] is None})
            ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        yield local
    finally:
        if ours:
            ray.shutdown()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _device(explained: Explained, function: str) -> str:
    """The device of a worker. Raises InputError for a module on several, and on one that workers do not have by itself."""
    found = {tensor.device for tensor in (*explained.parameters(), *explained.buffers())}
    kinds = {device.type for device in found}
    if len(found) > 1 or not kinds <= {"cpu", "cuda"}:
        raise InputError(
            f"{function}: workers take a module on the CPU or on one GPU each, and this one is on "
            f"{', '.join(sorted(map(str, found)))}; leave workers out, or move the model"
        )
    return "cuda" if kinds == {"cuda"} else "cpu"


def _packed(table: Any) -> bytes:
    import pyarrow

    sink = io.BytesIO()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _unpacked(data: bytes) -> Any:
    import pyarrow

    with pyarrow.ipc.open_stream(data) as reader:
        return reader.read_all()
