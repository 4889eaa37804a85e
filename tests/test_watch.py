"""`watch`: the relevance of a value inside the model, against the model itself and the same in every form of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tiny
import torch
from golden_cases import relative
from test_recapture import ROUTE, experts
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import ModelOutput

import lxt_fx
from lxt_fx.compiler.captured_model import copied
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options, table_named
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.passes.rewrite.explicit_form import STANDS_FOR

EXACT = 1e-9
"""float64, relative to the largest entry. Measured: up to 9e-15."""

FORMS = {"llama": 1e-6, "gpt2": EXACT, "bert": EXACT, "vit": EXACT}
"""Llama casts its norms to float32, also in float64 (measured: 4e-7)."""


def example(name: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8, generator=draw, dtype=torch.float64)}
    return {"inputs_embeds": torch.randn(2, 6, 32, generator=draw, dtype=torch.float64)}


def modules_of(explained: Explained) -> list[str]:
    """The paths of all modules that have one output which carries relevance."""
    values = explained._values()
    outputs = {path: [n for call in calls for n in call.leaving] for path, calls in values.calls.items() if path}
    return [path for path, found in outputs.items() if len(found) == 1 and values.carries(found[0])]


def nodes_of(explained: Explained) -> list[str]:
    """The nodes of the model, none that was put in."""
    values = explained._values()
    return [f"%{node.name}" for node in explained.graph.nodes if values.is_models(node) and values.carries(node)]


@dataclass
class Seen:
    node: str
    value: Tensor
    relevance: Tensor


def watched(
    explained: Explained, places: list[str], inputs: dict[str, Tensor], at: tuple[int, ...] = (-1,)
) -> dict[str, Seen]:
    """What `watch` gives for one logit of each example at each of these positions, where there are any."""
    given = {name: value.clone().requires_grad_(True) for name, value in inputs.items()}
    with lxt_fx.watch(explained, *places) as inside:
        logits = explained(**given).logits
        chosen = logits[..., 1] if logits.dim() == 2 else logits[:, list(at), 1]
        chosen.backward(chosen.detach() if explained.record.form == "explicit" else torch.ones_like(chosen))
    reached = {name: found for name, found in inside.items() if found.value.grad is not None}
    return {name: Seen(inside.nodes[name], found.value.detach(), found.relevance) for name, found in reached.items()}


def in_forms(model: nn.Module, *options: Options, rules: str = "attnlrp", args: tuple[Any, ...] = ()) -> list[Explained]:
    source = captured_from(model, args, None, dynamic=True)
    return [compiled_by(copied(source), table_named(rules), each) for each in options]


@cache
def model_of(name: str) -> nn.Module:
    """For reading only: it is captured once (kept_captures.py)."""
    return tiny.MODELS[name]().double()


@pytest.mark.parametrize("name", FORMS)
def test_every_module_and_node_has_the_same_relevance_in_both_forms(name: str) -> None:
    fast, slow = in_forms(model_of(name), Options("gradient", 0.0), Options("explicit", 0.0))
    assert modules_of(fast) == modules_of(slow) and set(nodes_of(fast)) == set(nodes_of(slow))
    places = [*modules_of(fast), *nodes_of(fast)]
    expected, found = (watched(module, places, example(name)) for module in (fast, slow))
    assert expected.keys() == found.keys() and len(expected) > 60
    for place, seen in expected.items():
        assert found[place].node == seen.node
        assert torch.equal(found[place].value, seen.value) or relative(found[place].value, seen.value) < FORMS[name]
        assert relative(found[place].relevance, seen.relevance) < FORMS[name], place


@contextmanager
def hooked(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """The output of each module of a model, by torch's own hooks."""
    outputs: dict[str, Tensor] = {}

    def saver(path: str) -> Any:
        def save(module: nn.Module, args: Any, output: Any) -> None:
            if isinstance(output, ModelOutput):
                output = output.get("pooler_output", output[0])  # of a whole BERT what the classifier reads
            output = output[0] if isinstance(output, tuple) else output
            if isinstance(output, Tensor) and output.requires_grad:
                output.retain_grad()
                outputs[path] = output

        return save

    handles = [module.register_forward_hook(saver(path)) for path, module in model.named_modules()]
    yield outputs
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_under_the_plain_gradient_it_is_what_hooks_on_the_model_give(name: str, form: Any) -> None:
    model = model_of(name)
    (explained,) = in_forms(model, Options(form, 0.0), rules="gradient")
    with hooked(model) as outputs:
        logits = model(**{key: value.clone().requires_grad_(True) for key, value in example(name).items()}).logits
        (logits[..., 1] if logits.dim() == 2 else logits[:, -1, 1]).sum().backward()
    found = watched(explained, modules_of(explained), example(name))
    assert set(found) <= set(outputs) and {path for path in outputs if ".0" in path and "drop" not in path} <= set(found)
    for path, seen in found.items():
        output = outputs[path]
        assert output.grad is not None
        assert relative(seen.value.reshape(output.shape), output.detach()) < EXACT, path
        assert relative(seen.relevance.reshape(output.shape), output.detach() * output.grad) < 1e-6, path


def test_an_epsilon_behind_a_value_is_not_missed() -> None:
    net, x = tiny.Mlp().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    fast, slow = in_forms(net, Options("gradient", 0.1), Options("explicit", 0.1), args=(x,))
    found = []
    for module in (fast, slow):
        with lxt_fx.watch(module, "first", "second", "%linear", "%gelu") as inside:
            y = module(x.clone().requires_grad_(True))[:, 1]
            y.backward(y.detach() if module is slow else torch.ones_like(y))
        found.append({name: value.relevance for name, value in inside.items()})
        assert inside.nodes == {"first": "linear", "second": "linear_1", "%linear": "linear", "%gelu": "gelu"}
    y = net(x)[:, 1]
    assert torch.allclose(found[0]["second"].sum(1), y) and torch.allclose(found[1]["second"].sum(1), y)
    for place, relevance in found[0].items():
        assert relative(found[1][place], relevance) < EXACT, place


