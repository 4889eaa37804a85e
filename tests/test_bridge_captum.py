"""Captum's interface over explained modules: captum's own examples with one line changed, and its numbers."""

from __future__ import annotations

import math
from typing import Any

import peers
import pytest
import tiny
import tiny_text
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


def test_llm_attribution_of_captums_own_input() -> None:
    from captum.attr import TextTokenInput

    from lxt_fx.bridges.captum import LLMRelevance

    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    inp = TextTokenInput("The capital of France is", tokenizer, skip_tokens=[tokenizer.encode("The")[0]])
    # captum: llm_attr = LLMGradientAttribution(LayerIntegratedGradients(model, model.model.embed_tokens), tokenizer)
    llm_attr = LLMRelevance(model, tokenizer)
    result = llm_attr.attribute(inp, target=" Paris play")
    own = lxt_fx.answer_relevance(model, tokenizer, "The capital of France is", " Paris play")
    assert result.input_tokens == list(own.tokens[1 : own.prompt]) and len(result.input_tokens) == len(inp.values)
    assert result.output_tokens == [" Paris", " play"]
    assert torch.equal(result.token_attr, own.relevance[:, 1 : own.prompt])
    torch.testing.assert_close(result.seq_attr, own.relevance[:, 1 : own.prompt].sum(0))
    assert set(result.seq_attr_dict) == set(result.input_tokens)
    figure, _ = result.plot_token_attr(show=False)
    assert figure.axes
    with pytest.raises(lxt_fx.InputError, match="give what lxt_fx.answer_relevance returns"):
        from lxt_fx.bridges.captum import llm_attribution_result

        llm_attribution_result(lxt_fx.explain(model, tokenizer, "Paris"))


def test_records_for_visualize_text(monkeypatch: pytest.MonkeyPatch) -> None:
    from captum.attr import visualization

    from lxt_fx.bridges.captum import visualization_record

    tokenizer = tiny_text.word_tokenizer()
    model = tiny_text.bert("classifier", len(tokenizer))
    explanation = lxt_fx.explain(model, tokenizer, "Paris play <", "good")
    record = visualization_record(explanation, true_class="<i>", probability=0.5)
    assert float(record.word_attributions.abs().max()) == 1.0 and record.attr_class == "good"
    assert math.isclose(record.attr_score, float(explanation.relevance.sum()), rel_tol=1e-6)
    shown: list[str] = []
    for name, value in (("HAS_IPYTHON", True), ("HTML", lambda text: text), ("display", shown.append)):
        monkeypatch.setattr(visualization, name, value, raising=False)
    # captum's tutorial: visualization.visualize_text([VisualizationDataRecord(...)])
    page = visualization.visualize_text([record])
    assert "paris" in page.lower() and "&lt;i&gt;" in page and "<i>" not in page
    with pytest.raises(lxt_fx.InputError, match="give the explanation of one number"):
        visualization_record(lxt_fx.explain(model, tokenizer, "Paris", ["good", "bad"]))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a baseline": ({"target": 1, "baselines": 0, "n_steps": 20}, "relevance has no baselines, n_steps; it needs no"),
    "no target": ({}, r"an output \[2, 10\] has several numbers for each example, so it needs a target"),
    "too many": ({"target": [1, 2, 3]}, "3 targets for 2 examples"),
    "too few": ({"target": [1]}, "1 targets for 2 examples"),
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


def test_a_function_around_a_model_is_refused() -> None:
    from lxt_fx.bridges.captum import Relevance

    with pytest.raises(lxt_fx.InputError, match="a function around a model hides its ops"):
        Relevance(lambda x: x).attribute(torch.randn(2, 3), target=0)  # type: ignore[arg-type]


def test_an_input_that_carries_no_relevance_is_named() -> None:
    from lxt_fx.bridges.captum import Relevance

    model, ids = tiny.bert(), torch.tensor([[1, 2, 3]])
    with pytest.raises(lxt_fx.InputError, match="input 'attention_mask' .* no relevance; relevance is read at input_ids"):
        Relevance(model).attribute((ids, torch.ones_like(ids)), target=0)
