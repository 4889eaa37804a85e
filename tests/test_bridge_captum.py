"""Captum's interface over explained modules: captum's own examples with one line changed, and its numbers."""

from __future__ import annotations

from typing import Any

import peers
import pytest
import tiny
import torch
from golden_cases import relative
from torch import Tensor, nn

import lxt_fx

pytestmark = peers.needs("captum")


class ImageClassifier(nn.Module):
    """The net of captum's docstrings, smaller: images [N, 3, 8, 8] to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv1(x)).flatten(1))


def test_captums_example_differs_in_one_line_and_has_the_numbers_of_its_input_x_gradient() -> None:
    from captum.attr import InputXGradient

    from lxt_fx.bridges.captum import Relevance

    net = ImageClassifier().eval()
    input = torch.randn(2, 3, 8, 8, requires_grad=True)
    for rules in ("attnlrp", "epsilon_plus"):
        # captum's docstring of InputXGradient: input_x_gradient = InputXGradient(net)
        input_x_gradient = Relevance(net, rules=rules)
        attribution = input_x_gradient.attribute(input, target=4)
        explained = lxt_fx.transform(net, (input.detach(),), rules=rules)
        expected = InputXGradient(explained).attribute(input, target=4)
        assert attribution.shape == input.shape and attribution.dtype == input.dtype
        assert relative(attribution, expected) < 1e-6
        for target in ([4, 1], torch.tensor([4, 1])):
            each = Relevance(explained).attribute(input, target=target)
            assert relative(each, InputXGradient(explained).attribute(input, target=target)) < 1e-6
    assert relative(attribution, InputXGradient(net).attribute(input, target=4)) > 0.1


def test_layer_attribution_at_a_module_a_path_and_a_place() -> None:
    from captum.attr import LayerGradientXActivation

    from lxt_fx.bridges.captum import LayerRelevance

    net, input = ImageClassifier().eval(), torch.randn(2, 3, 8, 8)
    # captum's docstring: layer_ga = LayerGradientXActivation(net, net.conv1)
    layer_ga = LayerRelevance(net, net.conv1, rules="gradient")
    attribution = layer_ga.attribute(input, target=3)
    expected = LayerGradientXActivation(net, net.conv1).attribute(input, target=3)
    assert attribution.shape == (2, 4, 6, 6) and relative(attribution, expected) < 1e-5
    explained = lxt_fx.transform(net, (input,), rules="gradient")
    assert relative(LayerRelevance(explained, "conv1").attribute(input, target=3), expected) < 1e-5
    with pytest.raises(lxt_fx.InputError, match="an explained module has copies without code; give the path"):
        LayerRelevance(explained, net.conv1)
    gpt2, ids = tiny.gpt2(), torch.tensor([[1, 2, 3]])
    at_place = LayerRelevance(gpt2, "residual.1").attribute(ids, target=(-1, 7))
    with lxt_fx.watch(module := lxt_fx.transform(gpt2), "residual.1") as inside:
        module.with_leaves(ids)[0].logits[0, -1, 7].backward()
    assert relative(at_place, inside["residual.1"].relevance) < 1e-6
    with pytest.raises(lxt_fx.InputError, match="means several places .residual.0, residual.1, residual.2."):
        LayerRelevance(gpt2, "residual.*").attribute(ids, target=(-1, 7))


class Two(nn.Module):
    """Two heads, of which the first output does not depend on the second."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.first(x), self.second(x)


