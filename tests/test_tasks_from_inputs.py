"""`explain` from what a person has, in one line: the inputs, tasks and results rooms together."""

from __future__ import annotations

import pytest
import tiny_text
import torch
from task_cases import Sentences, byte_tokenizer, case_of, inputs_of, word_tokenizer
from torch import Tensor, nn
from transformers.utils import ModelOutput

import lxt_fx
from lxt_fx import Target
from lxt_fx.base.errors import InputError
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.tasks.explain import explain
from lxt_fx.tasks.likeness import cosine


def test_a_list_of_texts_gives_explanations_and_padding_does_not_show() -> None:
    tokenizer = word_tokenizer()
    model = tiny_text.bert("classifier", len(tokenizer)).double()
    texts = ["The capital of France is Paris", "Rome"]
    found = explain(model, tokenizer, texts, "Good", account=True)
    assert isinstance(found, Explanations) and len(found) == 2
    for text, one in zip(texts, found, strict=True):
        alone = explain(model, tokenizer, text, "good")
        assert isinstance(alone, Explanation) and alone.numbers[0].said == one.numbers[0].said
        largest = float(alone.parts[0].values.abs().max())
        torch.testing.assert_close(one.parts[0].values, alone.parts[0].values, rtol=0, atol=1e-5 * largest)
        assert one.account is not None and abs(one.account.residual) < 1e-9


def test_a_pair_of_texts_for_a_model_that_takes_features_in_a_dict() -> None:
    tokenizer = word_tokenizer()
    model = tiny_text.bert("bare", len(tokenizer)).double()
    pair = ("The capital of France", "Paris is London")
    one, other = explain(Sentences(model).eval(), tokenizer, pair), explain(model, tokenizer, pair)
    assert isinstance(one, Explanation) and isinstance(other, Explanation)
    assert [part.name for part in one.parts] == ["text a", "text b"]
    assert one.numbers[0].value == pytest.approx(other.numbers[0].value)
    for part, again in zip(one.parts, other.parts, strict=True):
        torch.testing.assert_close(part.values, again.values, rtol=0, atol=1e-9)


def test_classes_without_names_are_numbers_and_a_batch_is_compared() -> None:
    model = tiny_text.vit()
    one = explain(model, None, torch.randn(3, 8, 8), [1, 4])
    assert isinstance(one, Explanation)
    assert [number.label for number in one.numbers] == ["class 1", "class 4"]
    found = lxt_fx.compare(*one)  # type: ignore[arg-type]
    assert found.names == ("class 1", "class 4") and len(found.differences) == 1


def test_a_picture_and_several_texts_are_one_question() -> None:
    case = case_of("matching")
    inputs = {**inputs_of(case), "pixel_values": inputs_of(case)["pixel_values"][:1]}
    one = explain(case.model, case.tokenizer, inputs, (1, 0), account=True)
    with torch.no_grad():
        scores = case.model(**inputs).logits_per_image[0]
    assert isinstance(one, Explanation) and [part.name for part in one.parts][:3] == ["image", "text 1", "text 2"]
    assert one.value == pytest.approx(float(scores[1] - scores[0]))
    assert one.account is not None and abs(one.account.residual) < 1e-9 and "the text" not in str(one.account)
    best = explain(case.model, case.tokenizer, inputs)
    assert isinstance(best, Explanation) and best.value == pytest.approx(float(scores.max()))
    asked = int(scores.argmax())
    silent = [float(part.values.abs().sum()) == 0 for part in best.parts[1:]]
    assert silent == [at != asked for at in range(len(scores))], "only the text of the score has relevance"


def test_each_text_of_a_pair_gets_half_of_the_cosine_unless_the_plain_gradient_is_asked_for() -> None:
    one, other = (torch.randn(8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = torch.nn.functional.cosine_similarity(one, other, dim=-1)
    for plain_gradient, share in ((False, 0.5), (True, 0.0)):
        value = cosine(one, other, plain_gradient=plain_gradient)
        torch.testing.assert_close(value, expected)
        for vector, gradient in zip((one, other), torch.autograd.grad(value, (one, other)), strict=True):
            assert float((vector * gradient).sum()) == pytest.approx(share * float(expected), abs=1e-12)
    tokenizer = word_tokenizer()
    model = tiny_text.bert("bare", len(tokenizer)).double()
    found = explain(model, tokenizer, ("The capital of France", "Paris is London"), account=True)
    assert isinstance(found, Explanation) and found.account is not None
    assert abs(found.account.took.get("target", 0.0)) < 1e-9, "nothing is lost between the output and the cosine"
    plain = explain(model, tokenizer, ("The capital of France", "Paris is London"), rules="gradient", account=True)
    assert isinstance(plain, Explanation) and plain.account is not None
    assert plain.account.took["target"] == pytest.approx(plain.value), "of which the plain gradient loses all"


def map_model() -> nn.Module:
    """A number for each pixel of a picture of 8 x 8."""

    class Map(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Conv2d(3, 1, 3, padding=1)

        def forward(self, pixel_values: Tensor) -> ModelOutput:
            return ModelOutput(logits=self.net(pixel_values)[:, 0])

    torch.manual_seed(0)
    return Map().double().eval()


def test_a_map_of_pixels_is_asked_by_pixels_and_masks() -> None:
    model, picture = map_model(), torch.randn(3, 8, 8, dtype=torch.float64)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:4] = True
    with torch.no_grad():
        logits = model(pixel_values=picture[None]).logits[0]
    wanted = {None: logits[logits > 0].mean(), Target.at((2, 5)): logits[2, 5], Target.at(mask): logits[2:4].mean()}
    for target, value in wanted.items():
        found = explain(model, None, {"pixel_values": picture}, target)
        assert isinstance(found, Explanation) and found.value == pytest.approx(float(value))
    with pytest.raises(InputError, match="has no classes; leave target out"):
        explain(model, None, {"pixel_values": picture}, 1)


def test_positions_of_a_text_with_pictures_are_those_that_are_shown() -> None:
    case = case_of("vision-language")
    row = int(inputs_of(case)["attention_mask"].sum(1).argmax())
    inputs = {name: value[row : row + 1] for name, value in inputs_of(case).items()}
    with torch.no_grad():
        logits = case.model(**inputs).logits[0]
    hidden = int((inputs["input_ids"] == case.model.config.image_token_id).sum())
    assert hidden == 4
    for target, shown in ((Target.at(1, 7), 1), (Target.at(-1, 7), len(logits) - hidden - 1)):
        found = explain(case.model, case.tokenizer, inputs, target)
        assert isinstance(found, Explanation) and len(found) == len(logits) - hidden
        assert found.value == pytest.approx(float(logits[hidden + shown, 7]))
        assert f"position {shown}, after" in found.explained
    with pytest.raises(InputError, match="beside those that stand for pictures"):
        explain(case.model, case.tokenizer, inputs, Target.at(len(logits) - hidden, 7))


def test_logits_that_a_model_returns_twice_are_explained() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = tiny_text.llama(len(byte_tokenizer()))
            self.config = self.model.config

        def forward(self, input_ids: Tensor) -> ModelOutput:
            logits = self.model(input_ids=input_ids, use_cache=False).logits
            return ModelOutput(logits=logits, inner=logits)

    model = Twice().eval()
    found = explain(model, byte_tokenizer(), "The capital of France is")
    assert isinstance(found, Explanation)
    with torch.no_grad():
        logits = model(torch.tensor([byte_tokenizer()("The capital of France is")["input_ids"]])).logits
    assert found.value == pytest.approx(float(logits[0, -1].max()), rel=1e-5)
