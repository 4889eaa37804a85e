"""Layers that are the same code with other weights are traced once and copied, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import tiny
import torch
from graph_steps import all_traced, steps
from torch import Tensor, nn
from transformers import FlaubertConfig, FlaubertWithLMHeadModel

import lxt_fx
from lxt_fx.base.module_facts import facts_of
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.kept_captures import forget_model
from lxt_fx.passes.capture import capture as capture_module
from lxt_fx.passes.capture import layers_once
from lxt_fx.passes.capture.capture import Captured
from lxt_fx.passes.capture.layer_kinds import ReadError, Standing, kinds_of
from lxt_fx.passes.verify import forward_difference

LAYERS = 5


class Layer(nn.Module):
    """A layer with an index, as most models have it."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x).relu()


class Stack(nn.Module):
    """Layers one after the other."""

    def __init__(self, layer: Callable[[int], nn.Module] = Layer) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(layer(index) for index in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def captured(model: nn.Module, *args: Any, **kwargs: Any) -> Captured:
    forget_model(model)
    return captured_from(model.eval(), args, kwargs or None, dynamic=True).captured


def _of_transformers(name: str) -> tuple[nn.Module, int]:
    """A model of a family with more layers, and how many of them are copies."""
    config = getattr(tiny, name)().config
    if name == "whisper":
        config.encoder_layers = config.decoder_layers = 3
        return type(tiny.whisper())(config).eval(), 2
    config.num_hidden_layers = 4
    if name == "gemma3":
        config.num_hidden_layers, config.layer_types = 7, ["sliding_attention"] * 3 + ["full_attention"] * 4
        return type(tiny.gemma3())(config).eval(), 3
    return type(getattr(tiny, name)())(config).eval(), 2


LATER = pytest.mark.slow("layers of two kinds in one stack, and of one; whisper has two stacks")


@pytest.mark.parametrize("name", ["whisper", *(pytest.param(name, marks=LATER) for name in ("gemma3", "llama"))])
def test_copies_are_the_nodes_that_a_trace_of_each_layer_has(name: str) -> None:
    model, copies = _of_transformers(name)
    found = captured(model)
    with all_traced():
        whole = captured(model)
    assert found.copied.layers == copies
    assert steps(found.gm) == steps(whole.gm) and sorted(found.guards) == sorted(whole.guards)
    if name == "gemma3":  # beyond the window of 4
        ids = torch.randint(0, 64, (2, 11))
        given = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(11)[None].expand(2, 11)}
        assert forward_difference(model(ids).logits, found.gm(input_ids=ids, **given).logits) < 1e-6


def test_a_stack_is_copied() -> None:
    model, x = Stack(), torch.randn(3, 4)
    found = captured(model, x)
    with all_traced():
        whole = captured(model, x)
    assert found.copied.layers == LAYERS - 2 and not found.copied.not_copied
    assert whole.copied.layers == 0
    assert steps(found.gm) == steps(whole.gm) and sorted(found.guards) == sorted(whole.guards)


def test_nodes_stand_in_the_modules_of_the_model() -> None:
    """Flaubert takes its layers out of lists by their index: there the tracer follows a proxy of the layer, and named what
    was inside of a wrapped layer as if the layer were the model."""
    torch.manual_seed(0)
    config = FlaubertConfig(vocab_size=40, emb_dim=8, n_layers=LAYERS, n_heads=2, dropout=0.0, attention_dropout=0.0)
    model = FlaubertWithLMHeadModel(config)
    found = captured(model)
    with all_traced():
        whole = captured(model)
    assert steps(found.gm) == steps(whole.gm)
    stacks = [node.meta.get("nn_module_stack", {}) for node in found.gm.graph.nodes]
    paths = {path.partition("@")[0] for stack in stacks for path, _ in stack.values()}
    assert {f"transformer.attentions.{index}.q_lin" for index in range(LAYERS)} <= paths


def test_the_record_and_the_certificate_say_how_many() -> None:
    explained = lxt_fx.transform(Stack().eval(), (torch.randn(3, 4),))
    assert explained.record.copied_layers == LAYERS - 2
    assert "3 layers are copies of a traced one" in lxt_fx.certificate(explained).summary()


