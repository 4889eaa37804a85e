"""The facts of a module: every change of its code and of what that reads is seen, changed values of its tensors are not."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lxt_fx.base.facts_text import NoText, text_of
from lxt_fx.base.module_facts import MOST_FACTS, TooManyFacts, facts_of
from lxt_fx.base.remembered_facts import remembered


def scaled(x: Tensor, by: float = 2.0) -> Tensor:
    return x * by


class Config:
    def __init__(self) -> None:
        self.width, self.kinds = 3, {"act": ["silu", "gelu"]}


class Layer(nn.Module):
    slope = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("bias", torch.zeros(3))
        self.act: Any = F.silu
        self.sizes, self.offset, self.table = [1, 2], torch.ones(3), np.ones(2)

    def forward(self, x: Tensor) -> Tensor:
        return scaled(self.act(self.linear(x)) + self.bias) * self.slope + self.offset


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers, self.config, self.calls = nn.ModuleList([Layer(), Layer()]), Config(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for layer in self.layers:
            x = layer(x)
        return x


Change = Callable[[Net, pytest.MonkeyPatch], Any]


def _patched_global(net: Net, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(globals(), "scaled", lambda x: x)


def _patched_default(net: Net, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scaled, "__defaults__", (3.0,))


def _patched_code(net: Net, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scaled, "__code__", (lambda x, by=2.0: x + by).__code__)


def _patched_instance(net: Net, patch: pytest.MonkeyPatch) -> None:
    net.layers[0].forward = types.MethodType(lambda self, x: x, net.layers[0])


LAYER_CHANGES: dict[str, Change] = {
    "a number": lambda net, _: setattr(net.layers[1], "slope", 3.0),
    "a number of another type": lambda net, _: setattr(net, "calls", False),
    "an item of a list": lambda net, _: net.layers[0].sizes.append(3),
    "a value of a config": lambda net, _: setattr(net.config, "width", 4),
    "deep in a config": lambda net, _: net.config.kinds["act"].reverse(),
    "a function": lambda net, _: setattr(net.layers[0], "act", F.gelu),
    "another class": lambda net, _: setattr(net.layers[0], "__class__", type("Other", (Layer,), {})),
    "mode": lambda net, _: net.layers[0].train(False),
    "another parameter": lambda net, _: setattr(net.layers[0].linear, "weight", nn.Parameter(torch.ones(3, 3))),
    "another buffer": lambda net, _: setattr(net.layers[0], "bias", torch.ones(3)),
    "a parameter that is gone": lambda net, _: setattr(net.layers[0].linear, "bias", None),
    "dtype": lambda net, _: net.layers[0].linear.double(),
    "a tied parameter": lambda net, _: setattr(net.layers[0].linear, "weight", net.layers[1].linear.weight),
    "another constant": lambda net, _: setattr(net.layers[0], "offset", torch.ones(3)),
    "a constant in place": lambda net, _: net.layers[0].offset.add_(1),
    "an array in place": lambda net, _: net.layers[0].table.__iadd__(1),
    "a hook": lambda net, _: net.layers[0].register_forward_hook(lambda *_: None),
    "a submodule": lambda net, _: net.layers.append(Layer()),
    "the order of submodules": lambda net, _: setattr(net, "layers", nn.ModuleList([*net.layers][::-1])),
    "a forward of this module": _patched_instance,
    "a forward of the class": lambda _, patch: patch.setattr(Layer, "forward", lambda self, x: x),
    "a number of the class": lambda _, patch: patch.setattr(Layer, "slope", 2.0),
    "a function of torch": lambda _, patch: patch.setattr(nn.Linear, "forward", lambda self, x: x),
    "a global function": _patched_global,
    "the default of a function": _patched_default,
    "the code of a function": _patched_code,
}


@pytest.mark.parametrize("change", LAYER_CHANGES.values(), ids=LAYER_CHANGES)
def test_every_change_is_seen(change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net()
    was = remembered(facts_of(net))
    assert was.is_same(remembered(facts_of(net)))
    change(net, monkeypatch)
    assert not was.is_same(remembered(facts_of(net)))


def test_a_value_in_a_closure_is_seen() -> None:
    net, held = Net(), [1.0]
    net.layers[0].act = lambda x: x * held[0]
    was = remembered(facts_of(net))
    held[0] = 2.0
    assert not was.is_same(remembered(facts_of(net)))


def test_a_patched_function_of_torch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Softmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.softmax(x, -1)

    net = Softmax()
    was = remembered(facts_of(net))
    monkeypatch.setattr(F, "softmax", lambda x, dim: x)
    assert not was.is_same(remembered(facts_of(net)))


def test_values_written_into_tensors_are_no_facts() -> None:
    net = Net()
    was = remembered(facts_of(net))
    with torch.no_grad():
        net.layers[0].linear.weight.mul_(2)
        net.layers[0].bias.add_(1)
    net.load_state_dict(Net().state_dict())
    assert was.is_same(remembered(facts_of(net)))


def test_what_the_forward_writes_counts_no_more_and_all_else_does() -> None:
    net = Net()
    before = remembered(facts_of(net))
    net(torch.ones(1, 3))
    was = remembered(facts_of(net)).less_changed(before)
    net(torch.ones(1, 3))
    assert was.is_same(remembered(facts_of(net))) and not before.is_same(remembered(facts_of(net)))
    net.config.width = 4
    assert not was.is_same(remembered(facts_of(net)))


def test_a_list_that_a_hook_fills_counts_no_more() -> None:
    net, seen = Net(), list[Any]()
    net.layers[0].register_forward_hook(lambda _, inputs, output: seen.append(output.shape))
    before = remembered(facts_of(net))
    net(torch.ones(1, 3))
    was = remembered(facts_of(net)).less_changed(before)
    net(torch.ones(1, 3))
    assert was.is_same(remembered(facts_of(net)))


def test_a_key_that_the_forward_adds_hides_none_that_was_there() -> None:
    net = Net()
    net.table = {"a].b": 1, "max": 3}
    before = remembered(facts_of(net))
    net.table["seen"] = [5]
    was = remembered(facts_of(net)).less_changed(before)
    net.table["seen[1].x"] = [6, 7]
    assert was.is_same(remembered(facts_of(net)))
    net.table["max"] = 4
    assert not was.is_same(remembered(facts_of(net)))
    net.table["max"] = 3
    del net.table["a].b"]
    assert not was.is_same(remembered(facts_of(net)))


class Part:
    """An object with numbers."""

    def __init__(self, **numbers: int) -> None:
        vars(self).update(numbers)


class Counting(Part):
    n = 0


def _two_hooks(net: Net) -> tuple[Any, Any]:
    parts = Part(n=0), Part(n=0)
    for part in parts:
        net.register_forward_hook(lambda *_, part=part: None)
    return parts


def _set(net: Net, places: dict[Any, Any]) -> tuple[Any, Any]:
    """Puts the attributes, and gives what the forward writes, and what a user changes."""
    net.places = places
    first, *_, last = places.values()
    return first, last


Places = Callable[[Net], tuple[Any, Any]]
NEIGHBOURS: dict[str, Places] = {
    "2 and 20 as keys": lambda net: _set(net, {2: Part(n=0), 20: Part(n=0)}),
    "a key that goes on like a path": lambda net: _set(net, {"a": Part(n=0), "a'].n": Part(n=0)}),
    "keys of one class": lambda net: _set(net, {Kind(): Part(n=0) for _ in range(2)}),
    "the 2nd and the 20th of a class": lambda net: _set(net, dict([*{Kind(): Part(n=0) for _ in range(20)}.items()][1:])),
    "hooks of one module": _two_hooks,
}


@pytest.mark.parametrize("made", NEIGHBOURS.values(), ids=NEIGHBOURS)
@pytest.mark.parametrize("as_whole", [False, True])
def test_what_the_forward_writes_hides_no_neighbour(made: Places, as_whole: bool) -> None:
    net = Net()
    written, other = made(net)
    before = remembered(facts_of(net))
    if as_whole:
        written.__class__ = Counting  # the fact of the object itself
    written.n, written.new = 1, [2]
    was = remembered(facts_of(net)).less_changed(before)
    written.n, written.new, written.more = 2, [3], 4
    assert was.is_same(remembered(facts_of(net))) is as_whole  # a new attribute counts, but for an object that is new too
    del written.more
    assert was.is_same(remembered(facts_of(net)))
    other.more = 4
    assert not was.is_same(remembered(facts_of(net)))
    del other.more
    other.n = 1
    assert not was.is_same(remembered(facts_of(net)))


@pytest.mark.parametrize("name", ["n_max", "n_scale", "nn", "n.max", "n[0]", "n:x"])
def test_a_counter_hides_no_name_that_begins_like_its_own(name: str) -> None:
    net = Net()
    net.n = 0
    net.config.n = 0  # type: ignore[attr-defined]
    for owner in (net, net.config):
        setattr(owner, name, 9)
        before = remembered(facts_of(net))
        net.n += 1
        net.config.n = [net.n]  # type: ignore[attr-defined]
        was = remembered(facts_of(net)).less_changed(before)
        net.config.n = [net.n, 7]  # type: ignore[attr-defined]
        assert was.is_same(remembered(facts_of(net)))
        setattr(owner, name, 3)
        assert not was.is_same(remembered(facts_of(net)))


def test_what_a_class_and_its_base_hold_by_one_name_are_two_facts() -> None:
    class Base(nn.Module):
        numbers = (1, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x

        @property
        def limit(self) -> int:
            return vars(self)["of"]

        @limit.setter
        def limit(self, value: int) -> None:
            vars(self)["of"] = value

    class Own(Base):
        numbers = (1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x * 2

    paths = [path for path, _ in facts_of(Own())]
    assert len(set(paths)) == len(paths)


def test_facts_that_are_remembered_do_not_hold_the_model() -> None:
    net = Net()
    net.layers[0].parent = (net,)  # type: ignore[assignment]
    net.layers[1].register_forward_hook(net.forward)
    was, gone = remembered(facts_of(net)), weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None and not was.is_same(was)


def test_the_text_is_that_of_another_process_and_of_equal_models_only() -> None:
    here = "".join(text_of(facts_of(Net())))
    code = "import test_module_facts as t; print(''.join(t.text_of(t.facts_of(t.Net()))), end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == here
    other = Net()
    other.config.width = 4
    assert "".join(text_of(facts_of(other))) != here


@pytest.mark.parametrize("made", [torch.Generator, lambda: iter([1])], ids=["Generator", "iterator"])
def test_an_object_that_only_this_process_knows_has_no_text(made: Callable[[], Any]) -> None:
    net = Net()
    net.thing = made()
    with pytest.raises(NoText):
        list(text_of(facts_of(net)))


def test_what_pytest_puts_behind_an_assert_is_no_fact() -> None:
    class Asserts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            assert x.dim() == 2
            return x

    names = "".join(path for path, _ in facts_of(Asserts()))
    assert "@pytest_ar" in names and ":_reprcompare" not in names  # that holds all tests of the session


class Kind:
    pass


def test_many_keys_of_one_class_take_a_time_that_grows_with_their_number() -> None:
    net = Net()
    net.kinds = {Kind(): place for place in range(5_000)}
    start = time.process_time()
    was = remembered(facts_of(net))
    assert len(was.tokens) > 5_000 and time.process_time() - start < 2  # seconds; a mark more for each took ten
    net.kinds[next(iter(net.kinds))] = 7
    assert not was.is_same(remembered(facts_of(net)))


MANY = [0.0] * (MOST_FACTS + 10_000)


class ReadsMany(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * MANY[0]


def test_a_model_whose_code_reads_too_much_is_not_walked_to_the_end() -> None:
    with pytest.raises(TooManyFacts, match=r"its code reads over \d+ objects, such as model.*forward:MANY\["):
        facts_of(ReadsMany())
