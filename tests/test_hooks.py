"""Hooks on the submodules of an explained module, and those of the model that it was made from."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from golden_cases import relative
from torch import Tensor, nn

import lxt_fx
from lxt_fx.compiler.captured_model import copied
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.observed_module import Observed
from lxt_fx.compiler.options import Options, table_named
from lxt_fx.compiler.pipeline import compiled_by

PLACES = ["transformer.h.0", "transformer.h.1", "transformer.h.0.attn", "transformer.h.1.mlp.c_fc", "transformer.ln_f"]


@pytest.fixture(scope="module")
def gpt2s() -> dict[str, Explained]:
    source = captured_from(tiny.gpt2().double(), (), None, dynamic=True)
    options = {
        "gradient": Options(),
        "explicit": Options("explicit", 0.0),
        "last": Options(positions=(-1,)),
        "checkpoint": Options(checkpoint="layers"),
    }
    return {name: compiled_by(copied(source), table_named("attnlrp"), each) for name, each in options.items()}


def embeds() -> Tensor:
    return torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_(True)


def backward(explained: Explained, leaf: Tensor) -> None:
    logit = explained(inputs_embeds=leaf).logits[:, -1, 7]
    logit.backward(logit.detach() if explained.record.form == "explicit" else torch.ones_like(logit))


@pytest.mark.parametrize("name", ["gradient", "explicit", "last", "checkpoint"])
def test_a_forward_hook_gets_the_output_and_its_relevance(gpt2s: dict[str, Explained], name: str) -> None:
    explained, outputs, gradients = gpt2s[name], {}, {}

    def save(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        path = paths[module]
        assert len(inputs) == 1 and path not in outputs
        output.retain_grad()
        output.register_hook(lambda gradient: gradients.setdefault(path, gradient))
        outputs[path] = output

    paths = {explained.get_submodule(path): path for path in PLACES}
    handles = [module.register_forward_hook(save) for module in paths]
    leaf = embeds()
    try:
        backward(explained, leaf)
    finally:
        for handle in handles:
            handle.remove()
    other = embeds()
    with lxt_fx.watch(explained, *PLACES) as inside:
        backward(explained, other)
    assert torch.equal(leaf.grad, other.grad)  # type: ignore[arg-type]
    assert set(outputs) == set(PLACES)
    for path, output in outputs.items():
        assert torch.equal(output.grad, gradients[path])
        relevance = output.grad if name == "explicit" else output.detach() * output.grad
        assert torch.equal(relevance, inside[path].relevance) and relevance.any()
    plain = embeds()
    backward(explained, plain)  # the handles are gone
    assert set(outputs) == set(PLACES) and relative(plain.grad, leaf.grad) < 1e-12  # type: ignore[arg-type]


def test_hooks_get_what_the_models_own_hooks_get() -> None:
    model = tiny.gpt2().double()
    explained = lxt_fx.transform(model)
    seen: list[dict[str, Any]] = [{}, {}]
    handles = []
    for module, found in zip((model, explained), seen, strict=True):
        for path in PLACES:

            def before(part: nn.Module, args: Any, *, found: dict[str, Any] = found, path: str = path) -> None:
                found[path, "before"] = args[0].detach()

            def after(
                part: nn.Module, args: Any, kwargs: Any, out: Any, *, found: dict[str, Any] = found, path: str = path
            ) -> None:
                found[path, "in"], found[path, "kwargs"] = args[0].detach(), kwargs
                found[path, "out"] = (out[0] if isinstance(out, tuple) else out).detach()

            part = module.get_submodule(path)
            if not path.endswith("attn"):  # the model calls it by keywords
                handles.append(part.register_forward_pre_hook(before))
                handles.append(part.register_forward_hook(after, with_kwargs=True, always_call=True))
        module(inputs_embeds=embeds())
    for handle in handles:
        handle.remove()
    assert seen[0].keys() == seen[1].keys() and len(seen[1]) == 16
    for key, value in seen[1].items():
        assert key[1] == "kwargs" or relative(value.reshape(seen[0][key].shape), seen[0][key]) < 1e-12, key
        assert key[1] != "kwargs" or value == {}


def test_a_call_without_hooks_runs_no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    explained, x = lxt_fx.transform(tiny.Mlp().eval(), (torch.randn(2, 6),)), torch.randn(2, 6)
    explained.get_submodule("first").register_forward_hook(lambda *given: None).remove()
    explained(x)  # finds that there is no hook left
    runs: list[int] = []
    monkeypatch.setattr(Observed, "run", lambda *given, **named: runs.append(1))
    monkeypatch.setattr(nn.Module, "named_modules", lambda *given, **named: runs.append(2))
    explained(x)
    assert not runs


def fails(explained: Explained, x: Tensor, said: str) -> None:
    with pytest.raises(lxt_fx.CallError, match=said):
        explained(x)


def test_what_a_hook_cannot_do_here_is_refused_in_the_call() -> None:
    net, x = tiny.Mlp().eval(), torch.randn(2, 6)
    explained, other = lxt_fx.transform(net, (x,)), lxt_fx.transform(net, (x,))
    first = explained.get_submodule("first")
    for register, said in (
        (lambda: first.register_forward_hook(lambda m, i, o: o * 2), "a hook on first returned a value .Tensor.*no rule"),
        (lambda: first.register_forward_pre_hook(lambda m, i: i), "a hook on first returned a value .tuple."),
        (lambda: first.register_full_backward_hook(lambda *g: None), r"first has a backward.*watch\(explained, \"first\""),
        (lambda: first.register_full_backward_pre_hook(lambda *g: None), "first has a backward hook"),
    ):
        handle = register()
        fails(explained, x, said)
        handle.remove()
    other.get_submodule("first").register_backward_hook(lambda *gradients: None)
    fails(other, x, "first has a backward hook")
    first.register_forward_hook(lambda *given: None).remove()
    torch.testing.assert_close(explained(x), net(x))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pair, self.twice = Pair(), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.pair(self.twice(self.twice(x)))
        return torch.nn.functional.gelu(a) + b


CHANGES = {
    "no_grad": lambda module, inputs, output: _without_gradients(output.zero_),
    "scaled": lambda module, inputs, output: _nothing(output.mul_(0.5)),
    "the input": lambda module, inputs, output: _without_gradients(inputs[0].zero_),
}


def _without_gradients(change: Any) -> None:
    with torch.no_grad():
        change()


def _nothing(changed: Tensor) -> None:
    """What a hook that is written for torch returns."""


@pytest.mark.parametrize("change", CHANGES)
def test_a_hook_that_changes_a_value_in_place_is_refused(gpt2s: dict[str, Explained], change: str) -> None:
    explained = gpt2s["gradient"]
    handle = explained.get_submodule("transformer.h.0.mlp").register_forward_hook(CHANGES[change])
    with pytest.raises(lxt_fx.CallError, match="a hook on transformer.h.0.mlp changed a value in place"):
        explained(inputs_embeds=embeds())
    handle.remove()
    explained(inputs_embeds=embeds())


def test_what_does_not_call_the_module_refuses_hooks(gpt2s: dict[str, Explained]) -> None:
    explained = gpt2s["gradient"]
    handle = explained.get_submodule("transformer.h.1").register_forward_hook(lambda *given: None)
    inputs = {"inputs_embeds": embeds().detach()}
    for function in (lxt_fx.relevance_of, lxt_fx.audit):
        with pytest.raises(lxt_fx.CallError, match=f"{function.__name__}: transformer.h.1 has a hook"):
            function(explained, inputs, lxt_fx.Target.at(1, 3))
    handle.remove()
    assert lxt_fx.relevance_of(explained, inputs, lxt_fx.Target.at(1, 3)).shape == (1, 2, 5)


def test_removal_curves_refuse_hooks_too(gpt2s: dict[str, Explained]) -> None:
    explained = gpt2s["gradient"]
    handle = explained.register_forward_hook(lambda *given: None)
    given, relevance = {"inputs_embeds": embeds().detach()}, torch.ones(2, 5)
    with pytest.raises(lxt_fx.CallError, match="perturbation_curves: .*hook"):
        lxt_fx.perturbation_curves(explained, given, relevance, 1)
    handle.remove()
    lxt_fx.perturbation_curves(explained, given, relevance, 1)


def test_numbered_parts_without_parameters_are_not_counted_over() -> None:
    """The model's net[-1] is the ReLU, and its first part has no parameters."""
    whole = lxt_fx.transform(nn.Sequential(nn.Sequential(nn.Flatten(), nn.Linear(6, 3), nn.ReLU())), (torch.randn(2, 6),))
    inner: Any = whole.get_submodule("0")
    assert [part.weight.shape for part in inner] == [(3, 6)] and inner[1].weight.shape == (3, 6)
    for wrong in (-1, 0, 2):
        with pytest.raises(IndexError):
            inner[wrong]


