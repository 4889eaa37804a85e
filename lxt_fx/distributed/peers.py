"""The ranks of a pipeline: one process group of their own with a time-out, and who is to blame when a call fails.

A rank that dies closes its connections, so its neighbours fail at once; one that stops answering is noticed by the
time-out. While a call runs, each rank counts up a number in the store of the default process group. A rank that fails says
why there, closes its connections, so that its own neighbours fail too, and looks whose number stands still.
"""

from __future__ import annotations

import gc
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

from lxt_fx.base.errors import CallError, InputError, LxtFxError
from lxt_fx.base.torch_internals import default_store

BEAT, STILL = 0.5, 2.5
"""Seconds between two counts, and after how many without one a rank counts as gone."""

_MADE: dict[tuple[int, ...], int] = {}
"""How many pipelines these ranks made: the same number at each of them."""


class Peers:
    """The ranks of a pipeline, in the order of its stages.

    Raises InputError where torch.distributed was not started, or this
    process is none of the ranks."""

    def __init__(self, group: Any, timeout: float) -> None:
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized():
            raise InputError(
                'pipeline: torch.distributed was not started; call torch.distributed.init_process_group("gloo"), or '
                '"nccl", first, in a script that torchrun starts'
            )
        if timeout <= 0:
            raise InputError(f"pipeline: timeout must be a number of seconds above 0, got {timeout!r}")
        self.ranks: list[int] = dist.get_process_group_ranks(group or dist.group.WORLD)
        if dist.get_rank() not in self.ranks:
            raise InputError(f"pipeline: rank {dist.get_rank()} is not in the group of ranks {self.ranks}")
        self.rank, self.count = self.ranks.index(dist.get_rank()), len(self.ranks)
        self.timeout = timedelta(seconds=timeout)
        key = tuple(self.ranks)
        _MADE[key] = _MADE.get(key, 0) + 1
        self.name = f"lxt_fx/{'-'.join(map(str, self.ranks))}/{_MADE[key]}"
        self.store = default_store()
        self._whole = len(self.ranks) == dist.get_world_size()
        self._group: Any = None
        self._calls = 0

    @property
    def group(self) -> Any:
        """The process group, made at the first call and after a failed one."""
        import torch.distributed as dist

        if self._group is None:
            self._group = dist.new_group(self.ranks, timeout=self.timeout, use_local_synchronization=not self._whole)
        return self._group

    def begin(self) -> Beats:
        """Starts a call: counts until it is stopped."""
        self._calls += 1
        return Beats(self.store, self._key("beat"), self.rank)

    def gathered(self, value: Any) -> list[Any]:
        """What each rank gave, at every rank."""
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=self.group)
        return found

    def at_first(self, value: Any) -> list[Any]:
        """What each rank gave, at the first rank; an empty list at the others."""
        import torch.distributed as dist

        found: list[Any] | None = [None] * self.count if self.rank == 0 else None
        dist.gather_object(value, found, dst=self.ranks[0], group=self.group)
        return found or []

    def failure(self, error: Exception, own: Exception | None) -> LxtFxError:
        """The error that this rank raises. `own` is what failed at this rank; None where a neighbour did not answer."""
        import torch.distributed as dist

        said = "".join(traceback.format_exception_only(own or error)).strip()
        if own is not None:
            self._tell(said)
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None
        for each in (error, *([] if own is None else [own])):
            traceback.clear_frames(each.__traceback__)
            each.__traceback__ = each.__cause__ = each.__context__ = None
        gc.collect()  # the connections close with the last object that holds the group
        if own is not None:
            return own if isinstance(own, LxtFxError) else CallError(f"pipeline: {self._me()} failed: {said}")
        return CallError(self._blame(said.splitlines()[0]))

    def _me(self) -> str:
        return self._named(self.rank)

    def _named(self, rank: int) -> str:
        return f"rank {self.ranks[rank]} (stage {rank} of {self.count})"

    def _key(self, kind: str) -> str:
        return f"{self.name}/{self._calls}/{kind}"

    def _tell(self, said: str) -> None:
        try:
            self.store.set(f"{self._key('failed')}/{self.rank}", said)
        except RuntimeError:
            return  # the process that holds the store is gone; the others find that out themselves

    def _blame(self, said: str) -> str:
        again = "start the processes again"
        try:
            told, gone = self._all_told(), list[int]()
            if not told:  # a rank that fails says so before its connections close
                gone = self._still()
                told = self._all_told()
        except RuntimeError:
            return (
                f"pipeline: {self._me()} lost contact with the others, and with the process that holds the store of "
                f"torch.distributed, which is gone too; {again} ({said})"
            )
        if told:
            rank, text = next(iter(told.items()))
            return f"pipeline: {self._named(rank)} failed, so {self._me()} stops too: {text}"
        if gone:
            names = ", ".join(map(self._named, gone))
            return f"pipeline: {names} is gone (killed, or stopped), so {self._me()} cannot go on; {again} ({said})"
        seconds = self.timeout.total_seconds()
        return (
            f"pipeline: a neighbour of {self._me()} did not answer, within {seconds:g} s or because it failed too, and all "
            f"processes are alive; give timeout=... if a micro-batch takes that long, else {again} ({said})"
        )

    def _all_told(self) -> dict[int, str]:
        """What the ranks that failed said, by rank."""
        keys = {rank: f"{self._key('failed')}/{rank}" for rank in range(self.count)}
        return {rank: self.store.get(key).decode() for rank, key in keys.items() if self.store.check([key])}

    def _still(self) -> list[int]:
        """The ranks whose count stands still."""
        keys = [f"{self._key('beat')}/{rank}" for rank in range(self.count)]
        before = [self.store.add(key, 0) for key in keys]
        time.sleep(STILL)
        return [r for r, key in enumerate(keys) if r != self.rank and self.store.add(key, 0) == before[r]]


class Beats:
    """Counts up a number in the store, in a thread, until it is stopped."""

    def __init__(self, store: Any, key: str, rank: int) -> None:
        self._store, self._key, self._stopped = store, f"{key}/{rank}", threading.Event()
        self._thread = threading.Thread(target=self._run, name="lxt_fx pipeline beat", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stopped.is_set():
                self._store.add(self._key, 1)
                self._stopped.wait(BEAT)
        except RuntimeError:
            return  # the process that holds the store is gone; the call itself fails too

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join()
