"""Captures that are kept: taken again while the model is as it was, and never after a change that an explanation shows."""

from __future__ import annotations

import gc
import re
import threading
import types
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import kept_net
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kept_net import Block, Net, block, captures_counted, compilations_counted
from rich.console import Console
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import LlamaConfig, LlamaForCausalLM

import lxt_fx
from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.base import module_facts
from lxt_fx.base.transformers_internals import recorded_outputs
from lxt_fx.compiler.kept_captures import forget_captures
from lxt_fx.rule_table import basic_rules

Change = Callable[[Net, pytest.MonkeyPatch], Any]


def _weights(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)


def _merge(net: Net, _: pytest.MonkeyPatch) -> None:
    """What `merge_adapter` does: the weights change in place, and the adapter is active no more."""
    one = block(net)
    with torch.no_grad():
        one.linear.weight.add_(2 * one.adapters["a"].up.weight @ one.adapters["a"].down.weight)
    one.active = []


def _patched_forward(net: Net, _: pytest.MonkeyPatch) -> None:
    block(net).forward = types.MethodType(lambda self, x: self.linear(x), block(net))


def _patched_class(net: Net, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Block, "forward", lambda self, x: self.linear(x))


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


CHANGES: dict[str, Change] = {
    "values in place": lambda net, _: _weights(net),
    "values of a buffer in place": lambda net, _: block(net).shift.mul_(3),
    "values by load_state_dict": lambda net, _: net.load_state_dict({k: 2 * v for k, v in net.state_dict().items()}),
    "data of a parameter": lambda net, _: setattr(net.head.weight, "data", 3 * net.head.weight.data),
    "another parameter": lambda net, _: setattr(net.head, "weight", nn.Parameter(torch.ones(3, 4))),
    "another buffer": lambda net, _: setattr(block(net), "shift", torch.ones(4)),
    "another constant": lambda net, _: setattr(block(net), "constant", torch.ones(4)),
    "values of a constant": lambda net, _: block(net).constant.mul_(3),
    "another submodule": lambda net, _: setattr(block(net), "linear", nn.Linear(4, 4)),
    "one block less": lambda net, _: net.blocks.__delitem__(1),
    "tied weights": lambda net, _: setattr(net.blocks[1].linear, "weight", block(net).linear.weight),
    "dtype": lambda net, _: net.double().float().double(),
    "a number": lambda net, _: setattr(block(net), "scale", 0.9),
    "a flag": lambda net, _: setattr(block(net), "half", True),
    "a function": lambda net, _: setattr(block(net), "act", F.relu),
    "a lambda": lambda net, _: setattr(block(net), "act", lambda x: x * 0.3),
    "active adapters": lambda net, _: setattr(block(net), "active", ["b"]),
    "active adapters in place": lambda net, _: block(net).active.append("b"),
    "a merged adapter": _merge,
    "config": lambda net, _: setattr(net.config, "residual", False),
    "deep in a config": lambda net, _: net.config.norms.update(eps=2.0),
    "forward of a submodule": _patched_forward,
    "forward of the class": _patched_class,
    "an attribute of the class": lambda _, patch: patch.setattr(Net, "power", 2.0),
    "a global function": lambda _, patch: patch.setattr(kept_net, "activated", torch.tanh),
    "a function of torch": lambda _, patch: patch.setattr(F, "silu", torch.tanh),
    "a hook": lambda net, _: block(net).register_forward_hook(lambda module, inputs, output: 2 * output),
    "a hook before": lambda net, _: block(net).register_forward_pre_hook(lambda module, inputs: 2 * inputs[0]),
    "a hook on the model": lambda net, _: net.register_forward_hook(lambda module, inputs, output: output * output),
    "a parametrisation": lambda net, _: parametrize.register_parametrization(net.head, "weight", Twice()),
}
SEEN_AS = {
    "values of a buffer in place": "values in place",
    "values by load_state_dict": "values in place",
    "another buffer": "another parameter",
    "another constant": "another parameter",
    "one block less": "another submodule",
    "a flag": "a number",
    "a lambda": "a function",
    "active adapters": "active adapters in place",
    "config": "deep in a config",
    "an attribute of the class": "forward of the class",
    "a hook before": "a hook",
    "a hook on the model": "a hook",
    "a soft head": "a hook",
    "a norm's epsilon": "a number",
}
"""Changes for the longer run, and what is seen by the same comparison."""


def each(changes: Mapping[str, Any]) -> list[Any]:
    """Parameters for `parametrize`."""
    return [
        pytest.param(change, id=name, marks=[pytest.mark.slow(f"seen as {SEEN_AS[name]} is")] if name in SEEN_AS else [])
        for name, change in changes.items()
    ]


