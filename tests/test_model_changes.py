"""A model that changes after `transform`: what the graph cannot follow is refused by name, all else counts or is let be."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lxt_fx

IDS = torch.tensor([[5, 9, 17, 23, 11]])


class Scale(nn.Module):
    """An adapter with the attributes that those of PEFT have: which one is active, merged, and how strong."""

    adapter_layer_names = ("factors",)

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ModuleDict({"one": nn.Linear(4, 4, bias=False)})
        self._active, self.merged, self.scaling = ["one"], list[str](), {"one": 2.0}

    def forward(self, x: Tensor) -> Tensor:
        if self.merged:
            return x
        return x + sum(self.factors[name](x) * self.scaling[name] for name in self._active)


class Net(nn.Module):
    """Reads settings in each way that modules do, writes one itself, and has a part that it does not call."""

    power = 1.0

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.adapter, self.layers = Scale(), nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.unused, self.factor, self.act = nn.Linear(4, 4), 2.0, torch.tanh
        self.register_buffer("shift", torch.ones(4))
        self.plain, self.calls = torch.full((4,), 0.5), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = self.adapter(self.drop(self.norm(self.first(x))))
        for layer in self.layers:
            x = self.act(layer(x)) * self.factor * self.power
        return x + self.shift * self.plain


@pytest.fixture(autouse=True)
def unchecked_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checks between the steps of `transform`: these tests are about calls."""
    monkeypatch.delenv("LXT_FX_CHECK")


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def made() -> tuple[Net, lxt_fx.Explained]:
    net = Net().eval()
    return net, lxt_fx.transform(net, (X,))


def put(path: str, make: Callable[[Any], Any], net: nn.Module) -> None:
    """Sets what stands at the path to another value, made of it."""
    owner, _, name = path.rpartition(".")
    place = net.get_submodule(owner)
    setattr(place, name, make(getattr(place, name)))