def test_what_gets_a_gradient_back_in_explicit_form_cannot_be_watched() -> None:
    explained = lxt_fx.transform(tiny.Mlp().eval(), (torch.randn(2, 6),), form="explicit")
    assert "%enter" in lxt_fx.show(explained, "lowered")
    with pytest.raises(lxt_fx.UnknownNameError, match=r"%enter belongs to an op of the explicit form.*take %x, which has"):
        lxt_fx.watch(explained, "%enter").__enter__()
    with lxt_fx.watch(explained, "%*") as inside:
        assert not any(name.startswith(("%enter", "%hold")) for name in inside)
        x = torch.randn(2, 6, requires_grad=True)
        y = explained(x)[:, 1]
        y.backward(y.detach())
    assert torch.equal(inside["%linear"].relevance, inside["%leave"].relevance)


def test_what_the_explicit_form_puts_in_is_known_where_it_stands_for_a_value() -> None:
    for op, argument in STANDS_FOR.items():
        assert argument in {each.name for each in op._schema.arguments}, op


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("at", [(-1,), (2, 0)])
def test_a_module_that_answers_at_some_positions_has_the_relevance_of_the_whole_one(name: str, at: tuple[int, ...]) -> None:
    model = three_layers() if name == "llama" else tiny.gpt2().double()
    whole, narrow = in_forms(model, Options(), Options(positions=at))
    assert modules_of(narrow) == modules_of(whole)
    expected = watched(whole, modules_of(whole), example(name), at)
    found = watched(narrow, modules_of(whole), example(name), tuple(range(len(at))))
    assert found.keys() == expected.keys()
    narrowed = set()
    for path, seen in expected.items():
        assert found[path].node == seen.node
        relevance = seen.relevance
        if found[path].relevance.shape != relevance.shape:
            narrowed.add(path)
            relevance = relevance[:, list(at)]
            assert float(relevance.abs().sum()) == pytest.approx(float(seen.relevance.abs().sum()), rel=1e-12)
        assert relative(found[path].relevance, relevance) < 1e-6, path
    layers = [path for path in expected if path.count(".") == 2 and path[-1].isdigit()]
    assert len(layers) == (3 if name == "llama" else 2) and set(layers) & narrowed == {layers[-1]}


def three_layers() -> nn.Module:
    config = LlamaConfig(**tiny.SIZES | {"num_hidden_layers": 3})
    return tiny._made(LlamaForCausalLM, config, "sdpa").double()


def test_a_module_whose_tokens_are_selected_only_behind_it_is_watched_whole() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cumsum(1)

    net, x = nn.Sequential(nn.Linear(4, 4), Sum(), nn.Linear(4, 4)).double().eval(), torch.randn(2, 6, 4).double()
    whole, narrow = in_forms(net, Options(), Options(positions=(-1,)), args=(x,))
    found = []
    for module in (whole, narrow):
        with lxt_fx.watch(module, "0", "1") as inside:
            module(x.clone().requires_grad_(True))[:, -1, 2].sum().backward()
        found.append([inside[name].relevance for name in ("0", "1")])
    assert torch.allclose(found[0][0], found[1][0]) and torch.allclose(found[0][1], found[1][1])
    assert found[1][1].shape == (2, 6, 4) and found[1][0][:, 0].any()


class Twice(nn.Module):
    """A module that is called twice, and one that gives two values."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared, self.both = nn.Linear(4, 4), Both()

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(self.shared(torch.tanh(self.shared(x))))
        return torch.nn.functional.gelu(a) + b


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.left(x), self.right(x)


def test_a_module_without_one_output_is_refused_with_the_names_of_its_values() -> None:
    x = torch.randn(3, 4)
    explained = lxt_fx.transform(Twice().eval(), (x,))
    with pytest.raises(lxt_fx.InputError, match="shared is called 2 times.*%linear, %linear_1; take these nodes by name"):
        lxt_fx.watch(explained, "shared").__enter__()
    with pytest.raises(lxt_fx.InputError, match="both gives 2 values that carry relevance.*%linear_2, %linear_3"):
        lxt_fx.watch(explained, "both").__enter__()
    with lxt_fx.watch(explained, "both.*", "%linear_1") as inside:
        explained(x.requires_grad_(True))[:, 1].sum().backward()
    assert list(inside) == ["both.left", "both.right", "%linear_1"] and inside["%linear_1"].relevance.any()


def test_a_real_trace_tells_the_calls_of_a_module_apart() -> None:
    net, x = experts()
    net.loop = nn.Linear(4, 4).double()

    def forward(x: Tensor, route: Tensor) -> Tensor:
        return net.loop(net.loop(type(net).forward(net, x, route)))

    net.forward = forward  # type: ignore[method-assign]
    explained = lxt_fx.transform(net, (x, ROUTE))
    assert explained.record.method == "make_fx"
    with pytest.raises(lxt_fx.InputError, match="loop is called 2 times"):
        lxt_fx.watch(explained, "loop").__enter__()


def test_a_watch_inside_a_watch_leaves_the_outer_one_its_values() -> None:
    explained = lxt_fx.transform(tiny.Mlp().eval(), (torch.randn(2, 6),))
    with lxt_fx.watch(explained, "first") as outer:
        with lxt_fx.watch(explained, "first", "%gelu") as inner:
            explained(torch.randn(2, 6, requires_grad=True)).sum().backward()
        assert outer["first"].value is inner["first"].value
    assert torch.equal(outer["first"].relevance, inner["first"].relevance)