def relevance(net: nn.Module, x: Tensor) -> Tensor:
    return lxt_fx.relevance_of(net, x.to(next(net.parameters()).dtype), 1, reduce="none")


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("change", each(CHANGES))
def test_no_change_is_missed(change: Change, x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net().eval()
    before = relevance(net, x)
    change(net, monkeypatch)
    found = relevance(net, x)
    forget_captures()
    expected = relevance(net, x)
    assert not torch.equal(expected.to(before.dtype), before), "the change is one that relevance shows"
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


class Counts(nn.Module):
    """Its forward counts its calls, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.n, self.n_max, self.seen = nn.Linear(4, 3), 0, 9.0, {"most": 9.0}

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        self.seen["length"] = x.shape[-1]
        out: Tensor = self.linear(x.clamp(max=min(self.n_max, self.seen["most"])))
        return out


@pytest.mark.parametrize("change", [lambda net: setattr(net, "n_max", 3.0), lambda net: net.seen.update(most=3.0)])
def test_what_the_forward_writes_hides_no_neighbour(change: Callable[[nn.Module], Any], x: Tensor) -> None:
    net = Counts().eval()
    with captures_counted() as captured:
        for _ in range(2):
            torch.testing.assert_close(lxt_fx.transform(net, (x,))(10 * x), net(10 * x))
            net.seen.pop("length")
    assert len(captured) == 1
    change(net)  # the comparison on these inputs does not show it
    torch.testing.assert_close(lxt_fx.transform(net, (x,))(10 * x), net(10 * x))


def test_a_change_that_is_undone_finds_its_capture_again(x: Tensor) -> None:
    net = Net().eval()
    with captures_counted() as captured:
        first, one = relevance(net, x), block(net)
        one.active = ["b"]
        relevance(net, x)
        one.active = ["a"]
        torch.testing.assert_close(relevance(net, x), first)
    assert len(captured) == 2


def test_training_mode_is_another_state(x: Tensor) -> None:
    net = Net()
    net.drop.p = 0.0
    with captures_counted() as captured:
        relevance(net.eval(), x)
        relevance(net.train(), x)
        relevance(net.eval(), x)
    assert len(captured) == 2


def test_every_function_takes_the_capture_of_the_others(x: Tensor) -> None:
    net = Net().eval()
    target = lambda out: out[:, 1]  # noqa: E731
    with captures_counted() as captured:
        lxt_fx.relevance_of(net, {"x": x}, 1)
        ledger = lxt_fx.audit(net, {"x": x}, target)
        explained = lxt_fx.transform(net, kwargs={"x": x[:2]}, rules="gradient")
        lxt_fx.tune(net, x, 1, grid={"linear": [0, 1]}, removal=lxt_fx.Removal(steps=1), progress=False)
    ledger.check()
    assert len(captured) == 1 and explained.record.table_name == "gradient"


def test_other_sizes_take_the_same_graph_and_other_kinds_one_of_their_own() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    inputs = [torch.randn(*shape, 4) for shape in ((3,), (5,), (2, 3), (7,), (4, 5))]
    with captures_counted() as captured:
        found = [lxt_fx.relevance_of(net, x, lambda out: out.sum()[None], reduce="none") for x in inputs]
    assert len(captured) == 2
    for x, each in zip(inputs, found, strict=True):
        forget_captures()
        torch.testing.assert_close(each, lxt_fx.relevance_of(net, x, lambda out: out.sum()[None], reduce="none"))


class Branches(nn.Module):
    """Its code reads a value of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) if bool(x.sum() > 0) else -3 * self.linear(x)
        return out


def test_a_graph_of_one_branch_is_not_that_of_the_other() -> None:
    net, x = Branches().eval(), torch.ones(2, 4)
    with captures_counted() as captured:
        one, other, again = (lxt_fx.relevance_of(net, each, 1, reduce="none") for each in (x, -x, 2 * x))
    assert len(captured) == 2
    torch.testing.assert_close(again, 2 * one)
    weight = net.linear.weight[1]
    torch.testing.assert_close(one[0], weight.expand(2, 4).detach())
    torch.testing.assert_close(other[0], 3 * weight.expand(2, 4).detach())


def test_weights_that_were_trained_meanwhile_pass_the_forward_check_under_another_table(x: Tensor) -> None:
    net = Net().eval()
    lxt_fx.transform(net, (x,))
    _weights(net)
    with captures_counted() as captured:
        assert lxt_fx.transform(net, (x,), rules="gradient").record.forward_difference < 1e-6
    assert not captured


