"""One call shared by ranks that each hold the whole module: every rank does some of the targets, conditions or texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lxt_fx.attribution.many_targets import relevance_of
from lxt_fx.attribution.target import is_list
from lxt_fx.base.errors import CallError, InputError

T = TypeVar("T")
R = TypeVar("R")


def shared_over_ranks(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]], *, group: Any = None) -> list[R]:
    """What `work` returns for each item, in the order of the items, at every rank. Every rank calls it with the same items
    and does a share of them: consecutive ones, as many as the others or one more.

        conditions = [("mlp.3.neurons", unit) for unit in units]
        found = lxt_fx.distributed.shared_over_ranks(conditions, lambda own: [score(model, text, one) for one in own])

    `work` takes a list of items and returns as many results, which `pickle` can write; it is not called where a rank has no
    item. `group` is the process group whose ranks take part; None means all.

    Raises InputError where torch.distributed was not started, and CallError, at every rank, where `work` failed at one, or
    returned another number of results.
    """
    import torch.distributed as dist

    if not dist.is_available() or not dist.is_initialized():
        raise InputError(
            "shared_over_ranks: torch.distributed was not started; call torch.distributed.init_process_group first, in a "
            "script that torchrun starts"
        )
    rank, count = dist.get_rank(group), dist.get_world_size(group)
    if rank < 0:
        raise InputError(f"shared_over_ranks: rank {dist.get_rank()} is not in the group")
    edges = [len(items) * each // count for each in range(count + 1)]
    own = items[edges[rank] : edges[rank + 1]]
    failed: Exception | None = None
    made: list[R] = []
    try:
        made = list(work(own)) if len(own) else []
    except Exception as error:  # which the other ranks are told before it is raised
        failed = error
    said = None if failed is None else f"{type(failed).__name__}: {failed}"
    if said is None and len(made) != len(own):
        said = f"work returned {len(made)} results for {len(own)} items"
    gathered: list[Any] = [None] * count
    dist.all_gather_object(gathered, (said, made), group=group)
    if failed is not None:
        raise failed
    if (bad := next((each for each, (problem, _) in enumerate(gathered) if problem is not None), None)) is not None:
        raise CallError(f"shared_over_ranks: rank {bad} of the group failed, so none goes on: {gathered[bad][0]}")
    return [result for _, results in gathered for result in results]


def relevance_over_ranks(explained: nn.Module, inputs: Any, targets: Any, *, group: Any = None, **settings: Any) -> Tensor:
    """What `lxt_fx.relevance_of(explained, inputs, targets, ...)` returns, at every rank and on the CPU. All of them
    compute it: each holds the whole module and explains some of the targets.

    `targets` is a list, or a tensor [targets] of indices; `settings` are the other arguments of `relevance_of`. Every rank
    calls it with the same arguments.

    Raises what `relevance_of` raises at the rank where it does, and CallError at the others.
    """
    if not is_list(targets):
        raise InputError("relevance_over_ranks: give a list of targets, of which each rank explains some")
    wanted: list[Any] = list(targets) if isinstance(targets, list) else torch.as_tensor(targets).tolist()

    def work(own: Sequence[Any]) -> list[Tensor]:
        return list(relevance_of(explained, inputs, list(own), **settings).cpu())

    return torch.stack(shared_over_ranks(wanted, work, group=group))
