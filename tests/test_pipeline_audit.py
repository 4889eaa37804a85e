"""The ledger of a pipeline: targets, refusals, failures. That it is that of one process, for each kind of model, stands in
test_pipeline.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import forked
from same_ledger import check_same_ledger
from shared_captures import explained, one_worker
from torch import Tensor, nn

import lxt_fx
from lxt_fx.distributed import pipeline
from lxt_fx.ledger import taps
from lxt_fx.ledger.meter import Edge, Meter, joined

F64 = torch.float64
IDS = torch.tensor([[5, 9, 17, 23, 11], [3, 4, 7, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
TEXTS = {"input_ids": IDS, "attention_mask": MASK}


def surprise(output: Any) -> Tensor:
    return -output.logits[:, -1].log_softmax(-1)[:, 3]


TARGETS: list[Any] = [None, [3, lxt_fx.Target.at(1, 9, minus=4)], surprise]


def said_by(calls: list[Callable[[], Any]]) -> list[str]:
    """What each call raises, with the class of the error."""
    said = []
    for call in calls:
        try:
            call()
            said.append("nothing")
        except lxt_fx.LxtFxError as error:
            said.append(f"{type(error).__name__}: {error}")
    return said


@one_worker("llama")
def test_what_an_audit_is_asked_for_and_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, explicit = explained("llama", F64, epsilon=0.05), explained("llama", F64, form="explicit")
    wanted = [lxt_fx.audit(module, TEXTS, target) for target in TARGETS]
    shares = taps.shares

    def work(rank: int) -> Any:
        pipe = pipeline(module, timeout=60, schedule="gpipe")
        size, found = pipe.size, [pipe.audit(TEXTS, target) for target in TARGETS]
        assert pipe.size == size, "an audit reads no weights of other stages"
        said = said_by(
            [
                lambda: pipe.audit(TEXTS, lambda output: output.logits[:, -1, 3].sum()),
                lambda: pipe.audit(TEXTS, [3]),
                lambda: pipeline(explicit).audit(TEXTS),
                lambda: pipe.audit({"inputs_embeds": torch.ones(1, 3, 32, dtype=torch.long)}),
                lambda: pipe.audit(TEXTS, lambda output: (output.logits[:, -1, 3] - 1e6).log()),
            ]
        )
        if rank == 1:
            monkeypatch.setattr(taps, "shares", lambda *_: 1 / 0)
        said += said_by([lambda: pipe.audit(TEXTS, 3)])
        monkeypatch.setattr(taps, "shares", shares)
        return found, said, pipe.audit(TEXTS)

    first, last = forked(2, work, tmp_path / "ranks")
    assert isinstance(first, tuple) and isinstance(last, tuple), (first, last)
    assert [*last[0], last[2]] == [None] * 4, "the ledger is at the first rank"
    for found, own in zip((*first[0], first[2]), (*wanted, wanted[0]), strict=True):
        check_same_ledger(found, own, 1e-10)
    assert lxt_fx.Cause.EPSILON in first[2].by_cause() and first[0][2].by_cause()[lxt_fx.Cause.TARGET].abs().min() > 1e-3
    reasons = (
        "one number for each of the 2 examples, and got 1; return one for each",
        "1 targets for 2 examples",
        "InputError: audit: it reads the fast form",
        "InputError: pipeline: none of the inputs carries relevance",
        "NonFiniteError: pipeline: rank 1: an explained number is not finite",
        "CallError: pipeline: rank 1 (stage 1 of 2) failed: ZeroDivisionError",
    )
    assert all(reason in text for reason, text in zip(reasons, last[1], strict=True)), last[1]
    for reason, text, failed in zip(reasons, first[1], (True, True, False, False, False, True), strict=True):
        told = "rank 1 (stage 1 of 2) failed, so rank 0 (stage 0 of 2) stops too" if failed else reason
        assert told in text, first[1]


class Apart(nn.Module):
    """What the examples have in common is taken off, so that each depends on all."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.nn.functional.gelu(self.up(x)))
        return x - x.mean(0)


def test_examples_that_depend_on_one_another_are_measured_as_in_one_process(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, dtype=F64)
    module = lxt_fx.transform(nn.Sequential(Apart(), Apart()).double().eval(), (x,))
    wanted = lxt_fx.audit(module, x, 4)
    assert bool((wanted.sources[0].elsewhere.abs() > 1e-3).all())
    parts = forked(2, lambda rank: pipeline(module, stages=["1"]).audit(x, 4), tmp_path / "ranks")
    assert isinstance(parts[0], lxt_fx.Ledger), parts
    check_same_ledger(parts[0], wanted, 1e-10)


def read(edges: list[tuple[str, str]]) -> Meter:
    """A meter with an amount of 1 at each edge, its reader and the producer."""
    meter = Meter()
    for producer, consumer in edges:
        meter.add(meter.passing, Edge(producer, consumer, "self", 0), torch.ones(()))
        meter.add(meter.taken, (producer, lxt_fx.Cause.BIAS, "b"), torch.ones(()))
        meter.add(meter.positions, (producer, "key"), torch.ones(2))
        meter.add(meter.heads, producer, torch.ones(2))
        meter.add(meter.profile, f"layer of {producer}", torch.ones(2))
        meter.add(meter.reaching, producer, torch.ones(()))
    return meter


def test_a_part_that_no_explained_number_depends_on_has_no_lines() -> None:
    """The stage behind it sends back a gradient of 0, and so its taps are read."""
    last, first = read([("c", "output")]), read([("b", "c"), ("x", "unused"), ("y", "x")])
    layers = {name: f"layer of {name}" for name in "bcxy"}
    found = joined([last.readings(1), first.readings(1)], layers)
    assert list(found.reaching) == ["c", "b"] and [edge.producer for edge in found.passing] == ["c", "b"]
    assert [key[0] for key in found.taken] == [key[0] for key in found.positions] == list(found.heads) == ["c", "b"]
    assert list(found.profile) == ["layer of c", "layer of b"]
    with pytest.raises(AssertionError, match="read in two parts"):
        joined([last.readings(1), last.readings(1)], layers)
