"""Graphs that hold for some inputs only: they say so, refuse the others, or are captured again where that is allowed."""

from __future__ import annotations

import copy
import threading
import warnings
from pathlib import Path

import pytest
import torch
from golden_cases import relative
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

import lxt_fx
from lxt_fx.rule_table.linear_rules import gamma


class Experts(nn.Module):
    """Inputs go to the experts that `route` names, in a loop over those that were hit; a branch on a sum of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.experts = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor, route: Tensor) -> Tensor:
        x = self.first(x)
        out = torch.zeros_like(x)
        for expert in route.unique().tolist():
            rows = torch.nonzero(route == expert)[:, 0]
            out = out.index_add(0, rows, self.experts[expert](x[rows]))
        return out * 2 if out.sum() > 0 else torch.tanh(out)


class Reading(nn.Module):
    """Reads values in each way that Python has."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.linear = way, nn.Linear(4, 4)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        x = self.linear(x)
        match self.way:
            case "item":
                return x * n[0].item()
            case "tolist":
                return x * n.tolist()[0]
            case "numpy":
                return x * float(n.numpy()[0])
            case "bool":
                return x * 2 if n[0] > 1 else x
            case "index":
                return x * [1.0, 2.0, 3.0][n[0]]
            case "slice":
                return x[:, : n[0]]
            case "nonzero":
                return x[torch.nonzero(n > 1)[:, 0]]
            case "mask":
                return x[n > 1]
            case "tuple":
                return self._branched(x)[torch.nonzero(n > 1, as_tuple=True)[0]]
            case "repeat":
                return self._branched(x).repeat_interleave(n, 0)
        raise AssertionError(self.way)

    def _branched(self, x: Tensor) -> Tensor:
        return x if x.sum() < 1e9 else 2 * x  # torch.export fails at this branch


ROUTE = torch.tensor([0, 2, 2])


def experts() -> tuple[Experts, Tensor]:
    torch.manual_seed(0)
    return Experts().double().eval(), torch.randn(3, 4, dtype=torch.float64)


@pytest.mark.parametrize("way", ["item", "tolist", "numpy", "bool", "index", "slice", "nonzero", "mask", "tuple", "repeat"])
def test_values_that_python_read_are_expected_again(way: str) -> None:
    torch.manual_seed(0)
    net, x = Reading(way).eval(), torch.randn(3, 4)
    as_traced, other = torch.tensor([2, 1, 3]), torch.tensor([1, 1, 1])
    explained = lxt_fx.transform(net, (x, as_traced))
    torch.testing.assert_close(explained(x, as_traced), net(x, as_traced))
    if explained.record.method == "torch.export":  # the graph holds the values themselves
        torch.testing.assert_close(explained(x, other), net(x, other))
        return
    with pytest.raises(lxt_fx.TracedBranchError, match=r"at test_recapture\.py:\d+ read the (value|sizes)"):
        explained(x, other)


def test_another_way_through_the_experts_is_refused_with_its_line() -> None:
    net, x = experts()
    explained = lxt_fx.transform(net, (x, ROUTE))
    assert explained.record.method == "make_fx"
    assert any("read" in text for text in explained.record.specialised)
    said = r"test_recapture\.py:\d+ .*these inputs give.*dynamic=\"recapture\""
    with pytest.raises(lxt_fx.TracedBranchError, match=said):
        explained(x, torch.tensor([0, 1, 2]))
    loud = x * (-1 if explained(x, ROUTE).sum() > 0 else 1) * 5
    with pytest.raises(lxt_fx.TracedBranchError):
        explained(loud, torch.tensor([0, 0, 0]))


def test_real_traces_know_modules_and_lines() -> None:
    net, x = experts()
    explained = lxt_fx.transform(net, (x, ROUTE), rules={"experts.2": gamma(0.25)})
    text = lxt_fx.show(explained)
    assert "linear_gamma(%index_1, @experts.2.weight" in text and text.count("| gamma") == 1
    with lxt_fx.watch(explained, "experts.0") as inside:
        explained(x.requires_grad_(True), ROUTE).sum().backward()
    assert inside["experts.0"].value.shape == (1, 4)


def test_a_recapturing_module_answers_as_the_model_does() -> None:
    net, x = experts()
    explained = lxt_fx.transform(net, (x, ROUTE), rules="gradient", dynamic="recapture")
    for rows, route in ((x, [0, 2, 2]), (x, [1, 1, 0]), (-x, [2, 1, 0]), (x[:2], [1, 1]), (x, [1, 1, 0])):
        mine, own = rows.clone().requires_grad_(True), rows.clone().requires_grad_(True)
        found, expected = explained(mine, torch.tensor(route)), net(own, torch.tensor(route))
        torch.testing.assert_close(found, expected)
        found.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(mine.grad, own.grad)
    recaptures = explained._recaptures
    assert recaptures is not None and len(recaptures.graphs) == 3  # the last call found its graph
    other = lxt_fx.transform(explained, (x, ROUTE), rules="attnlrp")  # and under another table it recaptures, too
    torch.testing.assert_close(other(-x, torch.tensor([2, 1, 0])), net(-x, torch.tensor([2, 1, 0])))


