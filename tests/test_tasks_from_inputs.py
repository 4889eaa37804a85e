"""`explain` from what a person has, in one line: the inputs, tasks and results rooms together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny_text
import torch
import transformers as hf
from task_cases import (
    Sentences,
    byte_tokenizer,
    case_of,
    explained,
    in_batch,
    inputs_of,
    texts_at,
    word_tokenizer,
)
from torch import Tensor, nn
from transformers.utils import ModelOutput

import lxt_fx
from lxt_fx import Target
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.read import read_inputs
from lxt_fx.results.account import Account
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.tasks.explain import explain
from lxt_fx.tasks.followed import followed
from lxt_fx.tasks.likeness import cosine
from lxt_fx.tasks.own_text import own_text
from lxt_fx.tasks.task import Context

pytestmark = pytest.mark.xdist_group("tasks")  # they share the captures of task_cases.py


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


def test_an_answer_behind_unknown_padding_and_its_prompt_is_asked_about() -> None:
    """What `generate` returned, padded in front with a token that no config names, and a module without a tokenizer."""
    module, prompt = explained("causal"), torch.tensor([5, 6, 7])
    output = torch.tensor([[0, 0, 5, 6, 7, 11, 12]])
    with pytest.raises(InputError, match="has its prompt in it, behind 2 tokens 0, which no one names as padding"):
        lxt_fx.answer_relevance(module, None, prompt, output)
    plain = lxt_fx.answer_relevance(module, None, prompt, torch.tensor([11, 12]))
    for found in (
        lxt_fx.answer_relevance(module, None, prompt, output, with_prompt=True),
        lxt_fx.answer_relevance(module, None, prompt, {"sequences": output}),
    ):
        torch.testing.assert_close(found.relevance, plain.relevance, rtol=0, atol=1e-9)
    whole = lxt_fx.answer_relevance(module, None, prompt, output, with_prompt=False)
    assert isinstance(whole, Explanation) and len(whole.numbers) == 7


def test_a_call_of_another_length_than_that_of_a_further_graph_has_a_graph_of_its_own() -> None:
    """A size of 1 is fixed where a graph is captured: that of a decoder's start, say."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 4)

        def forward(self, x: Tensor, y: Tensor, scale: Tensor | None = None) -> Tensor:
            found: Tensor = self.net(x).mean(1, keepdim=True) + self.net(y)
            return found if scale is None else found * scale

    model, x, y = Scaled().eval(), torch.randn(2, 3, 4), torch.randn(2, 6, 4)
    module = lxt_fx.transform(model, (x, y), {"scale": torch.ones(2, 6, 1)})
    torch.testing.assert_close(module(x, y[:, :1]), model(x, y[:, :1]))
    with pytest.warns(UserWarning, match=r"captured for \['any', 1, 4\]; a graph for such inputs is captured now, once"):
        torch.testing.assert_close(module(x, y[:, :5]), model(x, y[:, :5]))
    for length in (6, 1, 2):
        torch.testing.assert_close(module(x, y[:, :length]), model(x, y[:, :length]))


def test_logits_inside_of_another_output_are_narrowed_too() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> ModelOutput:
            logits = self.net(x)
            return ModelOutput(logits=logits, language_model_outputs=ModelOutput(logits=logits))

    model, x = Nested().eval(), torch.randn(2, 5, 4)
    output = lxt_fx.transform(model, (x,), positions="last")(x)
    for logits in (output.logits, output.language_model_outputs.logits):
        torch.testing.assert_close(logits, model(x).logits[:, -1:])


def test_padded_texts_of_a_model_that_reads_none_without_its_picture() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.net = nn.Embedding(9, 3), nn.Linear(3, 5)
            self.config = SimpleNamespace(image_token_id=1)

        def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> ModelOutput:
            hidden = self.embed(input_ids) * attention_mask[..., None] + pixel_values.mean((2, 3))[:, None]
            return ModelOutput(logits=self.net(hidden))

    ids = torch.tensor([[1, 2, 3], [1, 5, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "pixel_values": torch.randn(2, 3, 4, 4)}
    given = read_inputs(Both().eval(), None, inputs, "explain")
    assert len(given.examples) == 2 and "position_ids" not in given.inputs


def test_an_answer_has_the_token_type_that_a_model_gives_to_answers() -> None:
    tokenizer, ids = byte_tokenizer(), torch.tensor([[5, 6, 7, 0]])
    inputs = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids)}
    given = in_batch(inputs, texts_at(tokenizer, [[5, 6, 7]], "right"))
    for kind, types in (("paligemma", [0, 0, 0, 1, 1, 0]), ("gemma3", [0, 0, 0, 0, 0, 0])):
        context = Context(Reading("explain", "Net", ()), SimpleNamespace(model_type=kind), inputs, tokenizer)
        text = own_text(inputs, tokenizer, 0)
        assert text is not None
        found = followed(given, [[8, 9]], [text], context)
        assert found.inputs["input_ids"].tolist() == [[5, 6, 7, 8, 9, 0]]
        assert found.inputs["token_type_ids"].tolist() == [types]