def test_a_module_with_two_outputs_is_refused_and_one_that_is_called_twice_fires_twice() -> None:
    x = torch.randn(3, 4)
    explained = lxt_fx.transform(Net().eval(), (x,))
    handle = explained.get_submodule("pair").register_forward_hook(print)
    fails(explained, x, r"a hook on pair cannot run: .* several outputs: %linear_2, %linear_3; .*watch")
    handle.remove()
    seen: list[tuple[Tensor, Tensor]] = []
    explained.get_submodule("twice").register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    explained(x)
    assert len(seen) == 2 and torch.equal(seen[0][0], x) and torch.equal(seen[0][1], seen[1][0])


def test_copies_loaded_and_recaptured_modules_run_their_hooks(tmp_path: Path) -> None:
    net, x = tiny.Mlp().eval(), torch.randn(2, 6)
    explained, fired = lxt_fx.transform(net, (x,)), []
    lxt_fx.save(explained, tmp_path / "net.safetensors")
    loaded = lxt_fx.load(tmp_path / "net.safetensors")
    loaded.get_submodule("first").register_forward_hook(lambda *given: fired.append("loaded"))
    loaded(x)
    explained.get_submodule("first").register_forward_hook(lambda *given: fired.append("first"))
    twin = copy.deepcopy(explained)
    twin(x)
    fresh = copy.deepcopy(lxt_fx.transform(net, (x,)))
    fresh.get_submodule("second").register_forward_hook(lambda *given: fired.append("fresh"))
    fresh(x)
    assert fired == ["loaded", "first", "fresh"]
    again = lxt_fx.transform(net, (x,), dynamic=False)
    again.get_submodule("first").register_forward_hook(lambda *given: fired.append("again"))
    again(x)
    assert fired[3:] == ["again"]