def test_a_model_is_freed_that_was_explained(x: Tensor) -> None:
    net = Net().eval()
    relevance(net, x)
    gone = weakref.ref(net)
    del net
    gc.collect()  # an export leaves circles behind
    assert gone() is None


class Child(nn.Module):
    def __init__(self, parent: list[nn.Module]) -> None:
        super().__init__()
        self.parent = parent

    def forward(self, x: Tensor) -> Tensor:
        return x * self.parent[0].scale


class Parent(nn.Module):
    """Its child, its config and a hook refer to it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.child, self.scale = nn.Linear(4, 4), Child([self]), 2.0
        self.config = types.SimpleNamespace(of=self)
        self.linear.register_forward_hook(self.seen)

    def seen(self, *_: Any) -> None:
        pass

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.child(self.linear(x))
        return out


def test_a_model_that_refers_to_itself_is_freed_and_not_missed(x: Tensor) -> None:
    net = Parent().eval()
    first = relevance(net, x)
    net.scale = 6.0
    torch.testing.assert_close(relevance(net, x), 3 * first)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_copy_of_a_model_has_captures_of_its_own(x: Tensor) -> None:
    import copy

    net = Net().eval()
    first = relevance(net, x)
    twin = copy.deepcopy(net)
    _weights(twin)
    assert not torch.allclose(relevance(twin, x), first)
    torch.testing.assert_close(relevance(net, x), first)


def test_threads_that_explain_one_model_at_once_capture_it_once(x: Tensor) -> None:
    net, barrier = Net().eval(), threading.Barrier(4)

    def explained(_: int) -> Tensor:
        barrier.wait()
        return relevance(net, x)

    with captures_counted() as captured, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(explained, range(4)))
    assert len(captured) == 1
    for each in found[1:]:
        torch.testing.assert_close(each, found[0])


def test_the_default_dtype_of_torch_is_part_of_the_state() -> None:
    class Made(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (2.0 if torch.get_default_dtype() == torch.float64 else 1.0)

    net, x = Made(), torch.ones(2, 4)
    first = lxt_fx.relevance_of(net, x, 1, reduce="none")
    torch.set_default_dtype(torch.float64)
    try:
        found = lxt_fx.relevance_of(net, x, 1, reduce="none")
        forget_captures()
        expected = lxt_fx.relevance_of(net, x, 1, reduce="none")
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected) and torch.equal(found, 2 * first)


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def doubled_attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    from transformers.models.llama import modeling_llama

    out, weights = modeling_llama.eager_attention_forward(module, query, key, value, mask, **kwargs)
    return 2 * out, weights


def _own_attention(model: Any, _: pytest.MonkeyPatch) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register("doubled", doubled_attention)
    model.set_attn_implementation("doubled")


def _patched_rotary(_: Any, patch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama

    patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, *_, **__: (q, k))


def _patched_sdpa(_: Any, patch: pytest.MonkeyPatch) -> None:
    """What LXT does: it replaces a function of the model's module."""
    from transformers.models.llama import modeling_llama

    patch.setitem(modeling_llama.ALL_ATTENTION_FUNCTIONS, "sdpa", doubled_attention)  # type: ignore[arg-type]


MODEL_CHANGES: dict[str, Callable[[Any, pytest.MonkeyPatch], Any]] = {
    "an attention of one's own": _own_attention,
    "a patched rotary embedding": _patched_rotary,
    "a patched attention": _patched_sdpa,
    "new embeddings": lambda model, _: model.resize_token_embeddings(40, mean_resizing=False),
    "a norm's epsilon": lambda model, _: setattr(model.model.norm, "variance_epsilon", 1.0),
    "a soft head": lambda model, _: model.lm_head.register_forward_hook(lambda m, i, out: torch.tanh(out)),
}