def test_a_picture_without_a_batch_for_a_model_of_no_library() -> None:
    class Patches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.net(x.flatten(1))
            return found

    class Sequences(Patches):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1).repeat(1, 3)[:, :48])

    picture = torch.randn(3, 4, 4)
    for model in (Patches().eval(), lxt_fx.transform(Patches().eval(), (picture[None],))):
        found = explain(model, None, picture)
        assert isinstance(found, Explanation) and found.relevance.shape == (4, 4)
        assert found.value == pytest.approx(float(model(picture[None]).max()))
    batch = explain(Sequences().eval(), None, picture)
    assert isinstance(batch, Explanations) and len(batch) == 3, "a model that takes it as a batch is called by a batch"


def test_a_model_that_brings_its_tokenizer_needs_no_example() -> None:
    tokenizer = word_tokenizer()
    model = Sentences(tiny_text.bert("bare", len(tokenizer))).eval()
    with pytest.raises(InputError, match="its inputs are unknown"):
        lxt_fx.transform(model)
    model.tokenizer = tokenizer
    module = lxt_fx.transform(model)
    features = dict(tokenizer(["Paris is the capital"], return_tensors="pt"))
    torch.testing.assert_close(module(features)["sentence_embedding"], model(features)["sentence_embedding"])
    pair: Explanation = explain(module, tokenizer, ("The capital of France", "Paris"))
    assert pair.explained.startswith("cosine of") and len(pair.parts) == 2


def test_what_a_type_checker_knows_of_explanations() -> None:
    """mypy reads this test: one input has one explanation, a list of them has several."""
    case = case_of("causal")
    one: Explanation = explain(explained("causal"), case.tokenizer, "Paris is")
    two: Explanations = explain(explained("causal"), case.tokenizer, ["Paris is", "The capital"])
    ids: Explanation = explain(explained("causal"), case.tokenizer, [5, 6, 7])
    assert [type(one), type(two), type(ids)] == [Explanation, Explanations, Explanation]


class Pair(nn.Module):
    """How well two pictures [batch, 2, channels, height, width] match."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(48, 5)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """Scores."""
        one, other = self.net(pixel_values.flatten(2)).unbind(1)
        return {"best": (one * other).argmax(-1), "scores": one * other}


SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
PICTURE = torch.randn(3, 8, 8)
NO_NUMBER: dict[str, Any] = {
    "text": (lambda: tiny_text.bert("bare", len(word_tokenizer())), "Paris is the capital"),
    "picture": (lambda: hf.Dinov2Model(hf.Dinov2Config(**SIZES, image_size=8, patch_size=4)), PICTURE),
    "pair of pictures": (Pair, torch.randn(1, 2, 3, 4, 4)),
}


@pytest.mark.parametrize("name", NO_NUMBER)
def test_a_model_without_an_obvious_number_says_which_function_to_give(name: str) -> None:
    """In one line, and what it says works when it is pasted."""
    make, what = NO_NUMBER[name]
    model = make().eval()
    example = {"pixel_values": what if what.dim() > 3 else what[None]} if isinstance(what, Tensor) else {}
    module = lxt_fx.transform(model, kwargs=example)
    with pytest.raises(InputError, match="such as target=lambda out: ") as refused:
        explain(module, word_tokenizer() if name == "text" else None, what)
    said = str(refused.value)
    assert "\n" not in said
    function = eval(said.rpartition("target=")[2])
    found = explain(module, word_tokenizer() if name == "text" else None, what, function)
    with torch.no_grad():
        wanted = function(model(**(example or word_tokenizer()(what, return_tensors="pt"))))
    assert isinstance(found, Explanation) and found.value == pytest.approx(float(wanted), rel=1e-5)


def test_a_film_is_given_as_its_processor_makes_it() -> None:
    sizes = {**SIZES, "intermediate_size": 16, "image_size": 8, "patch_size": 4, "num_frames": 2, "tubelet_size": 2}
    model = hf.VideoMAEForVideoClassification(hf.VideoMAEConfig(**sizes)).eval()
    film = torch.randn(1, 2, 3, 8, 8)
    for what in (film[0], list(film[0])):
        with pytest.raises(InputError, match="takes films .*; give what its processor makes of the frames"):
            explain(model, None, what)
    with torch.no_grad():
        wanted = float(model(film).logits.max())
    for what in (film, {"pixel_values": film}):
        found = explain(model, None, what)
        assert isinstance(found, Explanation) and found.value == pytest.approx(wanted, rel=1e-5)


def test_the_account_of_a_negative_number_says_what_its_shares_mean() -> None:
    said = str(Account(-2.0, {"text": -3.0}, {"bias": 1.0}, 0.0))
    assert "(150 %)" in said and said.endswith("the number is negative, so what has a share above 0 % made it smaller")
    assert "negative" not in str(Account(2.0, {"text": 3.0}, {"bias": -1.0}, 0.0))
