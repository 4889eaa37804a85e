"""`latent`: relevance and activation at places inside a model from one forward and one backward, against `watch`, which
runs node by node, and against the ledger."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shared_captures import each_model, explained, one_worker
from test_watch import example
from tiny_text import word_tokenizer
from torch import Tensor

import lxt_fx
from lxt_fx.attribution import many_targets
from lxt_fx.views.terminal import plain

EXACT = 1e-9
"""float64, relative to the largest entry. Measured: up to 8e-16 between the fused graph and the node-by-node run."""

MODELS = each_model(["llama", "gpt2", "gemma3", "bert", "vit"])


def last(output: Any) -> Tensor:
    return output.logits[..., 1] if output.logits.dim() == 2 else output.logits[:, -1, 1]


def close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * max(float(expected.abs().max()), 1e-12))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("options", [{}, {"rules": "cp_lrp"}, {"form": "explicit"}, {"checkpoint": "layers"}], ids=str)
def test_every_place_has_the_relevance_that_watch_gives_node_by_node(name: str, options: dict[str, Any]) -> None:
    module, inputs = explained(name, torch.float64, **options), example(name)
    found = lxt_fx.latent(module, inputs, last, tuple(lxt_fx.places(module)))
    given = {key: value.clone().requires_grad_(True) for key, value in inputs.items()}
    with lxt_fx.watch(module, *found) as watched:
        value = last(module(**given))
        value.backward(value.detach() if module.record.form == "explicit" else torch.ones_like(value))
    assert len(found) >= 14 and "mlp.1.neurons" in found and "residual.2" in found
    for place, expected in watched.items():
        reached = torch.zeros_like(expected.value) if expected.value.grad is None else expected.relevance
        close(found.relevance[place], reached.reshape(found.relevance[place].shape))
        close(found.activation[place], expected.value.detach().reshape(found.relevance[place].shape))


@one_worker("llama")
@pytest.mark.parametrize("place", ["attention.0.queries", "attention.0.keys", "attention.0.values", "mlp.0.neurons"])
def test_a_place_owes_no_share_although_the_fused_graph_moves_shares_past_it(place: str) -> None:
    """The plain call multiplies the gradient of queries by 1/4 behind them; a place in between must have it already."""
    module, inputs = explained("llama", torch.float64), example("llama")
    alone = lxt_fx.latent(module, inputs, last, place).relevance[place]
    close(alone, lxt_fx.latent(module, inputs, last, tuple(lxt_fx.places(module))).relevance[place])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("rules", ["attnlrp", "cp_lrp", "gradient"])
def test_at_each_cut_the_relevance_and_the_leaks_behind_it_are_the_explained_number(name: str, rules: str) -> None:
    module, inputs = explained(name, torch.float64, rules=rules), example(name)
    cuts = [place for place in lxt_fx.places(module) if place.startswith("residual")]
    found = lxt_fx.latent(module, inputs, last, cuts)
    ledger = lxt_fx.audit(module, inputs, last)
    for cut in cuts:
        total = found[cut].relevance[0].sum([1, 2])
        rounding = EXACT * float(ledger.scale().max())
        torch.testing.assert_close(total, ledger.at(cut), rtol=0, atol=rounding)
        whole = total + sum(ledger.behind(cut).values()) + ledger.residual
        torch.testing.assert_close(whole, ledger.value, rtol=0, atol=rounding)
    if rules == "attnlrp":
        assert float(ledger.behind("residual.0")["softmax offset"].abs().sum()) > 0


@one_worker("llama")
def test_a_place_that_relevance_passes_by_is_no_cut() -> None:
    ledger = lxt_fx.audit(explained("llama", torch.float64), example("llama"), last)
    assert ledger.at("mlp.0.output").shape == (2,) and ledger.at("model.layers.0.mlp").shape == (2,)
    with pytest.raises(lxt_fx.InputError, match="past mlp.0.output"):
        ledger.behind("mlp.0.output")
    with pytest.raises(lxt_fx.UnknownNameError, match="the nearest are residual"):
        ledger.at("residual.7")


@one_worker("llama")
def test_one_forward_and_one_backward_give_all_places(monkeypatch: pytest.MonkeyPatch) -> None:
    module, runs, backwards = explained("llama"), [], []
    forward, backward = many_targets.forward_run, many_targets.backward
    monkeypatch.setattr("lxt_fx.inside.inside_call.forward_run", lambda *args: runs.append(1) or forward(*args))
    monkeypatch.setattr(many_targets, "backward", lambda *args: backwards.append(1) or backward(*args))
    lxt_fx.latent(module, {"inputs_embeds": example("llama")["inputs_embeds"].float()}, last)
    assert (len(runs), len(backwards)) == (1, 1)


@one_worker("llama")
@pytest.mark.parametrize("chunk", [None, 2])
def test_many_targets_are_those_of_one_call_each(chunk: int | None) -> None:
    module, inputs = explained("llama", torch.float64), {"input_ids": torch.tensor([[3, 7, 9, 4]])}
    together = lxt_fx.latent(module, inputs, [3, 17, (5, 6)], "mlp.*.neurons", chunk=chunk)
    assert together.axes["mlp.0.neurons"] == ("targets", "batch", "tokens", "neurons")
    for at, target in enumerate([3, 17, (5, 6)]):
        alone = lxt_fx.latent(module, inputs, target, "mlp.*.neurons")
        assert alone.axes["mlp.0.neurons"] == ("batch", "tokens", "neurons")
        for place in together:
            close(together.relevance[place][at], alone.relevance[place])
        close(together.explanations[0].parts[0].values[at], alone.explanations[0].parts[0].values)
        assert together.numbers()[at].said == alone.numbers()[0].said


@one_worker("gpt2")
def test_a_padded_example_has_the_relevance_that_it_has_alone() -> None:
    module = explained("gpt2", torch.float64)
    mask = torch.tensor([[1] * 4, [1, 1, 0, 0]])
    texts = {"input_ids": torch.tensor([[3, 7, 9, 4], [5, 6, 0, 0]]), "attention_mask": mask}
    both = lxt_fx.latent(module, texts, 3)
    alone = lxt_fx.latent(module, {"input_ids": torch.tensor([[5, 6]])}, 3)
    for place in ("mlp.1.neurons", "residual.1"):
        close(both.relevance[place][1, :2], alone.relevance[place][0])
        assert not both.relevance[place][1, 2:].any()
    assert [each[:4] for each in both.top(4, example=1).items()] == list(alone.top(4).items())
    assert all(unit.position < 2 for unit in both.top(40, example=1, by="activation").found)


@one_worker("gpt2")
def test_a_place_whose_tokens_are_flat_in_the_graph_has_them_by_example() -> None:
    module = explained("gpt2", torch.float64)
    found = lxt_fx.latent(module, {"input_ids": torch.tensor([[3, 7, 9], [5, 6, 2]])}, 3, "mlp.0.neurons")
    assert found.axes["mlp.0.neurons"] == ("batch", "tokens", "neurons")
    assert found.relevance["mlp.0.neurons"].shape == (2, 3, 128)


@one_worker("llama")
def test_top_units_and_heads_and_frames_are_sums_of_the_tensors() -> None:
    module, tokenizer = explained("llama", torch.float64), word_tokenizer()
    found = lxt_fx.latent(module, "the cat sat", 3, processor=tokenizer)
    neurons = torch.stack([found.relevance[f"mlp.{layer}.neurons"][0].sum(0) for layer in range(2)])
    best = int(neurons.argmax())
    (first, *_) = found.top(3).found
    assert (first.place, first.unit) == (f"mlp.{best // 48}.neurons", best % 48)
    assert first.relevance == pytest.approx(float(neurons.flatten()[best]))
    at = int(found.relevance[first.place][0, :, first.unit].abs().argmax())
    assert first.position == at and first.token == found.explanations[0].tokens[at]
    assert first.activation == pytest.approx(float(found.activation[first.place][0, at, first.unit]))
    assert found.top(1, by="absolute").found[0].relevance == pytest.approx(float(neurons.flatten()[neurons.abs().argmax()]))
    late = torch.stack([found.relevance[f"mlp.{layer}.neurons"][0, 1:].sum(0) for layer in range(2)])
    (first, *_) = found.top(1, positions=slice(1, None)).found
    assert first.relevance == pytest.approx(float(late.max())) and first.position > 0
    assert found.top(1, positions=[0]).found[0].position == 0
    heads = torch.stack([found.relevance[f"attention.{layer}.heads"][0].sum((1, 2)) for layer in range(2)])
    close(found.heads(), heads)
    frame = found.to_dataframe("mlp.*.neurons")
    assert len(frame) == 96 and frame["relevance"].sum() == pytest.approx(float(neurons.sum()))
    by_value = found.to_dataframe("mlp.1.neurons", "value")
    line = by_value[(by_value["unit"] == 5) & (by_value["position"] == 2)].iloc[0]
    assert line["relevance"] == pytest.approx(float(found.relevance["mlp.1.neurons"][0, 2, 5]))
    assert line["activation"] == pytest.approx(float(found.activation["mlp.1.neurons"][0, 2, 5]))
    by_token = found.to_dataframe("residual.1", "token")
    assert list(by_token["token"]) == list(found.explanations[0].tokens)
    close(torch.tensor(by_token["relevance"].tolist(), dtype=torch.float64), found.relevance["residual.1"][0].sum(-1))


@one_worker("llama")
def test_a_latent_result_prints_within_80_columns() -> None:
    found = lxt_fx.latent(explained("llama"), "the cat sat", 3, processor=word_tokenizer())
    for shown in (plain(found, 80), plain(found.top(3), 80)):
        assert max(map(len, shown.splitlines())) <= 80
    shown = plain(found, 80)
    assert "logit of" in shown and "mlp.neurons" in shown and f"{found.total('residual.1'):+.3g}" in shown
    two = lxt_fx.latent(explained("llama"), "the cat", [3, 4], processor=word_tokenizer())
    assert "the first of 2: 1 examples, 2 targets" in plain(two, 80)


@one_worker("llama")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"places": "mlp.7.neurons"}, "the nearest are mlp.1.neurons, mlp.0.neurons"),
        ({"places": ()}, "no place is asked for"),
        ({"places": 3}, "a place is a standard name, a module path or a %node"),
        ({"target": 64}, "64"),
        ({"inputs": {"inputs_embeds": torch.full((1, 3, 32), torch.nan)}}, "NaN|nan|not finite"),
    ],
)
def test_bad_input_is_refused_with_a_reason(change: dict[str, Any], said: str) -> None:
    given = {"inputs": {"input_ids": torch.tensor([[3, 7]])}, "target": 3, "places": "mlp.*.neurons"} | change
    with pytest.raises(lxt_fx.LxtFxError, match=said):
        lxt_fx.latent(explained("llama"), given["inputs"], given["target"], given["places"])


@one_worker("llama")
def test_a_module_for_some_positions_is_refused_and_a_bare_model_is_transformed_whole() -> None:
    with pytest.raises(lxt_fx.InputError, match="without positions"):
        lxt_fx.latent(explained("llama", positions="last"), {"input_ids": torch.tensor([[3, 7]])}, 3)


@one_worker("llama")
def test_names_that_were_not_asked_for_are_refused_with_the_nearest() -> None:
    found = lxt_fx.latent(explained("llama"), {"input_ids": torch.tensor([[3, 7]])}, 3, "mlp.*.neurons")
    with pytest.raises(lxt_fx.UnknownNameError, match="the nearest are mlp.0.neurons"):
        found["mlp.0.neuron"]
    with pytest.raises(lxt_fx.UnknownNameError, match="no place was asked for that fits 'attention"):
        found.heads()
    with pytest.raises(lxt_fx.InputError, match="there is no target 1"):
        found.top(target=1)
    with pytest.raises(lxt_fx.InputError, match="has no position 2; it has 2"):
        found.top(positions=2)
    with pytest.raises(lxt_fx.InputError, match="no position of mlp.0.neurons is named"):
        found.top(positions=slice(5, None))
    with pytest.raises(lxt_fx.InputError, match="by must be"):
        found.top(by="size")


@one_worker("llama")
def test_nothing_of_the_module_changes() -> None:
    module = explained("llama")
    before = module.code, module.graph.python_code("self").src, torch.is_grad_enabled()
    lxt_fx.latent(module, {"input_ids": torch.tensor([[3, 7]])}, 3)
    assert (module.code, module.graph.python_code("self").src, torch.is_grad_enabled()) == before
    assert all(parameter.grad is None for parameter in module.parameters())