class OfIds(nn.Module):
    """A language model called by ids, as captum's tutorials wrap it: the logits of the last position."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        return self.model(ids).logits[:, -1]


LIKE_GEMMA = pytest.mark.slow("gemma3 without its scale")


@pytest.mark.parametrize("family", ["gpt2", "gemma3", pytest.param("llama", marks=LIKE_GEMMA)])
def test_the_layer_that_looks_tokens_up_is_a_layer_as_any_other(family: str) -> None:
    from captum.attr import LayerGradientXActivation

    from lxt_fx.bridges.captum import LayerRelevance, Relevance

    model, ids = getattr(tiny, family)(), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    wrapped, looked_up = OfIds(model).eval(), model.get_input_embeddings()
    # captum's tutorials: LayerIntegratedGradients(model, model.model.embed_tokens)
    expected = LayerGradientXActivation(wrapped, looked_up).attribute(ids, target=[7, 9])
    found = LayerRelevance(wrapped, looked_up, rules="gradient").attribute(ids, target=[7, 9])
    assert found.shape == expected.shape and relative(found, expected) < 1e-5
    by_token = LayerRelevance(model, looked_up).attribute(ids, target=(-1, 7)).sum(-1)
    assert relative(by_token, Relevance(model).attribute(ids, target=(-1, 7))) < 1e-5
    path = next(name for name, module in model.named_modules() if module is looked_up)
    for form in ("gradient", "explicit"):
        explained = lxt_fx.transform(model, form=form, epsilon=1e-9)
        at_path = LayerRelevance(explained, path).attribute(ids, target=(-1, 7)).sum(-1)
        assert relative(at_path, by_token) < 1e-4


def test_a_list_of_layers_has_a_list_of_relevance_and_the_model_gets_no_gradients() -> None:
    from lxt_fx.bridges.captum import LayerRelevance

    model, ids = tiny.llama(), torch.tensor([[1, 2, 3]])
    layers = [model.model.embed_tokens, model.model.layers[0], "mlp.1.neurons"]
    # captum: LayerIntegratedGradients(model, [layer_1, layer_2])
    found = LayerRelevance(model, layers).attribute(ids, target=(-1, 7))
    assert isinstance(found, list) and [list(each.shape) for each in found] == [[1, 3, 32], [1, 3, 32], [1, 3, 48]]
    for layer, each in zip(layers, found, strict=True):
        assert torch.equal(each, LayerRelevance(model, layer).attribute(ids, target=(-1, 7)))
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(lxt_fx.InputError, match="the target does not depend on second; give a layer before it"):
        LayerRelevance(Two(), "second").attribute(torch.randn(2, 3), target=0)
    with pytest.raises(lxt_fx.InputError, match="layer must be a module, its path or a place, got int"):
        LayerRelevance(model, [3])  # type: ignore[list-item]


def test_what_carries_no_relevance_is_not_among_the_nearest_names() -> None:
    from lxt_fx.bridges.captum import LayerRelevance

    model, ids = tiny.bert(), torch.tensor([[1, 2, 3]])
    path, layer = next(each for each in model.named_modules() if each[0].endswith("position_embeddings"))
    with pytest.raises(lxt_fx.UnknownNameError, match=f"{path!r} selects nothing") as error:
        LayerRelevance(model, layer).attribute(ids, target=0)
    assert str(error.value).count("position_embeddings") == 1


def test_the_explicit_form_starts_at_each_example_with_its_own_number() -> None:
    from lxt_fx.bridges.captum import LayerRelevance, Relevance

    net, input = ImageClassifier().eval(), torch.randn(2, 3, 8, 8)
    fast, slow = (lxt_fx.transform(net, (input,), rules="epsilon_plus", form=form) for form in ("gradient", "explicit"))
    for method in (Relevance, lambda module: LayerRelevance(module, "conv1")):
        found = method(slow).attribute(input, target=[3, 1])
        assert relative(found, method(fast).attribute(input, target=[3, 1])) < 1e-5
        alone = method(slow).attribute(input[1:], target=1)
        assert relative(found[1:], alone) < 1e-5


def test_methods_of_captum_around_a_method_call_ours() -> None:
    from captum.attr import NoiseTunnel

    from lxt_fx.bridges.captum import LayerRelevance, Relevance

    net, input = ImageClassifier().eval(), torch.randn(2, 3, 8, 8)
    for method in (Relevance(net), LayerRelevance(net, "conv1")):
        averaged = NoiseTunnel(method).attribute(input, nt_samples=3, stdevs=0.0, target=[3, 1])
        assert relative(averaged, method.attribute(input, target=[3, 1])) < 1e-6


def test_relevance_inside_that_is_not_finite_is_refused() -> None:
    from lxt_fx.bridges.captum import LayerRelevance

    net, input = ImageClassifier().eval(), torch.randn(2, 3, 8, 8)
    input[0, 0, 0, 0] = torch.nan
    with pytest.raises(lxt_fx.NonFiniteError, match="captum.LayerRelevance: an explained number.*the input itself"):
        LayerRelevance(net, "conv1").attribute(input, target=3)


def test_tokens_embeddings_and_further_inputs_of_a_language_model() -> None:
    from lxt_fx.bridges.captum import Relevance

    model, ids = tiny.gpt2(), torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    explained = lxt_fx.transform(model)
    expected = lxt_fx.relevance_of(
        explained, {"input_ids": ids, "attention_mask": mask}, [lxt_fx.Target.at(-1, 9)]
    )[0]
    embeds = model.get_input_embeddings()(ids).detach()
    for given in (model, explained):
        by_token = Relevance(given).attribute(ids, target=(-1, 9), additional_forward_args=(None, mask))
        by_embedding = Relevance(explained).attribute(embeds, target=(-1, 9), additional_forward_args=(None, mask))
        assert by_token.shape == ids.shape and by_embedding.shape == embeds.shape
        assert relative(by_token, expected) < 1e-5 and relative(by_embedding.sum(-1), expected) < 1e-5
    explicit = lxt_fx.transform(model, form="explicit", epsilon=1e-9)
    for method in (Relevance(explicit),):
        by_equation = method.attribute(ids[1:], target=(-1, 9))
        assert relative(by_equation, Relevance(explained).attribute(ids[1:], target=(-1, 9))) < 1e-3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a baseline": ({"target": 1, "baselines": 0, "n_steps": 20}, "relevance has no baselines, n_steps; it needs no"),
    "no target": ({}, r"an output \[2, 10\] has several numbers for each example, so it needs a target"),
    "too many": ({"target": [1, 2, 3]}, "3 targets for 2 examples"),
    "too few": ({"target": [1]}, "1 targets for 2 examples"),
    "layer inputs": ({"target": 1, "attribute_to_layer_input": True}, "give the module before the layer, or the place"),
    "the delta": ({"target": 1, "return_convergence_delta": True}, "no return_convergence_delta; lxt_fx.audit.model"),
    "by name": ({"target": 1, "mask": 1}, "has no mask; attribute takes inputs, target and additional_forward_args, in wh"),
    "too deep": ({"target": (1, 2)}, r"an output \[2, 10\] takes 1 indices for each example, and the target is \(1, 2\)"),
    "outside": ({"target": 10}, r"target 10 is outside of an output \[2, 10\]"),
    "no index": ({"target": True}, "target True is no index"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_captum_would_take_and_relevance_has_not_is_refused(case: str) -> None:
    from lxt_fx.bridges.captum import Relevance

    options, said = REFUSED[case]
    with pytest.raises(lxt_fx.InputError, match=said):
        Relevance(ImageClassifier().eval()).attribute(torch.randn(2, 3, 8, 8), **options)


def test_options_and_targets_as_captums_code_writes_them() -> None:
    import numpy as np

    from lxt_fx.bridges.captum import Relevance

    net, input = ImageClassifier().eval(), torch.randn(2, 3, 8, 8)
    expected = Relevance(net).attribute(input, target=[4, 1])
    nothing = {"baselines": None, "return_convergence_delta": False, "attribute_to_layer_input": False}
    assert torch.equal(Relevance(net).attribute(input, target=[4, 1], **nothing), expected)
    for target in (np.array([4, 1]), [np.int64(4), torch.tensor(1)], [(4,), (torch.tensor(1),)]):
        assert torch.equal(Relevance(net).attribute(input, target=target), expected)
    with pytest.raises(lxt_fx.InputError, match="target 1.0 is no index"):
        Relevance(net).attribute(input, target=np.array([1.0, 2.0]))


def test_inputs_by_name_are_refused_with_what_to_write() -> None:
    from lxt_fx.bridges.captum import LayerRelevance, Relevance

    model, ids = tiny.bert(), torch.tensor([[1, 2, 3]])
    encoded = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for method in (Relevance(model), LayerRelevance(model, "residual.1")):
        for given, kind in ((encoded, "dict"), ("a text", "str"), ([1, 2], "list"), ((ids, None), "NoneType")):
            with pytest.raises(lxt_fx.InputError, match=f"a tuple of tensors, got {kind}; .*follow by position in additi"):
                method.attribute(given, target=0)  # type: ignore[arg-type]
        with pytest.raises(lxt_fx.InputError, match="additional_forward_args must be a tuple, got dict; .*by position"):
            method.attribute(ids, target=0, additional_forward_args={"attention_mask": encoded["attention_mask"]})


def test_a_function_around_a_model_is_refused() -> None:
    from lxt_fx.bridges.captum import Relevance

    with pytest.raises(lxt_fx.InputError, match="a function around a model hides its ops"):
        Relevance(lambda x: x).attribute(torch.randn(2, 3), target=0)  # type: ignore[arg-type]


def test_an_input_that_carries_no_relevance_is_named() -> None:
    from lxt_fx.bridges.captum import Relevance

    model, ids = tiny.bert(), torch.tensor([[1, 2, 3]])
    with pytest.raises(lxt_fx.InputError, match="input 'attention_mask' .* no relevance; relevance is read at input_ids"):
        Relevance(model).attribute((ids, torch.ones_like(ids)), target=0)
