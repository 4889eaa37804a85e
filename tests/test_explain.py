"""From a model and a text or image to its explanation: the relevance itself, what is refused, what stays untouched."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
import torch
from rounding import assert_same
from tiny_text import bert, byte_tokenizer, llama, vit, word_tokenizer
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from lxt_fx.attribution.embeddings import embed
from lxt_fx.base.errors import InputError, LxtFxError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.pipeline import transform
from lxt_fx.tasks.explain import explain, explain_image

TEXT = "The capital of France is"
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-7}
"""One float32 run against another of the same graph, in another order of sums."""


@pytest.fixture(autouse=True)
def no_warning_is_shown() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return llama(len(tokenizer))


@pytest.fixture(scope="module")
def explained(model: LlamaForCausalLM) -> Explained:
    return transform(model)


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer()


@pytest.fixture(scope="module")
def classifier(words: PreTrainedTokenizerFast) -> Explained:
    return transform(bert("classifier", len(words)))


def test_relevance_is_leaf_times_gradient_summed_over_hidden(explained: Explained, tokenizer: Any) -> None:
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    leaf = embed(explained, ids)
    logits = explained(inputs_embeds=leaf).logits[0, -1]
    logits.max().backward()
    explanation = explain(explained, tokenizer, TEXT)
    assert leaf.grad is not None
    torch.testing.assert_close(explanation.attribution, (leaf * leaf.grad)[0].detach(), **CLOSE)
    torch.testing.assert_close(explanation.relevance, (leaf * leaf.grad)[0].sum(-1).detach(), **CLOSE)
    assert explanation.value == pytest.approx(float(logits.max().detach()), rel=1e-6)
    assert explanation.input_ids == tuple(ids[0].tolist())
    assert (explanation.table_name, explanation.model_class) == ("attnlrp", "LlamaForCausalLM")
    assert explanation.seconds > 0


def test_a_text_of_one_token_is_explained(explained: Explained, tokenizer: Any) -> None:
    assert explain(explained, tokenizer, "The").explained.endswith("at position 0, after 'The'")


def test_a_model_in_training_mode_is_refused_and_stays_in_it(tokenizer: Any) -> None:
    model = llama(len(tokenizer)).train()
    model.config.attention_dropout = 0.5
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    with pytest.raises(InputError, match="training mode"):
        explain(model, tokenizer, TEXT)
    assert model.training


def test_a_plain_model_gives_what_its_transformed_module_gives(
    model: LlamaForCausalLM, explained: Explained, tokenizer: Any
) -> None:
    ours = explain(model, tokenizer, TEXT)
    torch.testing.assert_close(ours.attribution, explain(explained, tokenizer, TEXT).attribution, **CLOSE)


def test_a_string_its_ids_and_the_tokenizers_output_are_one_text(explained: Explained, tokenizer: Any) -> None:
    encoded = tokenizer(TEXT, return_tensors="pt")
    texts = (TEXT, encoded, dict(encoded), encoded["input_ids"], encoded["input_ids"][0], encoded["input_ids"][0].tolist())
    relevances = [explain(explained, tokenizer, text).relevance for text in texts]
    for relevance in relevances:
        assert_same(relevance, relevances[0])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the text '' is empty, so there is nothing to explain"),
        ([], "the list of inputs is empty"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "no tokens"),
        (torch.ones(3), r"reads text, and \[3\] numbers of torch.float32 are no text; give a text, or token ids"),
        ({"attention_mask": [1]}, "neither input_ids nor inputs_embeds"),
        ({"input_ids": [["x"]]}, "not a tensor"),
        (3.5, "float is no kind of input"),
        (object(), "object is no kind of input; LlamaForCausalLM takes input_ids.* Give a text, a chat"),
    ],
)
def test_what_is_no_text_is_refused(explained: Explained, tokenizer: Any, text: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        explain(explained, tokenizer, text)


def test_padding_does_not_show(explained: Explained, tokenizer: Any) -> None:
    padded = tokenizer(TEXT, return_tensors="pt", padding="max_length", max_length=8)
    explanation = explain(explained, tokenizer, padded)
    alone = explain(explained, tokenizer, TEXT)
    assert explanation.explained == alone.explained and explanation.tokens == alone.tokens
    torch.testing.assert_close(explanation.relevance, alone.relevance, **CLOSE)


def test_segments_of_a_text_pair_reach_the_model(classifier: Explained, words: Any) -> None:
    pair = words("London", "Paris", return_tensors="pt", return_token_type_ids=True)
    flat = dict(pair) | {"token_type_ids": torch.zeros_like(pair["input_ids"])}
    assert pair["token_type_ids"].any()
    with_segments, without = explain(classifier, words, pair, 0), explain(classifier, words, flat, 0)
    assert with_segments.value != without.value


def test_an_input_that_says_nothing_is_dropped_and_one_that_says_something_refused(
    explained: Explained, tokenizer: Any
) -> None:
    encoded = dict(tokenizer(TEXT, return_tensors="pt"))
    silent = encoded | {"token_type_ids": torch.zeros_like(encoded["input_ids"])}
    assert_same(explain(explained, tokenizer, silent).relevance, explain(explained, tokenizer, TEXT).relevance)
    with pytest.raises(InputError, match="token_type_ids, which LlamaForCausalLM does not take"):
        explain(explained, tokenizer, encoded | {"token_type_ids": torch.ones_like(encoded["input_ids"])})


def test_the_rule_table_is_the_one_asked_for(model: LlamaForCausalLM, explained: Explained, tokenizer: Any) -> None:
    plain = explain(model, tokenizer, TEXT, rules="gradient")
    assert plain.table_name == "gradient"
    assert not torch.allclose(plain.relevance, explain(explained, tokenizer, TEXT).relevance)
    assert explain(explained, tokenizer, TEXT, rules="attnlrp").table_name == "attnlrp"


def test_the_model_and_torch_are_left_as_they_were(tokenizer: Any) -> None:
    model = llama(len(tokenizer))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(7)
    random_state = torch.random.get_rng_state()
    with torch.no_grad():
        explain(model, tokenizer, TEXT)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert not model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is None and parameter.requires_grad
        assert torch.equal(parameter, before[name])


def test_it_works_inside_inference_mode(explained: Explained, tokenizer: Any) -> None:
    outside = explain(explained, tokenizer, TEXT).relevance
    with torch.inference_mode():
        text = tokenizer(TEXT, return_tensors="pt")
        inside = explain(explained, tokenizer, text).relevance
        assert torch.is_inference_mode_enabled()
    assert_same(inside, outside)


def test_grad_mode_is_put_back_after_an_error(explained: Explained, tokenizer: Any) -> None:
    with torch.no_grad():
        with pytest.raises(InputError):
            explain(explained, tokenizer, TEXT, 10_000)
        assert not torch.is_grad_enabled()


def test_a_module_without_embeddings_is_refused(tokenizer: Any) -> None:
    with pytest.raises(InputError, match="Linear takes no text, it takes input; give one of these"):
        explain(nn.Linear(2, 2), tokenizer, TEXT)


def test_relevance_that_is_not_finite_is_an_error(explained: Explained, tokenizer: Any) -> None:
    with pytest.raises(LxtFxError, match=r"not finite.*the target itself.*1 inf.*model\.float\(\)"):
        explain(explained, tokenizer, TEXT, lambda out: out.logits[0, -1, 0] * float("inf"))


def test_half_precision_is_multiplied_in_float32(tokenizer: Any) -> None:
    model = llama(len(tokenizer)).to(torch.bfloat16)
    explanation = explain(model, tokenizer, TEXT)
    assert explanation.attribution.dtype == explanation.relevance.dtype == torch.float32


def test_an_explanation_cannot_be_changed(explained: Explained, tokenizer: Any) -> None:
    with pytest.raises(FrozenInstanceError):
        explain(explained, tokenizer, TEXT).value = 1.0  # type: ignore[misc]


def test_an_image_has_a_relevance_for_every_pixel() -> None:
    model, image = vit(), torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    explanation = explain_image(model, image, 3, labels=("a", "b", "c", "dog", "e"))
    leaf = image[None].clone().requires_grad_(True)
    transform(model)(pixel_values=leaf).logits[0, 3].backward()
    assert leaf.grad is not None
    torch.testing.assert_close(explanation.attribution, (leaf * leaf.grad)[0].detach(), **CLOSE)
    torch.testing.assert_close(explanation.relevance, (leaf * leaf.grad)[0].sum(0).detach(), **CLOSE)
    assert torch.equal(explanation.pixel_values, image)
    assert explanation.explained.startswith("logit of 'dog' (class 3, rank ")


def test_an_image_contrast_explains_the_difference_of_two_classes() -> None:
    explained, image = transform(vit()), torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first, second, both = (explain_image(explained, image, target) for target in (0, 1, (0, 1)))
    torch.testing.assert_close(both.relevance, first.relevance - second.relevance, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("pixels", "why"),
    [
        (torch.zeros(3, 8, 9), r"the picture is \[3, 8, 9\], but ViTFor.* takes 8 x 8 pixels of 3 channels"),
        (torch.zeros(8, 8), "no image processor was given; .* or a float tensor"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "must be resized and normalised .* no image processor was given"),
        (torch.full((3, 8, 8), float("nan")), "pixel_values is nan"),
        ([], "the list of inputs is empty"),
    ],
)
def test_what_is_no_image_is_refused(pixels: Tensor, why: str) -> None:
    with pytest.raises(InputError, match=why):
        explain_image(vit(), pixels)


def test_text_and_image_models_point_to_each_other(explained: Explained, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="ViTForImageClassification takes no text, it takes pixel_values.* or a picture"):
        explain(vit(), tokenizer, TEXT)
    with pytest.raises(InputError, match="takes no pixel_values, it takes input_ids.*; lxt_fx.explain takes these"):
        explain_image(explained, torch.zeros(3, 8, 8))
