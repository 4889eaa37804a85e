"""Captures that tests share: one `torch.export` for all that is asked of a model in one dtype with one attention.

Nine tenths of the cost of a test were its capture, and no table, form or option changes it: `lxt_fx.transform` captures
(`captured_from`) and then edits the captured graph (`compiled_by`). `explained` takes the capture from a store and does the
second half on a copy of the graph, all checks between its steps on the first time that a process asks for it. So every
test has a module of its own; what it shares
is the model with its parameters, and the graph as it was before any rule, which a copy leaves alone. That a module made
this way is the one that `transform` makes, node by node and number by number, is proven in test_shared_captures.py for
every tiny model; `transform` itself runs in most other files, and for each architecture of the zoo.

A test that changes a model makes one itself (`tiny.MODELS`, `load_golden`): a shared model with other values or with
gradients fails the next test that asks for it.

`each_model` puts the tests of one model into one group, which one worker runs (`pytest --dist loadgroup`); tests without a
group have their file's (conftest.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from unittest import mock

import pytest
import torch
from golden_cases import TEXT_CASES, Golden, load_golden, load_golden_vit
from tiny import MODELS
from torch import nn

import lxt_fx
from lxt_fx.compiler.captured_model import CapturedModel, copied
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.options import Options, Rules, table_named
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.ops.forms import Form, epsilon_of
from lxt_fx.passes.positions.asked_positions import Positions, positions_of
from lxt_fx.passes.segments.recompute import Checkpoint

GOLDEN = {name.split("-")[0]: name for name in TEXT_CASES}
"""A golden case for each model: those of one model differ in the table only."""
ALIKE = {
    "qwen2": "Llama with biases in front of the attention, which gpt2 and llamabias have too",
    "golden-qwen2": "Llama with biases in front of the attention, which llamabias has too",
    "golden-qwen3": "the attention of qwen3_moe in front of an MLP without experts",
    "golden-gemma3": "gemma3cap without the caps",
    "golden-bertmlm": "the encoder of bertcls with another head",
}
"""Models with no path through the compiler that another one has not, and what they add: their tests are in the longer run,
but for the parity with LXT in float64 and for tests that choose them."""


def one_worker(name: str) -> pytest.MarkDecorator:
    """Marks a test as one of those that read this model."""
    return pytest.mark.xdist_group(_key(name))


def each_model(names: Iterable[str], *, alike: bool = False) -> list[Any]:
    """Parameters for `parametrize`: names of tiny models or golden cases, each on the worker of its model. Those that are
    like another one are for the longer run, unless `alike` keeps them."""
    return [pytest.param(name, id=name, marks=[one_worker(name), *([] if alike else longer(name))]) for name in names]


def longer(name: str) -> list[pytest.MarkDecorator]:
    """The mark of the longer run, for a model that is like another one."""
    key = _key(name)
    return [pytest.mark.slow(ALIKE[key])] if key in ALIKE else []


def shared_model(name: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> nn.Module:
    """The model of a tiny name or a golden case, for reading only."""
    return _captured(_key(name), dtype, attention).model


def shared_golden(name: str, dtype: torch.dtype, attention: str = "sdpa") -> Golden:
    """A golden case with the shared model."""
    return Golden(shared_model(name, dtype, attention), load_golden(name, dtype, attention).case)


def explained(
    name: str,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    *,
    rules: Rules = "attnlrp",
    form: Form = "gradient",
    epsilon: float | None = None,
    positions: Positions | None = None,
    checkpoint: Checkpoint = None,
) -> lxt_fx.Explained:
    """What `lxt_fx.transform` makes of the model, from the shared capture."""
    options = Options(form, epsilon_of(form, epsilon, "transform"), True, positions_of(positions), checkpoint)
    source, asked = copied(_captured(_key(name), dtype, attention)), (_key(name), dtype, attention, rules, repr(options))
    if not isinstance(rules, str) or asked not in _CHECKED:
        module = compiled_by(source, table_named(rules), options)
        if isinstance(rules, str):
            _CHECKED.add(asked)
        return module
    with mock.patch.dict(os.environ, LXT_FX_CHECK="0"):
        return compiled_by(source, table_named(rules), options)


_CHECKED: set[tuple[Any, ...]] = set()
"""What was made of a capture by a table of that name, with all checks between its steps: they are not run a second time."""


def _key(name: str) -> str:
    if name in MODELS:
        return name
    architecture = name.split("-")[0]
    assert "-" in name and architecture in (*GOLDEN, "vit"), name
    return f"golden-{architecture}"


def _captured(key: str, dtype: torch.dtype, attention: str) -> CapturedModel:
    source, state = _store(key, dtype, attention)
    assert _state(source.model) == state, f"a test changed the shared model {key}, which other tests read"
    return source


@lru_cache(maxsize=24)
def _store(key: str, dtype: torch.dtype, attention: str) -> tuple[CapturedModel, list[Any]]:
    if key in MODELS:
        model, inputs = MODELS[key](attention).to(dtype), ()
    elif key == "golden-vit":
        golden = load_golden_vit(dtype)
        model, inputs = golden.model, (golden.case["image"],)
    else:
        model, inputs = load_golden(GOLDEN[key.removeprefix("golden-")], dtype, attention).model, ()
    # In a file with `captures_in_files`, each copy would be written again; and files without it would get what was read.
    with mock.patch.dict(os.environ, LXT_FX_CACHE="off"):
        return captured_from(model, inputs, None, dynamic=True), _state(model)


def _state(model: nn.Module) -> list[Any]:
    """What an edit of the parameters would change."""
    return [model.training, *((p.data_ptr(), p._version, p.requires_grad, p.grad is None) for p in model.parameters())]
