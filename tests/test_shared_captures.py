"""What shared_captures.py makes is what `lxt_fx.transform` makes, and it says when a test changed a shared model.
`transform` is called here with torch's own cache of fake tensors, which conftest.py switches off elsewhere, and with its
own stacks of nodes, which a capture reads in a shorter way."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext
from dataclasses import fields
from typing import Any
from unittest import mock

import pytest
import torch
from rounding import ROUNDINGS, assert_same
from shared_captures import each_model, explained, one_worker, shared_model
from tiny import MODELS
from torch import Tensor, nn
from torch._dynamo import config as dynamo_settings
from torch._subclasses.fake_tensor import FakeTensorMode

import lxt_fx
from lxt_fx.compiler.kept_captures import forget_model
from lxt_fx.compiler.pipeline import STAGES
from lxt_fx.passes.capture import capture
from lxt_fx.passes.capture.example import made_example


def renumbered(text: str) -> str:
    """The text with the names of nodes numbered in the order in which they come: a capture without the cache makes other
    products of sizes, which no node reads, and each took a number. The column of rules stands after one space."""
    numbers: dict[str, str] = {}
    text = re.sub(r" +\|", " |", text)
    return re.sub(r"\b[a-z]\w*_\d+\b", lambda found: numbers.setdefault(found[0], f"name_{len(numbers)}"), text)


def lines_of(module: lxt_fx.Explained) -> set[str]:
    """Where its nodes come from."""
    found = {node.meta.get("stack_trace", "") for node in module.record.stages["capture"].graph.nodes}
    assert len(found) > 10
    return found


def gradient(module: lxt_fx.Explained, inputs: dict[str, Any]) -> Tensor:
    """That of a sum of logits at the first leaf."""
    output, leaves = module.with_leaves(**inputs)
    weighted = output.logits * torch.linspace(-1, 1, output.logits.shape[-1])
    (found,) = torch.autograd.grad(weighted.sum(), leaves[module.record.leaves[0]])
    return found


LIKE_LLAMA, LATER = ("gpt2", "bert"), pytest.mark.slow("texts of one stack of layers, as llama's")


@pytest.mark.parametrize(
    "name",
    [
        *each_model(name for name in MODELS if name not in LIKE_LLAMA),
        *(pytest.param(name, marks=[one_worker(name), LATER]) for name in LIKE_LLAMA),
    ],
)
def test_it_is_the_module_that_transform_makes(name: str) -> None:
    """Every stage, every fact of the record, the same parameters. The second of two: the first left the graph as it was."""
    model = shared_model(name)
    explained(name, rules="cp_lrp", form="explicit")
    shared = explained(name)
    before = FakeTensorMode.cache_info()
    own_stacks = mock.patch.object(capture, "stacks_read_quickly", nullcontext)
    with dynamo_settings.patch(fake_tensor_cache_enabled=True), own_stacks:
        forget_model(model)
        public = lxt_fx.transform(model)
    assert FakeTensorMode.cache_info() != before, "the cache of torch.export is on"
    for field in fields(public.record):
        if field.name in ("seconds", "stages", "matches", "forward_difference"):
            continue
        assert getattr(shared.record, field.name) == getattr(public.record, field.name), field.name
    assert shared.record.forward_difference <= ROUNDINGS and public.record.forward_difference <= ROUNDINGS
    assert lines_of(shared) == lines_of(public)
    for stage in STAGES:
        assert renumbered(lxt_fx.show(shared, stage)) == renumbered(lxt_fx.show(public, stage)), stage
    entries = [renumbered(repr(lxt_fx.certificate(module).entries)) for module in (shared, public)]
    assert renumbered(shared.code) == renumbered(public.code) and entries[0] == entries[1]
    assert [id(p) for p in shared.parameters()] == [id(p) for p in public.parameters()]
    inputs = {name: value for name, value in made_example(model).kwargs.items() if name in public.record.called_with}
    assert_same(gradient(shared, inputs), gradient(public, inputs))


@one_worker("llama")
def test_a_test_that_changes_a_shared_model_fails_the_next() -> None:
    model = shared_model("llama")
    parameter = next(model.parameters())
    parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(AssertionError, match="changed the shared model llama"):
        explained("llama")
    parameter.grad = None
    explained("llama")


def test_torch_writes_no_trace_of_an_export_for_pytest() -> None:
    """Its handlers would make a seventh of the CPU time of a capture (conftest.py)."""
    torch.export.export(nn.Linear(2, 2), (torch.ones(3, 2),))
    assert not logging.getLogger("torch.__trace").handlers
