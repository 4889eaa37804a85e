"""Settings: a call with other numbers, flags and names than the example, or without them, is the call of the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

import lxt_fx
from lxt_fx import CallError
from lxt_fx.compiler.further_graphs import OtherCalls

X = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4)
DIFFERS = "graph for such calls is captured now"


class Flagged(nn.Module):
    """Takes a setting of each kind, and one more that it passes on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 4).double()

    def forward(
        self, x: Tensor, flag: float = 1.0, kind: str = "relu", both: bool = False, n: int | None = None, **more: float
    ) -> Tensor:
        out = getattr(torch, kind)(self.linear(x)) * flag
        out = out * (2 if both is True else 1) + (0 if n is None else n)
        return out * more["scale"] if "scale" in more else out


def answers(call: Any) -> Tensor:
    """The output and the gradient at its input."""
    x = X.clone().requires_grad_()
    out = call(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    return torch.cat([out.detach(), gradient])


@pytest.mark.parametrize(
    "given", [{"flag": 0.5}, {"kind": "tanh"}, {"both": True}, {"n": 3}, {"scale": 3.0}, {"flag": 0.5, "n": 3}]
)
def test_a_setting_that_is_left_out_is_the_models_default(given: dict[str, Any]) -> None:
    net = Flagged()
    explained = lxt_fx.transform(net, (X,), given, rules="gradient")
    torch.testing.assert_close(answers(lambda x: explained(x, **given)), answers(lambda x: net(x, **given)))
    with pytest.warns(UserWarning, match=DIFFERS):
        found = answers(explained)
    torch.testing.assert_close(found, answers(net))
    torch.testing.assert_close(answers(explained), answers(net))
    assert isinstance(explained._other_calls, OtherCalls) and len(explained._other_calls.graphs) == 1


@pytest.mark.parametrize(
    "given", [{"flag": 0.25}, {"kind": "tanh"}, {"both": 1}, {"flag": 0.5, "n": 0}]
)
def test_another_value_of_a_setting_is_the_models(given: dict[str, Any]) -> None:
    net = Flagged()
    explained = lxt_fx.transform(net, (X,), {"flag": 0.5, "both": True}, rules="gradient")
    with pytest.warns(UserWarning, match=DIFFERS):
        torch.testing.assert_close(answers(lambda x: explained(x, **given)), answers(lambda x: net(x, **given)))


@pytest.mark.filterwarnings("error")
def test_a_setting_of_the_default_may_be_given_or_left_out() -> None:
    net = Flagged()
    explained = lxt_fx.transform(net, (X,), {"flag": 1.0, "n": None}, rules="gradient")
    for given in ({}, {"flag": 1.0}, {"kind": "relu"}, {"n": None}, {"both": False, "flag": 1.0}):
        torch.testing.assert_close(answers(lambda x, given=given: explained(x, **given)), answers(net))


@pytest.mark.filterwarnings("error")
def test_settings_that_lxt_fx_sets_itself_need_not_be_repeated() -> None:
    ids = torch.tensor([[5, 9, 17]])
    model = tiny.llama(layers=1)
    given = {"input_ids": ids, "use_cache": False, "output_attentions": False, "logits_to_keep": 0}
    explained = lxt_fx.transform(model, kwargs=given)
    assert explained.record.to_repeat == ()
    for call in ({}, {"use_cache": None}, {"return_dict": True}, {"logits_to_keep": 0}):
        torch.testing.assert_close(explained(ids, **call).logits, model(ids).logits)


def test_a_setting_of_transformers_is_the_models_in_each_call() -> None:
    ids = torch.tensor([[5, 9, 17]])
    model = tiny.llama(layers=1)
    explained = lxt_fx.transform(model)
    for given in ({"logits_to_keep": 1}, {"return_dict": False}, {"output_hidden_states": True}):
        with pytest.warns(UserWarning, match=DIFFERS):
            found, expected = explained(ids, **given), model(ids, use_cache=False, **given)
        torch.testing.assert_close(found[0], expected[0])
        assert type(found) is type(expected) and len(found) == len(expected)
    found = explained(ids, use_cache=True)  # the cache is left out
    torch.testing.assert_close(found.logits, model(ids).logits)
    assert list(found) == ["logits"]


def test_functions_that_call_the_module_pass_settings_on() -> None:
    net = Flagged()
    inputs = {"x": X, "flag": 0.5}
    explained = lxt_fx.transform(net, kwargs=inputs)
    found = lxt_fx.relevance_of(explained, inputs, [1])
    torch.testing.assert_close(found, lxt_fx.relevance_of(net, inputs, [1]))
    assert lxt_fx.audit(explained, inputs, 1).value.sum() == lxt_fx.audit(net, inputs, 1).value.sum()
    curves = lxt_fx.perturbation_curves(explained, inputs, X, 1, leaf="x")
    assert torch.equal(curves.area, lxt_fx.perturbation_curves(net, inputs, X, 1, leaf="x").area)
    assert isinstance(explained._other_calls, OtherCalls) and not explained._other_calls.graphs


def test_a_loaded_module_refuses_other_settings(tmp_path: Path) -> None:
    net = Flagged()
    lxt_fx.save(lxt_fx.transform(net, (X,), {"flag": 0.5, "scale": 2.0}), tmp_path / "flagged")
    loaded = lxt_fx.load(tmp_path / "flagged")
    torch.testing.assert_close(loaded(X, flag=0.5, scale=2.0), net(X, flag=0.5, scale=2.0))
    with pytest.raises(CallError, match=r"leaves out scale, .* had \(2\.0\).* give the value of the example"):
        loaded(X, flag=0.5)
    with pytest.raises(CallError, match="flag=0.5 is baked into the graph"):
        loaded(X, flag=1.0, scale=2.0)


def test_settings_hold_under_another_table_in_a_copy_and_with_other_inputs() -> None:
    net = Flagged()
    explained = lxt_fx.transform(net, (X,), {"flag": 0.5})
    again = lxt_fx.transform(explained, (X,), {"flag": 0.5}, rules="gradient")
    expected = answers(lambda x: net(x, flag=0.5))
    for module in (again, copy.deepcopy(again)):
        torch.testing.assert_close(answers(lambda x, module=module: module(x, flag=0.5)), expected)
        with pytest.warns(UserWarning, match=DIFFERS):
            torch.testing.assert_close(answers(module), answers(net))


class Masked(nn.Module):
    def forward(self, x: Tensor, flag: float = 1.0, y: Tensor | None = None) -> Tensor:
        return x.sin() * flag + (0 if y is None else y)


def test_a_further_graph_for_other_inputs_has_the_settings_of_its_call() -> None:
    explained = lxt_fx.transform(Masked(), (X,), {"flag": 0.5})
    torch.testing.assert_close(explained(X, flag=0.5, y=X), Masked()(X, 0.5, X))
    with pytest.warns(UserWarning, match=DIFFERS):
        torch.testing.assert_close(explained(X, y=X), Masked()(X, y=X))


@pytest.mark.slow("inductor compiles a module for seconds")
def test_a_compiled_module_asks_for_the_first_call_outside() -> None:
    explained = lxt_fx.transform(Masked(), (X,), {"flag": 0.5})
    with pytest.warns(UserWarning, match=DIFFERS):
        explained(X)
    compiled = torch.compile(explained, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), Masked()(X))
    torch.testing.assert_close(compiled(X, flag=0.5), Masked()(X, 0.5))