def test_a_model_is_as_before() -> None:
    model = Stack().eval()
    before = [dict(vars(module)) for module in model.modules()]
    captured(model, torch.randn(3, 4))
    assert [dict(vars(module)) for module in model.modules()] == before
    with mock.patch.object(torch.export, "export", side_effect=RuntimeError), pytest.raises(RuntimeError):
        capture_module._export(model, _example(model), dynamic=True, copies=True)
    assert [dict(vars(module)) for module in model.modules()] == before


def _example(model: nn.Module) -> Any:
    return captured_from(model, (torch.randn(3, 4),), None, dynamic=True).captured.example


class ReadsIndex(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) * self.index


class BranchesAtIndex(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) if self.index == 2 else x - self.linear(x)


class Swallows(Layer):
    def forward(self, x: Tensor) -> Tensor:
        try:
            return x + self.linear(x) * self.index
        except Exception:
            return x + self.linear(x)


class OwnScale(Layer):
    """Attributes of other kinds than a count, in pairs: these are kinds of their own."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.scale = 1.0 if index < 2 else 2.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) * self.scale


class Records(Layer):
    """Puts what it computes where the model finds it."""

    def forward(self, x: Tensor) -> Tensor:
        RECORDED.append(self.linear(x))
        return x + RECORDED[-1]


RECORDED: list[Tensor] = []


class SumsRecords(Stack):
    def __init__(self) -> None:
        super().__init__(Records)

    def forward(self, x: Tensor) -> Tensor:
        RECORDED.clear()
        return super().forward(x) + sum(RECORDED)


class Counts(Layer):
    """Its values depend on how often its class was called."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counts.calls += 1
        return x + self.linear(x) * float(Counts.calls)


class CountsFromZero(Stack):
    def __init__(self) -> None:
        super().__init__(Counts)

    def forward(self, x: Tensor) -> Tensor:
        Counts.calls = 0
        return super().forward(x)


