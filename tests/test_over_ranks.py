"""One call shared by ranks, and scripts that torchrun starts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked_ranks import forked
from safetensors.torch import save_file
from shared_captures import explained, one_worker
from torchrun_ranks import net

import lxt_fx
from lxt_fx.distributed import relevance_over_ranks, shared_over_ranks

ROOT = Path(__file__).parents[1]
IDS = torch.tensor([[5, 9, 17, 23]])


@one_worker("llama")
def test_targets_are_shared_and_come_back_in_order_at_every_rank(tmp_path: Path) -> None:
    module, targets = explained("llama", torch.float64), [7, 9, 11, 13, 2]
    wanted = lxt_fx.relevance_of(module, {"input_ids": IDS}, targets)
    asked: list[list[int]] = []

    def work(rank: int) -> Any:
        found = relevance_over_ranks(module, {"input_ids": IDS}, targets, reduce="hidden")
        shared_over_ranks(targets, lambda own: asked.append(list(own)) or own)  # type: ignore[func-returns-value]
        few = shared_over_ranks([1], lambda own: [each + 1 for each in own])
        return found, asked[0], few

    parts = forked(3, work, tmp_path / "ranks")
    assert all(torch.equal(part[0], wanted) and part[2] == [2] for part in parts), parts
    assert [part[1] for part in parts] == [[7], [9, 11], [13, 2]], "each rank does a share"


@one_worker("llama")
def test_conditions_are_shared(tmp_path: Path) -> None:
    module = explained("llama", torch.float64)
    conditions = [{"mlp.1.neurons": (unit,)} for unit in (3, 5, 7)]

    def scores(own: Any) -> list[torch.Tensor]:
        found = [lxt_fx.conditional(module, {"input_ids": IDS}, each, 7) for each in own]
        return [one.relevance for one in found]

    wanted = scores(conditions)
    parts = forked(2, lambda rank: shared_over_ranks(conditions, scores), tmp_path / "ranks")
    assert all(torch.equal(a, b) for part in parts for a, b in zip(part, wanted, strict=True)), parts


def test_a_failure_at_one_rank_is_an_error_at_all(tmp_path: Path) -> None:
    def work(rank: int) -> Any:
        def fails(own: Any) -> Any:
            if rank == 1:
                raise ValueError("no such thing")
            return own

        said = []
        for each in (fails, lambda own: own[1:]):
            try:
                shared_over_ranks([1, 2, 3], each)
            except Exception as error:
                said.append(f"{type(error).__name__}: {error}")
        dist.barrier()
        return said

    first, second = forked(2, work, tmp_path / "ranks")
    assert "CallError" in first[0] and "rank 1 of the group failed" in first[0] and "no such thing" in first[0]
    assert second[0] == "ValueError: no such thing"
    assert all("returned 0 results for 1 items" in part[1] for part in (first, second))


def test_without_ranks_it_is_refused() -> None:
    with pytest.raises(lxt_fx.InputError, match="torch.distributed was not started"):
        shared_over_ranks([1], list)
    with pytest.raises(lxt_fx.InputError, match="give a list of targets"):
        relevance_over_ranks(torch.nn.Linear(1, 1), {}, lambda out: out)


@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.slow("four processes that import torch"))])
def test_torchrun_starts_a_pipeline(ranks: int, tmp_path: Path) -> None:
    save_file(net().state_dict(), tmp_path / "model.safetensors")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "tests/torchrun_ranks.py"]
    done = subprocess.run([sys.executable, *command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(ranks)]
    assert found[0]["off"] < 1e-10 and all(each["shared"] for each in found)
    assert [each["layers"] for each in found] == [
        [f"blocks.{4 // ranks * r + i}" for i in range(4 // ranks)] for r in range(ranks)
    ]
    whole = sum(x.numel() * 8 for x in net().state_dict().values())
    assert sum(each["bytes"] for each in found) == whole