def test_the_hooks_of_a_recapturing_module_run_in_the_graph_that_fits() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: Tensor, way: Tensor) -> Tensor:
            y = self.a(x)
            return y if int(way) else y * 2

    x, seen = torch.randn(2, 4), []
    explained = lxt_fx.transform(Reads().eval(), (x, torch.tensor(1)), dynamic="recapture")
    explained.get_submodule("a").register_forward_hook(lambda module, inputs, output: seen.append(output))
    for way in (1, 0):
        explained(x, torch.tensor(way))
    assert len(seen) == 2 and torch.equal(seen[0], seen[1])


def test_a_compiled_module_has_no_hooks_and_says_so() -> None:
    explained, x = lxt_fx.transform(tiny.Mlp().eval(), (torch.randn(2, 6),)), torch.randn(2, 6)
    compiled = torch.compile(explained, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), explained(x))
    handle = explained.get_submodule("first").register_forward_hook(lambda *given: None)
    with pytest.raises(Exception, match="first has a hook, which needs a call node by node"):
        compiled(x)
    handle.remove()
    torch.testing.assert_close(compiled(x), explained(x))


def test_hooks_on_the_model_become_part_of_the_graph_and_are_named() -> None:
    net, x, shift = tiny.Mlp().eval(), torch.randn(2, 6), torch.linspace(-1, 1, 12)
    handle = net.first.register_forward_hook(lambda module, inputs, output: output + shift)
    explained = lxt_fx.transform(net, (x,))
    expected = net(x)
    handle.remove()
    torch.testing.assert_close(explained(x), expected)
    assert not torch.allclose(net(x), expected)
    said = [text for text in explained.record.specialised if "hooks on first ran while the graph was captured" in text]
    assert len(said) == 1 and "hooks on first ran" in str(lxt_fx.certificate(explained))
    fired: list[int] = []
    net.first.register_forward_hook(lambda *given: fired.append(1))
    again = lxt_fx.transform(net, (x,))
    count = len(fired)
    again(x)
    assert count > 0 and len(fired) == count and not lxt_fx.transform(tiny.Mlp().eval(), (x,)).record.specialised


