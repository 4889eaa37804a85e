"""Captum's attribution of written answers, and its records of texts, over our relevance."""

from __future__ import annotations

import math

import peers
import pytest
import tiny_text
import torch

import lxt_fx

pytestmark = peers.needs("captum")


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


def test_llm_attribution_generates_the_answer_and_takes_one_that_repeats_the_prompt() -> None:
    from captum.attr import TextTemplateInput, TextTokenInput

    from lxt_fx.bridges.captum import LLMRelevance

    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    inp = TextTokenInput("The capital", tokenizer)
    generate = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    llm_attr = LLMRelevance(model, tokenizer)
    written = model.generate(inp.to_model_input(), attention_mask=torch.ones_like(inp.to_model_input()), **generate)
    expected = lxt_fx.answer_relevance(model, tokenizer, "The capital", written[0, inp.n_itp_features :])
    for given in (inp, "The capital"):  # captum: llm_attr.attribute(inp, gen_args={...})
        found = llm_attr.attribute(given, gen_args=generate).token_attr
        assert torch.equal(found, expected.relevance[:, : expected.prompt])
    ids = inp.to_model_input()[0]
    again = llm_attr.attribute(inp, target=torch.cat([ids, ids[:1]]))  # to captum a target is the answer alone
    assert again.token_attr.shape == (len(ids) + 1, len(ids))
    template = TextTemplateInput("The {} of {}", ["capital", "France"])
    explained = lxt_fx.transform(model)
    for method, given, options, said in (
        (llm_attr, template, {"target": " Paris"}, "features of TextTemplateInput are none; give inp.to_model_input"),
        (llm_attr, [3, 4], {"target": " Paris"}, "a TextTokenInput or the token ids of one text, got list"),
        (llm_attr, ids.expand(2, -1), {"target": " Paris"}, r"the token ids of one text, got Tensor \[2, "),
        (llm_attr, inp, {"target": " Paris", "gen_args": generate}, "gen_args is for an answer that is generated"),
        (llm_attr, inp, {"target": " Paris", "n_steps": 20}, "relevance has no n_steps; it needs no baseline"),
        (llm_attr, inp, {"target": " Paris", "skip": 20}, "no skip; attribute takes inp, target and gen_args"),
        (llm_attr, inp, {"gen_args": generate | {"num_beams": 2, "num_return_sequences": 2}}, "must ask for one answer"),
        (LLMRelevance(explained, tokenizer), inp, {}, "Explained does not generate, so give target="),
    ):
        with pytest.raises(lxt_fx.InputError, match=said):
            method.attribute(given, **options)


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


def test_of_several_explanations_each_is_given_alone() -> None:
    from lxt_fx.bridges.captum import llm_attribution_result, visualization_record

    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    several = lxt_fx.answer_relevance(model, tokenizer, ["The capital", "France"], [" Paris", " London"])
    assert [llm_attribution_result(one).output_tokens for one in several] == [[" Paris"], [" London"]]
    for function in (llm_attribution_result, visualization_record):
        with pytest.raises(lxt_fx.InputError, match="got Explanations; of several, call it for each: .*for one in expl"):
            function(several)