@pytest.mark.parametrize("change", each(MODEL_CHANGES))
def test_no_change_of_a_language_model_is_missed(
    change: Callable[[Any, pytest.MonkeyPatch], Any], llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama import modeling_llama

    ids = torch.tensor([[4, 9, 17, 5]])
    before = lxt_fx.explain(llama, None, ids, 3).values
    with mock.patch.dict(modeling_llama.ALL_ATTENTION_FUNCTIONS._global_mapping):
        change(llama, monkeypatch)
        found = lxt_fx.explain(llama, None, ids, 3).values
        forget_captures()
        expected = lxt_fx.explain(llama, None, ids, 3).values
        monkeypatch.undo()
    if change is not MODEL_CHANGES["new embeddings"]:
        assert not torch.allclose(expected, before)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_texts_of_other_lengths_and_batches_take_one_capture(llama: LlamaForCausalLM) -> None:
    ids = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(0))
    with captures_counted() as captured:
        found = [lxt_fx.explain(llama, None, ids[:1, :length], 3).values for length in (4, 6, 2)]
        lxt_fx.explain(llama, None, ids[:1], lxt_fx.Target(3, position=1))
    assert len(captured) == 1
    for length, each in zip((4, 6, 2), found, strict=True):
        forget_captures()
        torch.testing.assert_close(each, lxt_fx.explain(llama, None, ids[:1, :length], 3).values, rtol=1e-5, atol=1e-7)


def test_another_model_in_the_process_changes_nothing(llama: LlamaForCausalLM) -> None:
    class Other(LlamaForCausalLM):
        """Transformers notes each class of model that was ever made."""

        held = object()
        _can_record_outputs: Any = {"held": held}  # noqa: RUF012

    ids = torch.tensor([[4, 9, 17, 5]])
    lxt_fx.explain(llama, None, ids, 3)
    Other(llama.config)
    registry = recorded_outputs()
    assert registry is not None and str(Other) in registry
    with captures_counted() as captured:
        lxt_fx.explain(llama, None, ids, 3)
    assert not captured
    with mock.patch.dict(registry, {str(type(llama)): {"other": 1}}), captures_counted() as captured:
        lxt_fx.explain(llama, None, ids, 3)
    assert captured


def test_arrays_without_plain_values_are_no_error(x: Tensor) -> None:
    net = Net().eval()
    net.missing, net.masked = np.ma.masked, np.ma.array([1.0, 2.0], mask=[False, True])
    expected = relevance(net, x)
    torch.testing.assert_close(relevance(net, x), expected)


def test_a_dict_that_makes_its_items_is_not_asked_for_them(x: Tensor) -> None:
    class Lazy(dict[str, int]):
        def items(self) -> Any:
            raise ValueError("an item cannot be imported")

    net = Net().eval()
    net.lazy = Lazy(first=1)
    expected = relevance(net, x)
    with captures_counted() as captured:
        torch.testing.assert_close(relevance(net, x), expected)
    assert not captured
    net.lazy["first"] = 2
    with captures_counted() as captured:
        torch.testing.assert_close(relevance(net, x), expected)
    assert captured


def test_later_calls_take_the_module_of_the_first_and_see_trained_weights(x: Tensor) -> None:
    net = Net().eval()
    with compilations_counted() as compiled:
        relevance(net, x)
        _weights(net)
        found = relevance(net, x[:2])
    assert len(compiled) == 1
    forget_captures()
    torch.testing.assert_close(found, relevance(net, x[:2]), rtol=1e-6, atol=1e-7)


def test_a_module_of_one_call_may_be_changed_and_that_of_the_next_is_as_it_was(x: Tensor) -> None:
    net = Net().eval()
    first, second, expected = as_explained(net, (x,), {}, "test"), as_explained(net, (x,), {}, "test"), relevance(net, x)
    assert second is not first and second.record.table is first.record.table
    for module in (first, second):
        linear = next(node for node in module.graph.nodes if node.name.startswith("linear"))
        with module.graph.inserting_after(linear):
            held = module.graph.call_function(torch.ops.aten.detach.default, (linear,))
        linear.replace_all_uses_with(held, delete_user_cb=lambda user, held=held: user is not held)
        module.recompile()
        torch.testing.assert_close(module(x), net(x))
        torch.testing.assert_close(relevance(net, x), expected)


class FromFile(nn.Module):
    """Reads a number that no fact of the model shows, for its values or for its gradient alone."""

    def __init__(self, path: Path, *, values: bool) -> None:
        super().__init__()
        self.path, self.values = str(path), values

    def forward(self, x: Tensor) -> Tensor:
        number = float(Path(self.path).read_text())
        return number * x if self.values else x.detach() + number * (x - x.detach())