def test_a_mamba_is_captured_again_for_another_length() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "intermediate_size": 32}
    model = MambaForCausalLM(MambaConfig(**sizes)).double().eval()
    explained = lxt_fx.transform(model, dynamic="recapture")
    assert any("dim 1 of input_ids is fixed" in text for text in explained.record.specialised)
    ids = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5, 3]])
    embeds = lxt_fx.embed(explained, ids)
    with lxt_fx.watch(explained, "backbone.layers.0") as inside:
        logits = explained(inputs_embeds=embeds).logits
        logits[0, -1, 7].backward()
    torch.testing.assert_close(logits, model(ids).logits)
    lone = lxt_fx.transform(model, kwargs={"inputs_embeds": embeds.detach()})
    again = lxt_fx.embed(lone, ids)
    lone(inputs_embeds=again).logits[0, -1, 7].backward()
    assert relative(embeds.grad, again.grad) < 1e-12
    assert inside["backbone.layers.0"].relevance.shape == (1, 10, 16)
    lxt_fx.audit(explained, {"input_ids": ids}).check()
    for length in (7, 5, 10):
        other = embeds[:, :length].detach()
        torch.testing.assert_close(explained(inputs_embeds=other).logits, model(inputs_embeds=other).logits)
    fixed = lxt_fx.transform(model)
    assert fixed.record.sizes["inputs_embeds"] == (None, 7, 16)
    with pytest.raises(lxt_fx.CallError, match='dynamic="recapture"'):
        fixed(inputs_embeds=embeds)


def test_a_padded_text_is_captured_again_with_its_mask() -> None:
    """A mask that is not all ones says what a missing one does not."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1, "intermediate_size": 32}
    model = MambaForCausalLM(MambaConfig(**sizes)).double().eval()
    explained = lxt_fx.transform(model, dynamic="recapture")
    ids, mask = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6, 5]]), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    torch.testing.assert_close(explained(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


@pytest.mark.parametrize("how", ["another table", "a copy", "a copy of that"])
def test_another_table_and_a_copy_recapture_too(how: str) -> None:
    net, x = experts()
    explained = lxt_fx.transform(net, (x, ROUTE), dynamic="recapture")
    if how != "a copy":
        explained = lxt_fx.transform(explained, (x, ROUTE), rules="gradient")
    module = explained if how == "another table" else copy.deepcopy(explained)
    if how == "a copy":  # its further graphs have its own parameters
        with torch.no_grad():
            module.get_parameter("first.weight").mul_(2)
            net = copy.deepcopy(net)
            net.first.weight.mul_(2)
    assert explained.record.table_name == module.record.table_name
    for route in ([1, 1, 0], [2, 1, 0]):
        torch.testing.assert_close(module(x, torch.tensor(route)), net(x, torch.tensor(route)))


def test_a_copy_of_a_module_whose_model_changed_is_refused_as_a_call_is() -> None:
    net, x = experts()
    explained = lxt_fx.transform(net, (x, ROUTE))
    net.half()
    with pytest.raises(lxt_fx.ModelChangedError, match="float16"):
        copy.deepcopy(explained)


def test_a_copy_of_what_cannot_be_copied_has_its_first_graph_and_says_so() -> None:
    net, x = experts()
    explained = lxt_fx.transform(net, (x, ROUTE), dynamic="recapture")
    net.lock = threading.Lock()
    twin = copy.deepcopy(explained)
    torch.testing.assert_close(twin(x, ROUTE), net(x, ROUTE))
    with pytest.raises(lxt_fx.CallError, match="no model to capture it from, since copy.deepcopy of the model failed"):
        twin(x, torch.tensor([1, 1, 0]))


def test_dynamic_takes_three_words() -> None:
    net, x = experts()
    with pytest.raises(lxt_fx.InputError, match="dynamic must be True, False or"):
        lxt_fx.transform(net, (x, ROUTE), dynamic="always")  # type: ignore[arg-type]


class Chunked(nn.Module):
    """Adds up chunks of four tokens in a loop, as many as the text has; fails beyond eight tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Embedding(10, 4), nn.Linear(4, 2)

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > 8:
            raise ValueError("more than eight tokens")
        x = self.table(ids)
        state = torch.zeros_like(x[:, 0])
        for start in range(0, 8 if x.shape[1] > 4 else 4, 4):
            state = torch.tanh(state + x[:, start : start + 4].sum(1))
        out: Tensor = self.last(state)
        return out


def test_a_length_beyond_a_guard_is_captured_with_a_warning_and_answers_as_the_model_does() -> None:
    net, ids = Chunked().eval(), torch.tensor([[3, 1, 4], [1, 5, 9]])
    explained = lxt_fx.transform(net, (ids,))
    assert explained.record.specialised == ()  # the length counts as free
    longer = torch.cat([ids, ids], 1)
    with pytest.warns(UserWarning, match=r"valid only if .*; a graph for such inputs is captured now, once"):
        torch.testing.assert_close(explained(longer), net(longer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(explained(longer[:1]), net(longer[:1]))  # the second graph is known
        torch.testing.assert_close(explained(ids), net(ids))
    found = explained._beyond_guards
    assert found is not None and len(found.graphs) == 1
    other = lxt_fx.transform(explained, (ids,), rules="gradient")
    with pytest.warns(UserWarning, match="is captured now"):
        torch.testing.assert_close(other(longer), net(longer))
    output, leaves = explained.with_leaves(longer)
    output[0, 0].backward()
    assert leaves["ids_embeds"].grad is not None and leaves["ids_embeds"].shape == (2, 6, 4)
    with pytest.warns(UserWarning), pytest.raises(lxt_fx.CallError, match="cannot be captured for this call.*eight tokens"):
        explained(torch.cat([longer, longer], 1))


def test_a_loaded_module_refuses_a_length_beyond_a_guard(tmp_path: Path) -> None:
    net, ids = Chunked().eval(), torch.tensor([[3, 1, 4], [1, 5, 9]])
    lxt_fx.save(lxt_fx.transform(net, (ids,)), tmp_path / "saved")
    with pytest.raises(lxt_fx.CallError, match="the graph is valid only if"):
        lxt_fx.load(tmp_path / "saved")(torch.cat([ids, ids], 1))
