"""The graph's gradient before any rule is compared with the model's own, and a backward that capture lost is named."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import lxt_fx
from lxt_fx.compiler.captured_model import copied
from lxt_fx.compiler.captures import captured_from
from lxt_fx.compiler.options import Options
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.verify_gradient.both_gradients import NotComparable, cotangents, gradients_of_model
from lxt_fx.passes.verify_gradient.verify_gradient import verify_gradient
from lxt_fx.report.relevance_path import NotProven


class Hooked(nn.Module):
    """Doubles its input; a hook on the gradient, which no capture sees, turns the gradient round."""

    def forward(self, x: Tensor) -> Tensor:
        doubled = x * 2
        if doubled.requires_grad:
            doubled.register_hook(lambda gradient: -gradient)
        return doubled


class Net(nn.Module):
    """Two linear maps with something in between."""

    def __init__(self, between: nn.Module, residual: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.between, self.last = nn.Linear(4, 8), between, nn.Linear(8, 2)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        found = self.between(hidden)
        return self.last(hidden + found if self.residual else found)


def example() -> Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1))


def test_the_graph_of_an_innocent_model_has_its_gradient() -> None:
    for explained in (lxt_fx.transform(Net(nn.GELU()), (example(),)), lxt_fx.transform(tiny.gpt2())):
        assert explained.record.gradient_difference <= 1e-6 and explained.record.gradient_note == ""
        said = lxt_fx.certificate(explained)
        assert "of the model's own, before any rule" in said.summary() or "bit-equal to the model's own" in said.summary()
        assert not any("gradient before any rule" in item.why for item in said.not_proven)


@pytest.mark.parametrize("residual", [False, True])
def test_a_lost_backward_is_an_error_that_names_its_module(residual: bool) -> None:
    where = r"in between \(Hooked\), at %mul \(test_verify_gradient.py:\d+\)\."
    with pytest.raises(lxt_fx.GradientMismatchError, match=where):
        lxt_fx.transform(Net(Hooked(), residual), (example(),))


def test_a_lost_backward_in_the_models_own_forward_names_the_model() -> None:
    class Own(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.first(x)
            found = hidden * 2
            if found.requires_grad:
                found.register_hook(lambda gradient: 0.5 * gradient)
            return self.last(found)

    with pytest.raises(lxt_fx.GradientMismatchError, match=r"off by 100% .* in Own, at %mul"):
        lxt_fx.transform(Own(nn.Identity()), (example(),))


def test_without_strict_a_lost_backward_is_a_warning_and_stands_in_the_certificate() -> None:
    with pytest.warns(UserWarning, match=r"passes another gradient than the model.*between \(Hooked\)") as caught:
        explained = lxt_fx.transform(Net(Hooked()), (example(),), strict=False)
    assert caught[0].filename == __file__
    assert math.isclose(explained.record.gradient_difference, 2, rel_tol=1e-5)
    assert "capture lost a backward in between (Hooked)" in explained.record.gradient_note
    (found,) = _about_the_gradient(explained)
    assert "is off by 200%" in found.why and "between (Hooked)" in found.why


def test_in_half_precision_a_lost_backward_is_a_warning() -> None:
    with pytest.warns(UserWarning, match="allowed: 30%"):
        lxt_fx.transform(Net(Hooked()).bfloat16(), (example().bfloat16(),))


def test_an_explained_module_and_its_file_have_the_first_comparison(tmp_path: object) -> None:
    with pytest.warns(UserWarning, match="another gradient"):
        explained = lxt_fx.transform(Net(Hooked()), (example(),), strict=False)
    with pytest.raises(lxt_fx.GradientMismatchError, match="another gradient"):
        lxt_fx.transform(explained, (example(),), rules="gradient")
    path = f"{tmp_path}/net.safetensors"
    lxt_fx.save(explained, path)
    loaded = lxt_fx.load(path).record
    assert loaded.gradient_difference == explained.record.gradient_difference
    assert loaded.gradient_note == explained.record.gradient_note


def test_one_capture_is_compared_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted(*args: object) -> object:
        calls.append(1)
        return verify_gradient(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("lxt_fx.compiler.captured_model.verify_gradient", counted)
    source = captured_from(Net(nn.ReLU()), (example(),), None, dynamic=False)
    for table in ("attnlrp", "gradient"):
        compiled_by(copied(source), lxt_fx.TABLES[table], Options())
    assert calls == [1]


def test_the_comparison_changes_neither_the_model_nor_torch() -> None:
    net = Net(nn.GELU())
    net.last.requires_grad_(False)
    before = torch.random.get_rng_state()
    with torch.no_grad():
        explained = lxt_fx.transform(net, (example(),))
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        inside = lxt_fx.transform(net, (example(),))
    assert explained.record.gradient_difference == inside.record.gradient_difference == 0
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert net.first.weight.requires_grad and not net.last.weight.requires_grad


def test_an_input_that_the_model_writes_into_is_compared() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 0
            return x.mul_(2).relu_() * x.clone().mul_(3)

    assert lxt_fx.transform(Writes(), (example(),)).record.gradient_difference == 0


def test_a_model_without_a_backward_is_not_compared_and_the_certificate_says_why() -> None:
    class Kernel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            doubled = x * 2
            if doubled.requires_grad:
                doubled.register_hook(_raise)
            return doubled

    explained = lxt_fx.transform(Net(Kernel()), (example(),))
    assert math.isnan(explained.record.gradient_difference)
    why = "not compared: the model's own gradient cannot be computed: RuntimeError: the kernel has no backward"
    assert explained.record.gradient_note == why
    (found,) = _about_the_gradient(explained)
    assert found.why == f"the gradient before any rule was {why}"
    assert "gradient      not compared" in lxt_fx.certificate(explained).summary()
    assert lxt_fx.certificate(explained).to_dict()["gradient_difference"] is None


def _raise(gradient: Tensor) -> Tensor:
    raise RuntimeError("the kernel has no backward")


def _about_the_gradient(explained: lxt_fx.Explained) -> list[NotProven]:
    return [item for item in lxt_fx.certificate(explained).not_proven if "gradient before any rule" in item.why]


class Lookups(nn.Module):
    """A table that is read in the way that the test chooses, and read again."""

    def __init__(self, look_up: Callable[[Tensor, Tensor], Tensor], twice: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last, self.look_up = nn.Embedding(9, 4), nn.Linear(4, 2), look_up
        self.twice = twice

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden = self.look_up(self.table.weight, input_ids)
        if self.twice:
            hidden = hidden * self.look_up(self.table.weight, input_ids) + hidden.detach() * hidden.view(hidden.shape)
        result: Tensor = self.last(hidden).tanh()
        return result


WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "embedding": lambda table, ids: nn.functional.embedding(ids, table),
    "scaled": lambda table, ids: nn.functional.embedding(ids, table) * 4,
    "index": lambda table, ids: table[ids],
    "index_select": lambda table, ids: table.index_select(0, ids.flatten()).unflatten(0, ids.shape),
    "one_hot": lambda table, ids: nn.functional.one_hot(ids, 9).float() @ table,
}
IDS = torch.tensor([[1, 2, 5], [8, 2, 1]])


@pytest.mark.parametrize("twice", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_model_is_started_from_a_value_that_it_computes_from_ids(way: str, twice: bool) -> None:
    net = Lookups(WAYS[way], twice)
    value = WAYS[way](net.table.weight, IDS).detach()
    seeds = cotangents(net(IDS))
    found = gradients_of_model(net, Example({"input_ids": IDS}, {}), {"looked_up": value}, seeds)["looked_up"]
    leaf = value.clone().requires_grad_()
    hidden = leaf * leaf + leaf.detach() * leaf if twice else leaf
    (expected,) = torch.autograd.grad(net.last(hidden).tanh(), leaf, seeds[0])
    assert torch.allclose(found, expected, atol=1e-6)


def test_equal_values_of_two_leaves_are_taken_in_order() -> None:
    net = Lookups(WAYS["embedding"], twice=True)
    value = net.table(IDS).detach()
    seeds = cotangents(net(IDS))
    found = gradients_of_model(net, Example({"input_ids": IDS}, {}), {"one": value, "two": value.clone()}, seeds)
    one, two = (value.clone().requires_grad_() for _ in range(2))
    output = net.last(one * two + one.detach() * one).tanh()
    expected = torch.autograd.grad(output, (one, two), seeds[0])
    assert torch.allclose(found["one"], expected[0], atol=1e-6) and torch.allclose(found["two"], expected[1], atol=1e-6)


def test_a_value_that_the_model_never_computes_cannot_be_compared() -> None:
    net = Lookups(WAYS["embedding"])
    with pytest.raises(NotComparable, match="no function call of the model's code returns the value of other"):
        gradients_of_model(net, Example({"input_ids": IDS}, {}), {"other": torch.ones(2, 3, 4)}, cotangents(net(IDS)))


def test_a_value_of_zeros_cannot_be_told_from_others() -> None:
    net = Lookups(WAYS["embedding"])
    with pytest.raises(NotComparable, match="the value of looked_up is 0 everywhere"):
        gradients_of_model(net, Example({"input_ids": IDS}, {}), {"looked_up": torch.zeros(2, 3, 4)}, cotangents(net(IDS)))


def test_a_gradient_that_is_nothing_but_rounding_proves_nothing() -> None:
    class Sums(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.scale = scale

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return ((x * self.scale).softmax(-1) * 100).sum(-1) + self.scale * y.sum(-1)

    other = _graph(Sums(1.01), x=example(), y=example())
    other = GraphModule(other, other.graph)
    leaves = [node for node in other.graph.nodes if node.op == "placeholder"]
    inputs = {"x": example(), "y": example()}
    model = Sums(1.0)
    expected = other(**inputs)  # so that the forwards count as equal
    given = Example(inputs, {})
    proof = verify_gradient(other, inputs, leaves, _Answers(model, expected), given, expected)
    assert proof.leaf == "y" and math.isclose(proof.difference, 0.01, rel_tol=1e-3) and proof.holds
    assert proof.note.startswith("not compared at x: the gradient is")


class _Answers(nn.Module):
    """The gradient of a model, with another value."""

    def __init__(self, model: nn.Module, value: Tensor) -> None:
        super().__init__()
        self.model, self.value = model, value

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.model(x, y)
        return found + (self.value - found).detach()


def _graph(net: nn.Module, **inputs: Tensor) -> GraphModule:
    return captured_from(net, (), dict(inputs), dynamic=False).captured.gm


def test_complex_and_integer_outputs() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return torch.fft.rfft(x), x.argmax(-1), x.sum()

    expected = Mixed()(example())
    drawn = cotangents(expected)
    assert drawn[0] is not None and drawn[0].is_complex() and drawn[1] is None and drawn[2] is not None
    given = Example({"x": example()}, {})
    found = gradients_of_model(Mixed(), given, {"x": example()}, drawn, expected)["x"]
    assert found.dtype == torch.float32 and found.abs().sum() > 0


def test_types_looked_up_in_the_table_of_the_tokens_are_not_taken_for_them() -> None:
    class Typed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
            out: Tensor = self.last(torch.tanh(self.table(input_ids) + self.table(token_type_ids.view(-1, 3)).square()))
            return out

    explained = lxt_fx.transform(Typed().eval(), kwargs={"input_ids": IDS, "token_type_ids": IDS})
    assert explained.record.leaves == ("inputs_embeds",)
    assert explained.record.gradient_difference <= 1e-6 and explained.record.gradient_note == ""
