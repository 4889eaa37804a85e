"""`conditional`: relevance through chosen units only, against sums that must hold and against a backward by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from shared_captures import each_model, explained, one_worker, shared_model
from test_latent import close, last
from test_watch import example
from tiny_text import word_tokenizer
from torch import Tensor

import lxt_fx
from lxt_fx import Only

IDS = {"input_ids": torch.tensor([[3, 7, 9, 4], [5, 6, 2, 8]])}

ROUNDING = {"llama": 1e-6, "vit": 1e-9}
"""Llama casts its norms to float32, also in float64."""


def values(found: Any) -> Tensor:
    """The relevance [examples, ..., places] of all explanations of a call."""
    several = found if isinstance(found, lxt_fx.Explanations) else [found]
    return torch.stack([each.parts[0].values for each in several])


def whole(module: Any, inputs: dict[str, Tensor]) -> Tensor:
    return values(lxt_fx.explain(module, None, inputs, last))


@pytest.mark.parametrize("name", each_model(["llama", "gpt2", "bert", "vit"]))
@pytest.mark.parametrize("options", [{}, {"rules": "cp_lrp"}, {"form": "explicit"}], ids=str)
def test_all_units_of_a_cut_give_the_relevance_of_the_whole_answer(name: str, options: dict[str, Any]) -> None:
    module, inputs = explained(name, torch.float64, **options), example(name)
    for layer in range(1, 3):
        found = lxt_fx.conditional(module, inputs, {f"residual.{layer}": None}, last)
        close(values(found), whole(module, inputs))


@pytest.mark.parametrize("name", each_model(["llama", "vit"]))
def test_the_units_of_a_place_add_up_one_by_one_and_together(name: str) -> None:
    module, inputs = explained(name, torch.float64), example(name)
    one_by_one = lxt_fx.conditional(module, inputs, [{"mlp.1.neurons": unit} for unit in range(48)], last)
    together = values(lxt_fx.conditional(module, inputs, {"mlp.1.neurons": range(48)}, last))
    close(values(one_by_one).sum(1), together, ROUNDING[name])
    pair = lxt_fx.conditional(module, inputs, {"mlp.1.neurons": [3, 40]}, last)
    close(values(pair), values(one_by_one)[:, 3] + values(one_by_one)[:, 40], ROUNDING[name])
    latent = lxt_fx.latent(module, inputs, last, "mlp.1.neurons")
    for example_at, each in enumerate(one_by_one):
        amounts = torch.tensor([number.value for number in each.numbers], dtype=torch.float64)
        close(amounts, latent["mlp.1.neurons"].by_unit()[0, example_at], 1e-6)  # the amounts are summed in float32


@one_worker("llama")
@pytest.mark.parametrize(("place", "path"), [("mlp.0.output", "mlp"), ("attention.1.output", "self_attn")])
def test_all_units_of_a_module_give_what_runs_through_it_and_not_past_it(place: str, path: str) -> None:
    """Under the plain gradient: the whole, less what is left when the model itself detaches what the module gives."""
    module, model = explained("llama", torch.float64, rules="gradient"), shared_model("llama", torch.float64)
    embedded = example("llama")["inputs_embeds"]
    layer = int(place.split(".")[1])

    def without() -> Tensor:
        leaf = embedded.clone().requires_grad_(True)
        part = getattr(model.model.layers[layer], path)
        cut = part.register_forward_hook(
            lambda _, __, out: (out[0].detach(), *out[1:]) if isinstance(out, tuple) else out.detach()
        )
        try:
            (gradient,) = torch.autograd.grad(last(model(inputs_embeds=leaf)).sum(), leaf)
        finally:
            cut.remove()
        return (leaf * gradient).sum(-1).detach()

    inputs = {"inputs_embeds": embedded}
    found = values(lxt_fx.conditional(module, inputs, {place: None}, last))
    close(found, whole(module, inputs) - without(), 1e-4)  # a small difference of large numbers
    assert float((found - whole(module, inputs)).abs().max()) > 1e-3 * float(found.abs().max())


@one_worker("llama")
def test_one_place_after_the_other_is_a_chain_and_its_parts_add_up() -> None:
    module, inputs = explained("llama", torch.float64), example("llama")
    neuron = values(lxt_fx.conditional(module, inputs, {"mlp.1.neurons": 7}, last))
    chained = lxt_fx.conditional(module, inputs, {"residual.1": None, "mlp.1.neurons": 7}, last)
    close(values(chained), neuron, 1e-6)  # residual.1 is a cut, so all that the neuron passes on goes through it
    by_unit = [{"mlp.1.neurons": 7, "residual.1": unit} for unit in range(32)]
    close(values(lxt_fx.conditional(module, inputs, by_unit, last)).sum(1), neuron, 1e-6)
    through_both = lxt_fx.conditional(module, inputs, {"mlp.1.neurons": 7, "mlp.0.output": None}, last)
    past = lxt_fx.conditional(module, inputs, {"mlp.1.neurons": 7, "attention.0.output": None}, last)
    assert float(values(through_both).abs().max()) > 0 and not torch.allclose(values(through_both), values(past))


@one_worker("llama")
def test_conditions_of_different_lengths_and_places_in_one_call_are_those_of_calls_of_their_own() -> None:
    module, inputs = explained("llama", torch.float64), example("llama")
    conditions: list[Any] = [
        {"mlp.1.neurons": [1, 2]},
        {"attention.0.heads": 3},
        {"mlp.1.neurons": 7, "attention.1.heads": [0, 1], "mlp.0.neurons": 5},
        {"residual.1": 9, "mlp.1.output": None},
        {"%mul_19": 4},
    ]
    for chunk in (None, 2):
        together = values(lxt_fx.conditional(module, inputs, conditions, last, chunk=chunk))
        for at, condition in enumerate(conditions):
            close(together[:, at], values(lxt_fx.conditional(module, inputs, condition, last)), 1e-6)
    explicit = explained("llama", torch.float64, form="explicit", epsilon=1e-12)
    names = [{"mlp.1.neurons" if key.startswith("%") else key: units for key, units in each.items()} for each in conditions]
    close(
        values(lxt_fx.conditional(explicit, inputs, names[:4], last)),
        values(lxt_fx.conditional(module, inputs, names[:4], last)),
        1e-6,  # Llama casts its norms to float32, also in float64
    )
    through = lxt_fx.conditional(explicit, inputs, {"mlp.1.neurons": [1, 2]}, last)
    amounts = torch.tensor([each.numbers[0].value for each in through], dtype=torch.float64)
    reached = lxt_fx.latent(explicit, inputs, last, "mlp.1.neurons")["mlp.1.neurons"].by_unit()
    close(amounts, reached[0, :, 1:3].sum(1), 1e-6)


@one_worker("gpt2")
def test_units_at_some_positions_only() -> None:
    module = explained("gpt2", torch.float64)
    text = {"input_ids": torch.tensor([[3, 7, 9, 4]])}
    at_each = [{"mlp.1.neurons": Only(5, positions=at)} for at in range(4)]
    parts = values(lxt_fx.conditional(module, text, at_each, 3))
    close(parts.sum(1), values(lxt_fx.conditional(module, text, {"mlp.1.neurons": 5}, 3)))
    assert not parts[0, 0, 1:].any()  # a decoder: position 0 reads the first token only


@one_worker("llama")
def test_the_explained_numbers_say_what_the_relevance_runs_through() -> None:
    module, tokenizer = explained("llama", torch.float64), word_tokenizer()
    found = lxt_fx.conditional(module, "the cat", {"mlp.1.neurons": [3, 4]}, 3, processor=tokenizer)
    assert isinstance(found, lxt_fx.Explanation)
    assert found.numbers[0].said.startswith("logit of") and found.numbers[0].said.endswith("through mlp.1.neurons 3, 4")
    assert found.numbers[0].label == "mlp.1:3, 4"
    reached = lxt_fx.latent(module, "the cat", 3, "mlp.1.neurons", processor=tokenizer)
    assert found.numbers[0].value == pytest.approx(float(reached["mlp.1.neurons"].by_unit()[0, 0, [3, 4]].sum()))
    batch = lxt_fx.conditional(module, ["the cat", "a cat sat"], {"mlp.1.neurons": [3, 4]}, 3, processor=tokenizer)
    close(batch[0].parts[0].values, found.parts[0].values, 1e-6)


@one_worker("llama")
@pytest.mark.parametrize(
    ("conditions", "said"),
    [
        ({"mlp.1.neurons": 48}, "has no unit 48; it has 48"),
        ({"mlp.1.neurons": [3, 3]}, "named twice"),
        ({"mlp.1.neurons": [47, -1]}, "named twice"),
        ({"mlp.1.neurons": []}, "no unit of mlp.1.neurons is named"),
        ({"mlp.1.neurons": 1.5}, "is an index"),
        ({"mlp.1.neurons": True}, "is an index"),
        ({"mlp.1.neurons": Only(1, positions=4)}, "has no position 4"),
        ({"mlp.9.neurons": 1}, "the nearest are"),
        ({"mlp.*.neurons": 1}, "stands for several places"),
        ({"attention.0.heads": 1, "mlp.0.neurons": 1, "logits": 1}, None),
        ({"attention.0.queries": 1, "attention.0.keys": 1}, "is not computed from"),
        ([], "a condition is a dict"),
        ([{}], "a condition is a dict"),
        ("mlp.1.neurons", "a condition is a dict"),
    ],
)
def test_bad_conditions_are_refused_with_a_reason(conditions: Any, said: str | None) -> None:
    text = {"input_ids": torch.tensor([[3, 7, 9, 4]])}
    if said is None:
        assert lxt_fx.conditional(explained("llama"), text, conditions, 1) is not None
        return
    with pytest.raises(lxt_fx.LxtFxError, match=said):
        lxt_fx.conditional(explained("llama"), text, conditions, 1)


@one_worker("llama")
def test_several_targets_of_one_example_are_refused() -> None:
    with pytest.raises(lxt_fx.InputError, match="several targets"):
        lxt_fx.conditional(explained("llama"), {"input_ids": torch.tensor([[3, 7]])}, {"mlp.1.neurons": 1}, [1, 2])
