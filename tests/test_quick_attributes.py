"""A call reads the parameters of the module in one walk, and sees what is replaced."""

from __future__ import annotations

import copy
import gc
import weakref

import torch
from torch import nn

import lxt_fx
from lxt_fx.compiler.kept_captures import forget_model
from lxt_fx.compiler.quick_attributes import AttributeReader


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.GELU(), nn.Linear(6, 3), nn.BatchNorm1d(3))).eval()


def test_reads_what_getattr_reads() -> None:
    """Parameters, buffers, and one that is shared."""
    model = net()
    paths = ["0.weight", "0.bias", "1.1.weight", "1.2.running_mean", "0.weight"]
    found = AttributeReader(model, paths).read()
    assert all(each is model.get_submodule(path.rpartition(".")[0]).__getattr__(path.rpartition(".")[2])
               for each, path in zip(found, paths, strict=True))  # fmt: skip


def test_replaced_parameters_and_modules_are_seen() -> None:
    x = torch.randn(2, 4)
    explained = lxt_fx.transform(net(), (x,))
    before = explained(x)
    first = explained.get_submodule("0")
    first.weight = nn.Parameter(first.weight.detach() * 2, requires_grad=False)
    doubled = explained(x)
    assert not torch.equal(before, doubled)
    first.weight.data.div_(2)
    assert torch.equal(before, explained(x))
    other = nn.Linear(4, 6)
    explained.set_submodule("0", other)
    assert torch.equal(explained(x), torch.fx.GraphModule(explained, explained.graph)(x))
    assert not torch.equal(explained(x), before)


def test_a_copy_reads_its_own_parameters() -> None:
    x = torch.randn(2, 4)
    explained = lxt_fx.transform(net(), (x,))
    before = explained(x)
    twin = copy.deepcopy(explained)
    with torch.no_grad():
        for parameter in explained.parameters():
            parameter.zero_()
    assert torch.equal(twin(x), before) and not torch.equal(explained(x), before)


def test_nothing_of_a_module_outlives_it() -> None:
    x = torch.randn(2, 4)
    model = net()
    explained = lxt_fx.transform(model, (x,))
    explained(x)
    forget_model(model)  # else its capture is kept until another one finds that the model is gone
    del model
    weight = weakref.ref(explained.get_submodule("0").weight)
    gc.collect()
    gc.disable()
    try:
        del explained
        alive = weight() is not None
    finally:
        gc.enable()
    gc.collect()
    assert weight() is None, alive
