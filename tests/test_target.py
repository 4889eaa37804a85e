"""What is explained: which number of the output a target means, how the sentence says it, and which targets are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from rounding import assert_same
from tiny_text import bert, byte_tokenizer, llama, word_tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from lxt_fx.attribution.embeddings import embed
from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target import Target
from lxt_fx.attribution.target_names import TokenNames
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.transform import transform
from lxt_fx.tasks.explain import explain

TEXT = "The capital of France is"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def explained(tokenizer: PreTrainedTokenizerFast) -> Explained:
    return transform(llama(len(tokenizer)))


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def classifier(words: PreTrainedTokenizerFast) -> Explained:
    return transform(bert("classifier", len(words)))


def test_default_is_the_likeliest_next_token_and_the_sentence_says_so(explained: Explained, tokenizer: Any) -> None:
    logits = explained(inputs_embeds=embed(explained, tokenizer(TEXT, return_tensors="pt")["input_ids"])).logits[0, -1]
    token = readable_tokens(tokenizer, [int(logits.argmax())])[0]
    explanation = explain(explained, tokenizer, TEXT)
    assert explanation.explained == f"logit of '{token}' (rank 1) at position 4, after ' is'"


def test_the_rank_counts_the_larger_logits(explained: Explained, tokenizer: Any) -> None:
    logits = explained(inputs_embeds=embed(explained, tokenizer(TEXT, return_tensors="pt")["input_ids"])).logits[0, -1]
    fifth = int(logits.topk(5).indices[4])
    assert "(rank 5)" in explain(explained, tokenizer, TEXT, fifth).explained


def test_contrast_explains_the_difference_of_two_logits(explained: Explained, tokenizer: Any) -> None:
    paris, london = (explain(explained, tokenizer, TEXT, name) for name in (" Paris", " London"))
    contrast = explain(explained, tokenizer, TEXT, (" Paris", " London"))
    assert contrast.value == pytest.approx(paris.value - london.value, abs=1e-6)
    torch.testing.assert_close(contrast.attribution, paris.attribution - london.attribution, rtol=1e-4, atol=1e-7)
    assert "logit of ' Paris'" in contrast.explained and "minus logit of ' London'" in contrast.explained


def test_an_id_and_its_string_mean_the_same_token(explained: Explained, tokenizer: Any) -> None:
    index = tokenizer.convert_tokens_to_ids("ĠParis")
    by_id, by_name = (explain(explained, tokenizer, TEXT, target) for target in (index, " Paris"))
    assert by_id.explained == by_name.explained
    assert torch.equal(by_id.relevance, by_name.relevance)


def test_a_bare_word_means_the_likelier_of_its_two_spellings(explained: Explained, tokenizer: Any) -> None:
    spaced, bare = (tokenizer.convert_tokens_to_ids(piece) for piece in ("ĠParis", "Paris"))
    logits = explained(inputs_embeds=embed(explained, tokenizer(TEXT, return_tensors="pt")["input_ids"])).logits[0, -1]
    likelier = "' Paris'" if logits[spaced] > logits[bare] else "'Paris'"
    assert likelier in explain(explained, tokenizer, TEXT, "Paris").explained
    assert "'Paris'" in explain(explained, tokenizer, TEXT, bare).explained


def test_both_sides_of_a_contrast_are_spelled_the_same_way(tokenizer: Any) -> None:
    row = torch.zeros(len(tokenizer))
    row[tokenizer.convert_tokens_to_ids("Paris")] = 1.0
    row[tokenizer.convert_tokens_to_ids("Ġof")] = 5.0
    spelled = TokenNames(tokenizer, "explain").find(("of", "Paris"), row)
    assert tokenizer.convert_ids_to_tokens(spelled) == ["Ġof", "ĠParis"]


def test_a_word_that_only_one_spelling_has_as_a_token_is_found(explained: Explained, tokenizer: Any) -> None:
    assert "'Ġ" not in explain(explained, tokenizer, TEXT, "capital").explained
    assert "logit of ' capital'" in explain(explained, tokenizer, TEXT, "capital").explained


def test_a_word_outside_the_vocabulary_is_refused(words: Any) -> None:
    with pytest.raises(InputError, match="it is read as"):
        explain(bert("masked", len(words)), words, "the [MASK]", "漢")


def test_target_at_a_position_explains_there(explained: Explained, tokenizer: Any) -> None:
    explanation = explain(explained, tokenizer, TEXT, Target.at(1, " of"))
    assert explanation.explained.endswith("at position 1, after ' capital'")
    assert explanation.explained.startswith("logit of ' of'")
    # a causal model reads nothing to the right of position 1
    assert torch.equal(explanation.relevance[2:], torch.zeros(3))
    from_the_end = explain(explained, tokenizer, TEXT, Target.at(-4, " of"))
    assert_same(explanation.relevance, from_the_end.relevance)
    assert explanation.explained == from_the_end.explained


@pytest.mark.parametrize("position", [5, -6])
def test_a_position_outside_the_text_is_refused(explained: Explained, tokenizer: Any, position: int) -> None:
    with pytest.raises(InputError, match="not in the text, which has 5 tokens"):
        explain(explained, tokenizer, TEXT, Target.at(position))


def test_a_function_of_the_output_is_explained(explained: Explained, tokenizer: Any) -> None:
    def largest_two(output: Any) -> Tensor:
        top: Tensor = output.logits[0, -1].topk(2).values.sum()
        return top

    explanation = explain(explained, tokenizer, TEXT, largest_two)
    assert explanation.explained == "a function of the output, largest_two"
    by_lambda = explain(explained, tokenizer, TEXT, lambda out: out.logits[0, -1].topk(2).values.sum())
    assert_same(explanation.relevance, by_lambda.relevance)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda out: out.logits[0, -1], "must return one number"),
        (lambda out: 3.0, "must return one number as a tensor, got float"),
        (lambda out: out.logits.detach().sum(), "do not depend on the input by a differentiable path"),
        (lambda out: torch.ones((), requires_grad=True) * 2, "do not depend on the input that relevance is read at"),
    ],
)
def test_a_function_that_gives_nothing_to_explain_is_refused(
    explained: Explained, tokenizer: Any, function: Any, why: str
) -> None:
    with pytest.raises(InputError, match=why):
        explain(explained, tokenizer, TEXT, function)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (10_000, "explain: there is no token id 10000"),
        (-1, "there is no token id -1"),
        (("a", "b", "c"), "must be an index.*several targets are a list"),
    ],
)
def test_a_target_that_does_not_exist_is_refused(explained: Explained, tokenizer: Any, target: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        explain(explained, tokenizer, TEXT, target)


def test_a_classifier_is_explained_by_label_and_by_index(classifier: Explained, words: Any) -> None:
    labels = ("bad", "fair", "good")
    named, numbered = (explain(classifier, words, "play playing", target, labels=labels) for target in ("good", 2))
    assert named.explained.startswith("logit of 'good' (class 2, rank ")
    assert_same(named.relevance, numbered.relevance)
    assert "rank 1)" in explain(classifier, words, "play playing", labels=labels).explained


def test_the_classes_of_a_plain_model_are_named_by_its_config(words: Any) -> None:
    model = bert("classifier", len(words))
    assert explain(model, words, "play", "good").explained.startswith("logit of 'good' (class 2")
    with pytest.raises(InputError, match="no class 'great'; its classes are 'bad', 'fair', 'good'"):
        explain(model, words, "play", "great")


def test_classes_without_names_are_numbered(classifier: Explained, words: Any) -> None:
    assert explain(classifier, words, "play", 1, labels=()).explained.startswith("logit of class 1 (rank ")
    with pytest.raises(InputError, match="its classes are none; give an index"):
        explain(classifier, words, "play", "good", labels=())


def test_a_position_is_refused_where_the_output_has_none(classifier: Explained, words: Any) -> None:
    with pytest.raises(InputError, match=r"names a position \(1\), but the logits of Bert.* have none; leave"):
        explain(classifier, words, "play", Target.at(1))


def test_a_tagger_is_explained_at_the_last_token_that_is_not_special(words: Any) -> None:
    explanation = explain(bert("tagger", len(words)), words, "London and Paris")
    assert explanation.tokens == ("[CLS]", " london", " and", " paris", " [SEP]")
    assert explanation.explained.endswith("at position 3, for ' paris'")


def test_a_masked_model_is_explained_at_the_mask(words: Any) -> None:
    explanation = explain(bert("masked", len(words)), words, "The capital of [MASK] is London", "paris")
    assert explanation.explained.startswith("logit of 'paris'")
    assert explanation.explained.endswith("at position 4, for ' [MASK]'")


def test_a_masked_model_without_a_mask_is_refused(words: Any) -> None:
    with pytest.raises(InputError, match=r"no mask token \(\[MASK\]\)"):
        explain(bert("masked", len(words)), words, "The capital is London")


def test_a_model_without_logits_asks_for_a_function(words: Any) -> None:
    model = bert("bare", len(words))
    with pytest.raises(InputError, match=r'target=lambda out: out\["last_hidden_state"\]'):
        explain(model, words, "play")
    assert explain(model, words, "play", lambda out: out.last_hidden_state[0, 0].norm()).relevance.shape == (3,)