@pytest.mark.parametrize("values", [True, False])
def test_a_change_that_no_fact_shows_leads_to_a_module_of_its_own(values: bool, x: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "number"
    net, y, counts = FromFile(path, values=values), x.clone().requires_grad_(), list[int]()
    with compilations_counted() as compiled:
        for number in (2, 2, 3, 3):
            path.write_text(str(number))
            module = as_explained(net, (x,), {}, "test", "gradient")
            (gradient,) = torch.autograd.grad(module(y).sum(), y)
            torch.testing.assert_close(gradient, torch.full_like(x, number))
            counts.append(len(compiled))
    assert counts[1] == counts[0] < counts[2]


def test_missing_values_are_filled_though_the_calls_before_had_none(x: Tensor) -> None:
    class Filling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(torch.nan_to_num(x * x))
            return out

    net, missing = Filling().eval(), x.clone()
    missing[0, 2] = torch.nan
    for given in (x, x, missing, x, missing):
        y = given.clone().requires_grad_()
        (found,) = torch.autograd.grad(as_explained(net, (given,), {}, "test", "gradient")(y)[:, 1].sum(), y)
        torch.testing.assert_close(found, (2 * given * net.linear.weight[1].detach()).nan_to_num())


def test_a_table_of_the_user_is_compiled_for_each_call(x: Tensor) -> None:
    net = Net().eval()
    own = lxt_fx.TABLES["attnlrp"].override("head", replace(basic_rules.LINEAR, when=lambda site: None))
    with compilations_counted() as compiled:
        for _ in range(2):
            as_explained(net, (x,), {}, "test", own)
    assert len(compiled) == 2


def test_other_positions_and_tables_have_modules_of_their_own(llama: LlamaForCausalLM) -> None:
    ids, found = torch.tensor([[4, 9, 17, 5]]), list[Tensor]()
    calls: list[tuple[Any, str]] = [(3, "attnlrp"), (lxt_fx.Target(3, position=1), "attnlrp"), (3, "gradient")]
    with compilations_counted() as compiled:
        for target, rules in (*calls, *calls):
            found.append(lxt_fx.explain(llama, None, ids, target, rules=rules).relevance)
    assert len(compiled) == 3
    for first, second in zip(found[:3], found[3:], strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)
    assert not any(torch.allclose(found[0], other, rtol=1e-3, atol=0) for other in found[1:3])


SEEN: list[int] = []
"""The last threshold of the garbage collector in each forward."""


def test_the_garbage_collector_is_as_before_and_rests_in_between(x: Tensor) -> None:
    class Seen(nn.Module):
        def __init__(self, fails: bool) -> None:
            super().__init__()
            self.linear, self.fails = nn.Linear(4, 4), fails

        def forward(self, x: Tensor) -> Tensor:
            SEEN.append(gc.get_threshold()[2])
            if self.fails:
                raise ValueError("no")
            out: Tensor = self.linear(x)
            return out

    own = gc.get_threshold()
    SEEN.clear()
    try:
        gc.set_threshold(123, 4, 5)
        lxt_fx.transform(Seen(fails=False), (x,))
        assert gc.get_threshold() == (123, 4, 5) and min(SEEN) >= 1000
        with pytest.raises(lxt_fx.InputError):
            lxt_fx.transform(Seen(fails=True), (x,))
        assert gc.get_threshold() == (123, 4, 5)
    finally:
        gc.set_threshold(*own)


MANY = [1.0] * 20_000


def test_a_model_that_reads_too_much_is_captured_for_each_call(
    x: Tensor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class ReadsMany(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.linear(x) * MANY[0]
            return out

    net, found = ReadsMany().eval(), list[Tensor]()
    caplog.set_level("INFO")
    for most, captures in ((module_facts.MOST_FACTS, 2), (10_000, 3)):
        monkeypatch.setattr(module_facts, "MOST_FACTS", most)
        forget_captures()
        with captures_counted() as captured:
            for factor in (1.0, 1.0, 3.0):
                monkeypatch.setitem(globals(), "MANY", [factor] * 20_000)
                found.append(as_explained(net, (x,), {}, "test", "attnlrp")(x))
        assert len(captured) == captures
        record = lxt_fx.transform(net, (x,)).record
        assert ("its code reads over" in record.not_kept and ":MANY[" in record.not_kept) is (captures == 3)
        with (console := Console(width=300)).capture() as shown:
            console.print(record)
        assert bool(re.search("captured for each call +its code reads over", shown.get())) is (captures == 3)
    assert all(torch.equal(one, other) for one, other in zip(found[:3], found[3:], strict=True))
    assert not torch.equal(found[1], found[2])
    assert "captures of ReadsMany are not kept: its code reads over" in caplog.text


def test_the_record_names_the_part_for_which_a_capture_is_not_kept(x: Tensor) -> None:
    net = Net().eval()
    assert lxt_fx.transform(net, (x,)).record.not_kept == ""
    block(net).table = iter([1.0, 2.0])
    for _ in range(2):
        record = lxt_fx.transform(net, (x,)).record
        assert record.not_kept == "model.blocks.0.table is of a kind that cannot be compared later"