def new_parameter(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(2 * weight.detach())


class Twice(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


REFUSED: dict[str, tuple[Callable[[Net], Any], str]] = {
    "parameter": (partial(put, "first.weight", new_parameter), r"first.weight is another Parameter \[4, 4\] of float32"),
    "parameter gone": (partial(put, "first.bias", lambda _: None), "first.bias is None .it was Parameter"),
    "buffer": (partial(put, "shift", lambda shift: shift * 2), r"shift is another Tensor \[4\]"),
    "constant": (partial(put, "plain", lambda plain: plain * 2), "plain is tensor"),
    "submodule": (partial(put, "layers.1", lambda _: nn.Linear(4, 4)), "layers.1 is another Linear"),
    "no submodule": (partial(put, "adapter", lambda _: nn.Identity()), "adapter is Identity .it was Scale"),
    "list": (partial(put, "layers", lambda layers: layers[:1]), "layers is another ModuleList"),
    "longer list": (lambda net: net.layers.append(nn.Linear(4, 4)), "layers.2 is new .Linear"),
    "shorter list": (lambda net: net.layers.__delitem__(1), "layers.1 is gone"),
    "number": (partial(put, "factor", lambda _: 3.0), r"factor is 3.0 .it was 2.0"),
    "number of the class": (partial(put, "power", lambda _: 3.0), "power was set on this Net"),
    "function": (partial(put, "act", lambda _: torch.relu), "act is <built-in"),
    "forward": (lambda net: setattr(net.layers[0], "forward", lambda x: x), "layers.0.forward was set on this Linear"),
    "setting of a torch module": (partial(put, "norm.eps", lambda _: 0.1), "norm.eps is 0.1"),
    "dropout": (lambda net: net.train(), r"norm .BatchNorm1d. is in training mode.*model.eval\(\)"),
    "half": (lambda net: net.half(), "first.weight is float16 on cpu .it was float32 on cpu"),
    "one layer": (lambda net: net.layers[1].double(), "layers.1.weight is float64 on cpu .it was float32 on cpu., and"),
    "device": (lambda net: net.to("meta"), "and 11 more changes"),
    "parametrization": (
        lambda net: nn.utils.parametrize.register_parametrization(net.first, "weight", Twice()), "first.weight is gone"
    ),
    "assigned state": (
        lambda net: net.load_state_dict(copy.deepcopy(net.state_dict()), assign=True), "is another .* 11 more changes"
    ),
    "active adapter": (lambda net: setattr(net.adapter, "_active", []), r"adapter._active is \[\] .it was \['one'\]"),
    "active adapter, in place": (lambda net: net.adapter._active.append("one"), r"adapter._active is \['one', 'one'\]"),
    "merged": (lambda net: net.adapter.merged.append("one"), r"adapter.merged is \['one'\] .it was \[\]"),
    "strength": (lambda net: net.adapter.scaling.update(one=1.0), "adapter.scaling is {'one': 1.0}"),
    "part of an adapter": (partial(put, "adapter.factors.one", lambda _: nn.Linear(4, 4)), "factors.one is another"),
}  # fmt: skip


@pytest.mark.parametrize("change", REFUSED)
def test_a_change_that_the_graph_cannot_follow_is_named(change: str) -> None:
    net, explained = made()
    explained(X)
    make, said = REFUSED[change]
    make(net)
    with pytest.raises(lxt_fx.ModelChangedError, match=f"Net: the model changed after transform: .*({said})"):
        explained(X)


def step(net: nn.Module) -> None:
    """One step of an optimiser, as in training."""
    net(X).square().sum().backward()
    torch.optim.SGD(net.parameters(), 0.1).step()


ALLOWED: dict[str, Callable[[Net], Any]] = {
    "optimiser": step,
    "state dict": lambda net: net.load_state_dict({k: v * 1.5 for k, v in net.state_dict().items()}),
    "copy_": lambda net: net.first.weight.data.mul_(2),
    "data": lambda net: setattr(net.first.weight, "data", net.first.weight.data * 2),
    "batch statistics": lambda net: (net.train()(X), net.eval()),
    "an unused part": partial(put, "unused", lambda _: nn.Linear(4, 4)),
    "a new part": lambda net: setattr(net, "probe", nn.Linear(4, 4)),
    "another adapter": lambda net: (
        net.adapter.factors.update({"two": nn.Linear(4, 4)}), net.adapter.scaling.update(two=1.0)
    ),
    "what the forward writes": lambda net: [net(X) for _ in range(3)],
    "the same number": partial(put, "factor", lambda factor: float(str(factor))),
    "no gradients": lambda net: net.requires_grad_(False),
    "there and back": lambda net: (put("factor", lambda _: 3.0, net), put("factor", lambda _: 2.0, net)),
}  # fmt: skip


@pytest.mark.parametrize("change", ALLOWED)
def test_what_the_graph_follows_or_does_not_read_is_no_change(change: str) -> None:
    net, explained = made()
    for _ in range(2):
        ALLOWED[change](net)
        torch.testing.assert_close(explained(X), net(X))
    assert explained._model_state is not None and explained._model_state._seen is not None
    assert explained._model_state._seen.is_same() or change == "what the forward writes"


def test_a_refused_call_works_again_when_the_change_is_undone() -> None:
    net, explained = made()
    net.factor = 3.0
    with pytest.raises(lxt_fx.ModelChangedError):
        explained(X)
    net.factor = 2.0
    torch.testing.assert_close(explained(X), net(X))


def test_a_language_model_that_is_resized_untied_or_half_is_refused_and_settings_without_effect_are_not() -> None:
    model = tiny.gpt2()
    explained = lxt_fx.transform(model)
    embeds = lxt_fx.embed(explained, IDS)
    model.config.use_cache = False
    model.config.pad_token_id = 3
    model.set_attn_implementation("eager")
    model.gradient_checkpointing_enable()
    model(torch.arange(40)[None])
    torch.testing.assert_close(explained(inputs_embeds=embeds).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    tied, model.lm_head.weight = model.lm_head.weight, new_parameter(model.lm_head.weight)
    with pytest.raises(lxt_fx.ModelChangedError, match=r"lm_head.weight is another Parameter \[64, 32\] of float32\. "):
        explained(inputs_embeds=embeds)
    model.lm_head.weight = tied
    explained(inputs_embeds=embeds)
    model.resize_token_embeddings(70)
    with pytest.raises(lxt_fx.ModelChangedError, match=r"vocab_size is 70 .it was 64|Embedding|\[70, 32\]"):
        explained(inputs_embeds=embeds)


def test_a_changed_model_is_not_saved_under_the_old_graph(tmp_path: Path) -> None:
    model = tiny.llama(layers=1)
    explained = lxt_fx.transform(model)
    model.half()
    with pytest.raises(lxt_fx.ModelChangedError, match="is float16 on cpu"):
        lxt_fx.save(explained, tmp_path / "changed.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_config_value_that_the_forward_reads_counts() -> None:
    class Config:
        def __init__(self) -> None:
            self.scale, self.name_of_run = 2.0, "first"

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config, self.linear = Config(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.config.scale

    net = Scaled().eval()
    explained = lxt_fx.transform(net, (X,))
    net.config.name_of_run = "second"
    torch.testing.assert_close(explained(X), net(X))
    net.config.scale = 3.0
    with pytest.raises(lxt_fx.ModelChangedError, match=r"config.scale is 3.0 \(it was 2.0\)"):
        explained(X)


def test_every_function_asks_and_modules_without_a_model_do_not(tmp_path: Path) -> None:
    net, explained = made()
    recoloured = lxt_fx.transform(explained, (X,), rules="cp_lrp")
    twin, expected = copy.deepcopy(explained), explained(X)
    lxt_fx.save(explained, tmp_path / "net.safetensors")
    loaded = lxt_fx.load(tmp_path / "net.safetensors")
    calls: list[Callable[[lxt_fx.Explained], Any]] = [
        lambda module: module(X),
        lambda module: lxt_fx.audit(module, (X,), 1),
        lambda module: lxt_fx.relevance_of(module, X, [1, lxt_fx.Target(0, minus=2)], reduce="none"),
        lambda module: lxt_fx.perturbation_curves(module, (X,), X, 1, removal=lxt_fx.Removal(unit="feature")),
        lambda module: lxt_fx.transform(module, (X,)),
    ]
    net.layers[0] = nn.Linear(4, 4)
    for call in calls:
        for module in (explained, recoloured):
            with pytest.raises(lxt_fx.ModelChangedError):
                call(module)
    for module in (twin, loaded):
        torch.testing.assert_close(module(X), expected)
        lxt_fx.audit(module, (X,), 1)


def test_the_model_is_held_for_other_calls_only() -> None:
    net, explained = made()
    # these would capture the model for a call with other inputs, or of sizes beyond a guard
    explained._other_calls = explained._beyond_guards = None
    root, unused = weakref.ref(net), weakref.ref(net.unused)
    expected = explained(X)
    del net
    gc.collect()
    assert root() is None and unused() is None
    torch.testing.assert_close(explained(X), expected)


def test_a_call_looks_at_no_module_of_a_model_that_did_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    _, explained = made()
    looked: list[int] = []
    for name in ("named_modules", "named_parameters", "parameters", "modules"):
        monkeypatch.setattr(nn.Module, name, lambda *given, **named: looked.append(1))
    explained(X)
    assert not looked


def test_a_hidden_state_that_the_forward_stores_is_held_by_nobody() -> None:
    """Values are compared of what stands among buffers only, so nothing else has to outlast the call that made it."""

    class Stores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.last, self.parts = nn.Linear(6, 7), torch.zeros(()), [torch.zeros(())]
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.last = torch.tanh(self.linear(x))
            self.parts[0] = self.last * 2
            self.seen = self.parts[0].sum(-1)
            return self.seen * 3

    def hidden() -> int:
        gc.collect()
        return sum(type(each) is Tensor and each.shape == (3, 7) for each in gc.get_objects())

    model, given = Stores().eval(), torch.randn(3, 6)
    before = hidden()
    explained = lxt_fx.transform(model, (given,))
    assert hidden() == before
    for _ in range(2):
        torch.testing.assert_close(explained(given), model(given))
    assert hidden() == before + 2, "those that the model itself stores now"


def test_what_the_forward_writes_for_the_first_time_is_no_setting() -> None:
    """Funnel saves the length of its last call, in an attribute that it does not have before."""

    class SavesLength(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.length = x.shape[1]
            return self.linear(x).sum(1)

    model = SavesLength().eval()
    explained = lxt_fx.transform(model, (torch.randn(2, 3, 4),))
    expected = model(other := torch.randn(1, 7, 4))
    torch.testing.assert_close(explained(other), expected)
    torch.testing.assert_close(explained(other[:, :2]), model(other[:, :2]))


def test_a_hook_that_is_put_on_the_model_later_is_named_once() -> None:
    """A hook that changes what a module gives was not seen, silently; one that only reads changes nothing."""
    model, inputs = nn.Sequential(nn.Linear(4, 3), nn.Tanh()).eval(), torch.randn(2, 4)
    explained = lxt_fx.transform(model, (inputs,))
    handle = model[0].register_forward_hook(lambda module, args, output: output * 0)
    with pytest.warns(UserWarning, match="a forward hook was put on 0 after"):
        explained(inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        explained(inputs)
        handle.remove()
        assert torch.allclose(explained(inputs), model(inputs))
    again = lxt_fx.transform(model, (inputs,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(inputs)