class Writes(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        x.mul_(0.5)
        return y


class ReadsInputAgain(Stack):
    def forward(self, x: Tensor) -> Tensor:
        total = x * 0
        for layer in self.layers:
            before = x * 1
            x = layer(before) + before
            total = total + x
        return total


class OfAnother(Layer):
    """A middle layer of the same class that does something else, which no attribute shows."""

    def forward(self, x: Tensor) -> Tensor:
        return x - self.linear(x) if id(self) in ODD else x + self.linear(x)


ODD: set[int] = set()


def last_rows(x: Tensor, most: Any) -> Tensor:
    """Zeroes but the last rows, which no example of a few rows shows."""
    return x if most is None else torch.where(torch.arange(x.shape[0])[:, None] < most, x, torch.zeros_like(x))


class HalfOfFloat(Layer):
    """Compares a whole number with a float, for which `int.__eq__` has no answer."""

    def forward(self, x: Tensor) -> Tensor:
        return x + last_rows(self.linear(x), 5 if self.index == LAYERS / 2.5 else None)


SHARED: dict[str, Any] = {}


class SharedWindow(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return x + last_rows(self.linear(x), SHARED["most"])


class SharedWindows(Stack):
    """Says on the side what each layer has to do; first and last have to do the same."""

    def __init__(self) -> None:
        super().__init__(SharedWindow)

    def forward(self, x: Tensor) -> Tensor:
        for layer, most in zip(self.layers, (None, 5, 5, 5, None), strict=True):
            SHARED["most"] = most
            x = layer(x)
        return x


class KeepsOutput(Layer):
    def forward(self, x: Tensor) -> Tensor:
        y = x + self.linear(x)
        RECORDED.append(y)
        return y


class KeepsOutputs(Stack):
    def __init__(self) -> None:
        super().__init__(KeepsOutput)

    def forward(self, x: Tensor) -> Tensor:
        RECORDED.clear()
        x = super().forward(x)
        return x + x - last_rows(x, 5) + torch.stack(RECORDED).mean(0) - last_rows(torch.stack(RECORDED).mean(0), 5)


class ChangesArgument(Layer):
    def forward(self, x: Tensor, state: dict[str, Tensor]) -> Tensor:
        y = x + self.linear(x)
        if "last" in state:
            y = y + state["last"] - last_rows(state["last"], 5)
        state["last"] = y
        return y


class PassesState(Stack):
    def forward(self, x: Tensor) -> Tensor:
        state: dict[str, Tensor] = {}
        for layer in self.layers:
            x = layer(x, state) * 1.5
        return x


class TakesNumber(Layer):
    def forward(self, x: Tensor, most: Tensor) -> Tensor:
        return x + last_rows(self.linear(x), int(most))


class PassesNumbers(Stack):
    """Numbers as tensors, which tracing knows and Python reads."""

    def __init__(self) -> None:
        super().__init__(TakesNumber)

    def forward(self, x: Tensor) -> Tensor:
        for layer, most in zip(self.layers, (99, 5, 5, 5, 99), strict=True):
            x = layer(x, torch.tensor(most))
        return x


class Slotted(Layer):
    __slots__ = ("most",)

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.most = 5 if index == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        return x + last_rows(self.linear(x), self.most)


def _patched() -> nn.Module:
    model = Stack()
    layer: Any = model.layers[2]
    layer.forward = lambda x: x - layer.linear(x)
    return model


def _hooked() -> nn.Module:
    model = Stack()
    model.layers[2].register_forward_hook(lambda module, args, output: output * 3)
    return model


def _hooked_inside() -> nn.Module:
    model = Stack()
    model.layers[2].linear.register_forward_hook(lambda module, args, output: output * 3)
    return model


def _odd() -> nn.Module:
    model = Stack(OfAnother)
    ODD.clear()
    ODD.add(id(model.layers[2]))
    return model


DIFFERENT = [
    (lambda: Stack(ReadsIndex), 0, "reads index"),
    (lambda: Stack(BranchesAtIndex), 0, "reads index"),
    (lambda: Stack(Swallows), 0, "reads index"),
    (lambda: Stack(OwnScale), 1, ""),
    (SumsRecords, 0, "store something outside"),
    (CountsFromZero, 0, "store something outside"),
    (lambda: Stack(HalfOfFloat), 0, "reads index"),
    (SharedWindows, 0, "changes between the calls"),
    (KeepsOutputs, 0, "store something outside"),
    (lambda: PassesState(ChangesArgument), 0, "change an argument"),
    (PassesNumbers, 0, "another way"),
    (lambda: Stack(Slotted), 0, ""),
    (lambda: ReadsInputAgain(Writes), 0, "writes into"),
    (_patched, 2, ""),
    (_hooked, 2, ""),
    (_hooked_inside, 2, ""),
    (_odd, 0, ""),
]


@pytest.mark.parametrize(("made", "copies", "why"), DIFFERENT, ids=range(len(DIFFERENT)))
def test_layers_that_differ_are_traced(made: Callable[[], nn.Module], copies: int, why: str) -> None:
    model, x = made().eval(), torch.randn(3, 4)
    explained = lxt_fx.transform(model, (x,))
    assert explained.record.copied_layers == copies
    assert why in " ".join(explained.record.traced_layers)
    for given in (x, torch.randn(2, 4), torch.randn(7, 4)):
        wanted = model(given.clone())
        assert forward_difference(wanted, explained(given.clone())) < 1e-6


class Asks(Layer):
    """Compares its index with what is the same for all of them."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.linear(x) if self.index < 100 and self.index != "first" else x


class Several(Layer):
    """Takes and gives several values, one of them as it is."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.register_buffer("shift", torch.randn(4))

    def forward(self, x: Tensor, *, masks: dict[str, Any]) -> tuple[Tensor, dict[str, Any], None]:
        y = self.linear(x) + self.shift + torch.tensor(0.25)
        with torch.no_grad():
            scale = x.abs().mean()
        return x * masks["mask"] + y * scale, masks, None


class SeveralStack(Stack):
    def __init__(self) -> None:
        super().__init__(Several)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        masks = {"mask": mask, "name": "mask"}
        for layer in self.layers:
            x, masks, _ = layer(x, masks=masks)
        return x * masks["mask"]


class Tied(Stack):
    """The weights of one linear map in all layers, beside others."""

    def __init__(self) -> None:
        super().__init__(lambda index: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
        for layer in self.layers:
            layer[1].weight = self.layers[0][1].weight


@pytest.mark.parametrize(
    ("model", "args"),
    [(Stack(Asks), 1), (SeveralStack(), 2), (Tied(), 1)],
    ids=["asks", "several", "tied"],
)
def test_layers_that_are_the_same_are_copied(model: nn.Module, args: int) -> None:
    inputs = [torch.randn(3, 4) for _ in range(args)]
    found = captured(model, *inputs)
    with all_traced():
        whole = captured(model, *inputs)
    assert found.copied.layers == LAYERS - 2
    assert steps(found.gm) == steps(whole.gm)


def test_layers_of_two_kinds_in_turn() -> None:
    class Wide(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return x + self.linear(x).tanh()

    model = Stack()
    model.layers = nn.ModuleList((Layer if index % 2 else Wide)(index) for index in range(8))
    found = captured(model, torch.randn(3, 4))
    with all_traced():
        whole = captured(model, torch.randn(3, 4))
    assert found.copied.layers == 4
    assert steps(found.gm) == steps(whole.gm)


def test_a_layer_that_is_called_twice_is_traced_again() -> None:
    class Twice(Stack):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x))

    model = Twice()
    found = captured(model, torch.randn(3, 4))
    assert found.copied.layers == LAYERS - 2
    x = torch.randn(6, 4)
    assert torch.equal(found.gm(x=x), model(x))


def test_a_stack_without_gradient_is_traced() -> None:
    class Frozen(Stack):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                y = super().forward(x)
            return x * y

    found = captured(Frozen(), torch.randn(3, 4))
    assert found.copied.layers == 0
    assert "without gradients" in found.copied.not_copied[0]


def test_an_attribute_stands_for_those_of_all_twins() -> None:
    (kind,) = kinds_of(Stack())
    index: Any = Standing(kind, "index", (1, 2, 3))
    assert index < 4 and index != 0 and not index == "text"  # noqa: SIM201 - the comparison that is tested
    for use in (
        lambda: index + 1, lambda: 1 + index, lambda: index == 2, lambda: index < 2, lambda: bool(index),
        lambda: [0, 1][index], lambda: {1: 2}[index], lambda: str(index), lambda: f"{index}",
        lambda: isinstance(index, int), lambda: index.real,
        lambda: torch.ones(2) * index, lambda: range(index), lambda: index % 2, lambda: -index, lambda: index(),
    ):  # fmt: skip
        kind.why_not = ""
        with pytest.raises(ReadError):
            use()
        assert "reads index" in kind.why_not


MANY = [1.0] * 25_000


class ReadsMany(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * MANY[0]


class ReadsManyToo(ReadsMany):
    pass


def test_layers_whose_code_reads_more_than_can_be_compared_are_traced() -> None:
    model, x = Stack(ReadsMany), torch.randn(3, 4)
    found = captured(model, x)
    assert found.copied.layers == 0 and "code reads too many objects" in found.copied.not_copied[0]
    assert torch.equal(found.gm(x=x), model(x))


def test_such_layers_are_looked_at_once_and_others_are_still_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    walked = list[type]()

    def counted(layer: nn.Module, *most: int) -> Any:
        walked.append(type(layer))
        return facts_of(layer, *most)

    monkeypatch.setattr(layers_once, "facts_of", counted)
    model, x = nn.Sequential(Stack(ReadsMany), Stack(ReadsManyToo), Stack(Layer)), torch.randn(3, 4)
    found = captured(model, x)
    assert found.copied.layers == LAYERS - 2 and len(found.copied.not_copied) == 2
    assert all("code reads too many objects" in said for said in found.copied.not_copied)
    assert walked.count(ReadsMany) == walked.count(ReadsManyToo) == 1 and walked.count(Layer) < 4 * LAYERS
    assert torch.equal(found.gm(input=x), model(x))
