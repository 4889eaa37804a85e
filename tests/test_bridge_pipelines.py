"""Pipelines of transformers with explanations beside their answers; the interfaces of transformers-interpret and of LXT's
heatmap (neither is installed here: they are called as their pages call them)."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_text
import torch
import transformers

import lxt_fx
from lxt_fx.bridges.lxt import explanation_of_words, pdf_heatmap
from lxt_fx.bridges.pipelines import Explainer, with_relevance


def test_a_classifying_pipeline_explains_its_label() -> None:
    tokenizer = tiny_text.word_tokenizer()
    model = tiny_text.bert("classifier", len(tokenizer))
    pipeline = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer)
    classify = with_relevance(pipeline)
    answers = classify(["Paris and Rome", "London play"])
    alone = pipeline(["Paris and Rome", "London play"])
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in alone]
    for text, answer in zip(["Paris and Rome", "London play"], answers, strict=True):
        expected = lxt_fx.explain(model, tokenizer, text, answer["label"])
        torch.testing.assert_close(answer["explanation"].relevance, expected.relevance)
    (single,) = classify("Paris and Rome")
    torch.testing.assert_close(single["explanation"].relevance, answers[0]["explanation"].relevance)


def test_a_writing_pipeline_explains_every_token_that_it_wrote() -> None:
    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    (answer,) = with_relevance(pipeline)("The capital of", max_new_tokens=2, do_sample=False)
    (plain,) = pipeline("The capital of", max_new_tokens=2, do_sample=False)
    assert answer["generated_text"] == plain["generated_text"]
    found, prompt = answer["explanation"], tokenizer("The capital of")["input_ids"]
    ids = answer["generated_token_ids"][len(prompt) :]  # halves of characters, whose text would be tokenised in another way
    assert tokenizer(tokenizer.decode(ids))["input_ids"] != ids
    expected = lxt_fx.answer_relevance(model, tokenizer, prompt, ids)
    assert len(found) == 2
    torch.testing.assert_close(found.relevance, expected.relevance)
    (written,) = with_relevance(pipeline)("The capital of", max_new_tokens=2, do_sample=False, return_full_text=False)
    assert written["generated_text"] == plain["generated_text"].removeprefix("The capital of")
    for chat in ([{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Hi"}] * 3):
        with pytest.raises(lxt_fx.InputError, match="answer_relevance explains a chat"):
            with_relevance(pipeline)(chat)
    with pytest.raises(lxt_fx.InputError, match="give a pipeline of transformers, got LlamaForCausalLM"):
        with_relevance(model)


def test_what_is_written_for_several_texts_at_once_is_that_of_each_alone() -> None:
    """Such a pipeline pads prompts on the left and answers on the right, to one length."""
    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    write = with_relevance(transformers.pipeline("text-generation", model=model, tokenizer=tokenizer))
    options = {"max_new_tokens": 3, "do_sample": False}
    texts = ["hello", "hello you there"]
    first = write(texts[0], **options)[0]["generated_token_ids"][-3]
    for ends in (model.generation_config.eos_token_id, first):  # with the second, one answer is shorter
        model.generation_config.eos_token_id = ends
        alone = [write(text, **options)[0] for text in texts]
        together = [answers[0] for answers in write(texts, batch_size=2, **options)]
        for one, other in zip(alone, together, strict=True):
            assert one["generated_token_ids"] == other["generated_token_ids"]
            assert one["generated_text"] == other["generated_text"]
            assert one["explanation"].tokens == other["explanation"].tokens
            torch.testing.assert_close(one["explanation"].relevance, other["explanation"].relevance)
    assert len(alone[0]["explanation"].numbers) == 1 < len(alone[1]["explanation"].numbers)


def test_the_example_of_transformers_interpret_differs_in_one_line(tmp_path: Path) -> None:
    tokenizer = tiny_text.word_tokenizer()
    model = tiny_text.bert("classifier", len(tokenizer))
    # cls_explainer = SequenceClassificationExplainer(model, tokenizer)
    cls_explainer = Explainer(model, tokenizer)
    with pytest.raises(lxt_fx.InputError, match="nothing was explained yet"):
        cls_explainer.visualize(tmp_path / "viz.html")
    word_attributions = cls_explainer("Paris and Rome")
    expected = lxt_fx.explain(model, tokenizer, "Paris and Rome")
    assert [word for word, _ in word_attributions] == list(expected.tokens)
    assert [value for _, value in word_attributions] == expected.relevance.tolist()
    assert cls_explainer.predicted_class_name == expected.numbers[0].label
    cls_explainer.visualize(tmp_path / "viz.html")
    assert "paris" in (tmp_path / "viz.html").read_text().lower()
    by_name = cls_explainer("Paris and Rome", class_name="bad")
    assert by_name == cls_explainer("Paris and Rome", index=0) and cls_explainer.predicted_class_name == "bad"


def test_words_and_numbers_of_ones_own_are_drawn(tmp_path: Path) -> None:
    words, relevance = ["The", "▁capital", "<b>"], torch.tensor([2.0, -1.0, 0.5], dtype=torch.bfloat16)
    pdf_heatmap(words, relevance / relevance.abs().max(), path=tmp_path / "heatmap.pdf")
    assert (tmp_path / "heatmap.pdf").read_bytes().startswith(b"%PDF")
    found = explanation_of_words(words, relevance)
    assert found.value == 1.5 and list(found[1:].tokens) == words[1:] and "<b>" not in found._repr_html_()
    for wrong in (torch.zeros(2), torch.zeros(3, 1), [1.0, float("nan"), 0.0]):
        with pytest.raises(lxt_fx.InputError, match="explanation_of_words: "):
            explanation_of_words(words, wrong)