def pre(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return (args[0] * 2, *args[1:]), kwargs


def test_hooks_on_the_explained_module_run_as_on_the_model() -> None:
    """Pre-hooks change what goes in, forward hooks what comes out, backward hooks the gradient, as on the model."""
    net, x = tiny.Mlp().eval(), torch.randn(2, 6)
    explained, found = lxt_fx.transform(net, (x,), rules="gradient"), []
    for module in (net, explained):
        seen: list[Any] = []
        handles = [
            module.register_forward_pre_hook(pre, with_kwargs=True),
            module.register_forward_pre_hook(lambda m, args: args[0] + 1),
            module.register_forward_hook(lambda m, args, out, seen=seen: seen.extend([args[0].detach(), out.detach()])),
            module.register_forward_hook(lambda m, args, kwargs, out: out * 3, with_kwargs=True),
            module.register_full_backward_hook(lambda m, into, out, seen=seen: seen.extend([into[0], out[0]])),
            module.register_full_backward_pre_hook(lambda m, out: (out[0] * 5,)),
        ]
        assert module is net or len({id(module._forward_hooks), id(net._forward_hooks)}) == 2
        leaf = x.clone().requires_grad_()
        output = module(leaf)
        output[:, 0].sum().backward()
        for handle in handles:
            handle.remove()
        found.append([output.detach(), leaf.grad, *seen])
    assert len(found[0]) == len(found[1]) == 6
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)
    torch.testing.assert_close(explained(x), net(x))  # none is left


def test_a_hook_that_always_runs_gets_what_it_gets_in_torch_when_another_fails() -> None:
    """The arguments behind the pre-hooks, and the output where there is one."""
    net, x = tiny.Mlp().eval(), torch.randn(2, 6)
    found = []
    for module in (net, lxt_fx.transform(net, (x,))):
        seen: list[Any] = []
        first = module.register_forward_pre_hook(lambda m, args: args[0] + 1)
        broken = module.register_forward_hook(lambda m, args, out: 1 / 0)
        always = module.register_forward_hook(lambda m, args, out, seen=seen: seen.extend([args[0], out]), always_call=True)
        with pytest.raises(ZeroDivisionError):
            module(x)
        for handle in (first, broken, always):
            handle.remove()
        found.append(seen)
    assert len(found[0]) == len(found[1]) == 2
    for expected, got in zip(*found, strict=True):
        torch.testing.assert_close(got, expected)


def test_hooks_on_the_explained_module_run_once_whatever_runs_the_graph(gpt2s: dict[str, Explained]) -> None:
    explained, fired = gpt2s["gradient"], []
    own = explained.register_forward_hook(lambda m, args, output: fired.append((m is explained, output.logits.shape)))
    part = explained.get_submodule("transformer.h.0").register_forward_hook(lambda *given: fired.append("part"))
    explained(inputs_embeds=embeds())
    assert fired == ["part", (True, (2, 5, 64))]
    part.remove()
    with lxt_fx.watch(explained, "transformer.h.0") as inside:
        explained(inputs_embeds=embeds())
    explained.with_leaves(inputs_embeds=embeds())
    twin = copy.deepcopy(explained)
    twin(inputs_embeds=embeds())
    assert len(inside["transformer.h.0"].value) == 2 and [each[0] for each in fired[2:]] == [True, True, False]
    inputs = {"inputs_embeds": embeds().detach()}
    for function in (lxt_fx.relevance_of, lxt_fx.audit):
        with pytest.raises(lxt_fx.CallError, match=f"{function.__name__}: the module itself has a hook"):
            function(explained, inputs, lxt_fx.Target.at(1, 3))
    own.remove()
    explained(inputs_embeds=embeds())
    assert len(fired) == 5


