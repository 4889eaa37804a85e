"""Inseq's own example with one line changed, its numbers against ours, and its result made of ours."""

from __future__ import annotations

import peers
import pytest
import tiny_text
import torch
from golden_cases import relative
from transformers import BartConfig, BartForConditionalGeneration

import lxt_fx

pytestmark = [peers.needs("inseq"), pytest.mark.filterwarnings("ignore")]

PROMPT, ANSWER = "The capital of France is", " Paris play"


@pytest.mark.parametrize("rules", ["attnlrp", pytest.param("cp_lrp", marks=pytest.mark.slow("another table"))])
def test_inseqs_example_differs_in_one_line_and_has_the_numbers_of_answer_relevance(
    rules: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import inseq

    import lxt_fx.bridges.inseq

    tokenizer = tiny_text.byte_tokenizer()
    own = tiny_text.llama(len(tokenizer))
    before = {name: parameter.clone() for name, parameter in own.named_parameters()}
    # inseq's README: model = inseq.load_model("gpt2", "integrated_gradients")
    model = inseq.load_model(own, "lxt_fx", tokenizer=tokenizer, rules=rules)
    out = model.attribute(PROMPT, PROMPT + ANSWER, attributed_fn="logit", step_scores=["probability"], show_progress=False)
    found = out.sequence_attributions[0].target_attributions
    expected = lxt_fx.answer_relevance(own, tokenizer, PROMPT, ANSWER, rules=rules)
    assert found.shape == (7, 2)
    known = ~found.isnan()
    assert known.sum() == 11 and relative(found[known], expected.relevance.T[known]) < 1e-5
    assert model.model is own and all(torch.equal(p, before[name]) for name, p in own.named_parameters())
    out.show()
    shown = capsys.readouterr().out
    assert "Saliency Heatmap" in shown and "France" in shown and f"{float(found[3, 0]):.2f}"[:4] in shown


def test_a_batch_and_an_encoder_decoder() -> None:
    import inseq

    import lxt_fx.bridges.inseq

    tokenizer = tiny_text.byte_tokenizer()
    tokenizer.padding_side = "left"
    model = inseq.load_model(tiny_text.llama(len(tokenizer)), "lxt_fx", tokenizer=tokenizer)
    texts = [PROMPT, "Paris"]
    full = [text + ANSWER for text in texts]
    together = model.attribute(texts, full, attributed_fn="logit", show_progress=False)
    alone = [model.attribute(a, b, attributed_fn="logit", show_progress=False)[0] for a, b in zip(texts, full, strict=True)]
    for one, other in zip(together, alone, strict=True):
        known = ~other.target_attributions.isnan()
        assert relative(one.target_attributions[known], other.target_attributions[known]) < 1e-4
    torch.manual_seed(0)
    sizes = {f"{side}_{what}": 2 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    sizes |= {"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "d_model": 16, "max_position_embeddings": 32}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = BartConfig(vocab_size=len(tokenizer), **sizes, **ids, forced_eos_token_id=None)
    bart = BartForConditionalGeneration(config).eval()
    model = inseq.load_model(bart, "lxt_fx", tokenizer=tokenizer)
    out = model.attribute("The capital", "Paris", attributed_fn="logit", attribute_target=True, show_progress=False)
    source = out[0].source_attributions
    explained = lxt_fx.transform(bart)
    given = tokenizer("The capital", return_tensors="pt")
    target = [token.id for token in out[0].target]
    output, leaves = explained.with_leaves(
        input_ids=given["input_ids"], attention_mask=given["attention_mask"], decoder_input_ids=torch.tensor([target[:1]])
    )
    output.logits[0, -1, target[1]].backward()
    leaf = leaves["inputs_embeds"]
    assert relative(source[: leaf.shape[1], 0], (leaf * leaf.grad).sum(-1)[0]) < 1e-4


@pytest.mark.parametrize("number", ["probability", "contrast_logits", "contrast_prob_diff"])
def test_under_the_gradient_every_number_of_inseq_is_that_of_its_input_x_gradient(number: str) -> None:
    import inseq

    from lxt_fx.bridges.inseq import LxtFxAttribution

    tokenizer = tiny_text.byte_tokenizer()
    own = tiny_text.llama(len(tokenizer))
    more = {"contrast_targets": PROMPT + " London play"} if number.startswith("contrast") else {}
    found = []
    for model in (
        inseq.load_model(own, LxtFxAttribution.method_name, tokenizer=tokenizer, rules="gradient"),
        inseq.load_model(own, "input_x_gradient", tokenizer=tokenizer),
    ):
        out = model.attribute(PROMPT, PROMPT + ANSWER, attributed_fn=number, show_progress=False, **more)
        found.append(out[0].target_attributions)
        assert "get_embedding_layer" not in vars(model) and model.model is own
    expected = found[1].sum(-1)
    known = ~expected.isnan()
    assert known.any() and relative(found[0][known], expected[known]) < 1e-4


def test_an_answer_as_inseqs_result(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    from inseq import FeatureAttributionOutput

    from lxt_fx.bridges.inseq import feature_attribution_output

    tokenizer = tiny_text.byte_tokenizer()
    own = tiny_text.llama(len(tokenizer))
    answer = lxt_fx.answer_relevance(own, tokenizer, PROMPT, ANSWER)
    out = feature_attribution_output(answer)
    out.show()
    shown = capsys.readouterr().out
    assert " Paris" in shown and "France" in shown
    path = f"{tmp_path}/out.json"
    out.save(path)
    again = FeatureAttributionOutput.load(path)
    known = ~again[0].target_attributions.isnan()
    assert known.sum() == 11 and torch.equal(again[0].target_attributions[known], answer.relevance.T[known])
    with pytest.raises(lxt_fx.InputError, match="give what lxt_fx.answer_relevance returns"):
        feature_attribution_output(lxt_fx.explain(own, tokenizer, PROMPT))


def test_several_answers_are_sequences_of_one_result() -> None:
    from lxt_fx.bridges.inseq import feature_attribution_output

    tokenizer = tiny_text.byte_tokenizer()
    own = tiny_text.llama(len(tokenizer))
    several = lxt_fx.answer_relevance(own, tokenizer, [PROMPT, PROMPT], [ANSWER, " London"])
    out = feature_attribution_output(several)
    assert [len(one.target) - one.attr_pos_start for one in out.sequence_attributions] == [2, 1]
    for one, answer in zip(out.sequence_attributions, several, strict=True):
        alone = feature_attribution_output(answer)[0]
        torch.testing.assert_close(one.target_attributions, alone.target_attributions, equal_nan=True)
    other = lxt_fx.answer_relevance(own, tokenizer, PROMPT, ANSWER, rules="cp_lrp")
    with pytest.raises(lxt_fx.InputError, match="one result is of one model and table, got 2 in 2 explanations"):
        feature_attribution_output([several[0], other])
    with pytest.raises(lxt_fx.InputError, match="got 0 in 0 explanations"):
        feature_attribution_output([])


def test_rules_of_a_call_are_refused_and_not_dropped() -> None:
    import inseq

    import lxt_fx.bridges.inseq

    tokenizer = tiny_text.byte_tokenizer()
    model = inseq.load_model(tiny_text.llama(len(tokenizer)), "lxt_fx", tokenizer=tokenizer)
    with pytest.raises(lxt_fx.InputError, match="rules are given with the method: inseq.load_model"):
        model.attribute(PROMPT, PROMPT + ANSWER, attributed_fn="logit", rules="cp_lrp", show_progress=False)
