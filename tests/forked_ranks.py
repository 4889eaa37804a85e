"""Ranks of torch.distributed that are forked from one process: what that process imported and transformed, they have."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def forked(count: int, work: Callable[[int], Any], folder: Path, limit: float = 120.0) -> list[Any]:
    """What `work(rank)` returns at each of `count` gloo ranks; the text of an exception that it raised; None where the rank
    died, was stopped by a signal while all others ended, or did not end within `limit` seconds."""
    folder.mkdir(exist_ok=True)
    children = []
    for rank in range(count):
        if child := os.fork():
            children.append(child)
            continue
        torch.set_num_threads(1)
        try:
            store = dist.FileStore(str(folder / "store"), count)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
            made = work(rank)
        except BaseException as error:
            traceback.print_exc()
            made = f"{type(error).__name__}: {error}"
        torch.save(made, folder / f"{rank}.part")
        os.replace(folder / f"{rank}.part", folder / f"{rank}.pt")
        sys.stdout.flush()
        os._exit(0)
    _joined(children, time.monotonic() + limit)
    files = [folder / f"{rank}.pt" for rank in range(count)]
    return [torch.load(file, weights_only=False) if file.exists() else None for file in files]


def _joined(children: list[int], end: float) -> None:
    left, stopped = set(children), set[int]()
    while left - stopped and time.monotonic() < end:
        for child in left - stopped:
            found, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
            if found:
                (stopped.add if os.WIFSTOPPED(status) else left.discard)(child)
        time.sleep(0.02)
    for child in left:
        os.kill(child, 9)
        os.waitpid(child, 0)