def test_hooks_on_the_explained_module_run_in_a_further_graph_with_what_the_caller_gave() -> None:
    explained, seen = lxt_fx.transform(tiny.gpt2()), []
    explained.register_forward_hook(lambda m, args, kwargs, out: seen.append((args, sorted(kwargs))), with_kwargs=True)
    ids = torch.tensor([[1, 2, 3]])
    explained(ids)
    explained(input_ids=ids, attention_mask=torch.ones_like(ids))
    assert torch.equal(seen[0][0][0], ids) and [named for _, named in seen] == [[], ["attention_mask", "input_ids"]]


def test_what_a_hook_on_the_explained_module_cannot_do_is_refused() -> None:
    explained, x = lxt_fx.transform(tiny.Mlp().eval(), (torch.randn(2, 6),)), torch.randn(2, 6)
    with pytest.raises(lxt_fx.InputError, match="use register_full_backward_hook"):
        explained.register_backward_hook(lambda *given: None)
    bad = explained.register_forward_pre_hook(lambda m, args, kwargs: args, with_kwargs=True)
    fails(explained, x, "must return None or .args, kwargs., got tuple")
    bad.remove()
    ran: list[Any] = []
    handle = explained.register_forward_hook(lambda m, args, out: ran.append(out), always_call=True)
    fails(explained, torch.randn(2, 7), "Mlp")
    assert ran == [None]
    with pytest.raises(Exception, match="the module itself has hooks, which a compiled call would not run"):
        torch.compile(explained, fullgraph=True, backend="eager")(x)
    handle.remove()
    gpt2 = lxt_fx.transform(tiny.gpt2())
    gpt2.register_full_backward_hook(lambda *given: None)
    fails(gpt2, torch.tensor([[1, 2]]), "a tensor or a tuple of tensors, and this is CausalLM")


def test_an_explained_module_has_the_device_the_dtype_and_the_config_of_its_model() -> None:
    model = tiny.gpt2().double()
    explained = lxt_fx.transform(model)
    assert (explained.device, explained.dtype, explained.config) == (model.device, torch.float64, model.config)
    quantity = lxt_fx.transform(nn.Softmax(-1).eval(), (torch.randn(2, 3),))
    assert (quantity.device, quantity.dtype) == (torch.device("cpu"), torch.float32)


def test_parts_are_reached_as_in_the_model_and_those_that_are_not_there_say_what_to_use() -> None:
    explained = lxt_fx.transform(tiny.llama())
    layers = explained.model.layers
    assert layers[0] is explained.get_submodule("model.layers.0") and layers[-1] is layers[1] and len(list(layers)) == 2
    for missing, said in (
        (lambda: explained.get_submodule("model.layers.0.mlp.act_fn"), r"no hook on it could run; .*watch\(expl"),
        (lambda: explained.get_submodule("model.nothing"), "no attribute .nothing"),
        (lambda: layers[0].mlp.act_fn, "has no 'act_fn'.*read values and their relevance with lxt_fx.watch"),
        (lambda: explained.get_input_embeddings, r"lxt_fx.embed\(explained, input_ids\)"),
        (lambda: explained.generate, "lxt_fx.answer_relevance"),
        (lambda: explained.gradient_checkpointing_enable, "checkpoint="),
    ):
        with pytest.raises(AttributeError, match=said):
            missing()
    assert not hasattr(explained, "generate") and not hasattr(layers[0].mlp, "act_fn")
    with pytest.raises(IndexError, match="holds the parts 0, 1 here, and no 2"):
        layers[2]
    with pytest.raises(TypeError, match="no list of modules"):
        explained.model[0]
