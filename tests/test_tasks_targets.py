"""What `explain` takes as targets, for one input and for a batch, in both forms, on modules and on models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import ids_models
import numpy as np
import pytest
import torch
from task_cases import (
    Case,
    ImageAt,
    Sentences,
    TextAt,
    byte_tokenizer,
    case_of,
    encoded,
    explained,
    in_batch,
    inputs_of,
    looked_up,
    padded,
    pairs,
    texts_at,
    word_tokenizer,
)
from torch import Tensor, nn

import lxt_fx
from lxt_fx import InputError, Target
from lxt_fx.attribution.attributed import attributed, call_at_all_leaves
from lxt_fx.attribution.target_names import ClassNames
from lxt_fx.compiler import call_capture
from lxt_fx.inputs.given import Example, Given
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.readings import TextReading
from lxt_fx.tasks import explained_call as calls
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.explain import explain

pytestmark = pytest.mark.xdist_group("tasks")  # they share the captures of task_cases.py


def several(found: Any) -> Sequence[Explanation]:
    assert not isinstance(found, Explanation)
    found_by_index: Sequence[Explanation] = found
    return found_by_index


def alone(name: str, index: int = 0) -> Given:
    """One example of a case as one input of a person, still padded."""
    given = case_of(name).given
    rows = {key: value[index : index + 1] for key, value in given.inputs.items()}
    places = tuple(replace(place, within=0) for place in given.examples[index].places)  # type: ignore[type-var]
    return Given(rows, (Example(places),), False)


def asked(name: str, target: Any, index: int = 0) -> Explanation:
    found = explain(explained(name), case_of(name).tokenizer, alone(name, index), target)
    assert isinstance(found, Explanation)
    return found


def same(one: Tensor, other: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=tolerance * float(other.abs().max()))


def test_one_input_gives_one_explanation_and_a_list_of_targets_an_axis() -> None:
    one, two = asked("causal", 7), asked("causal", " Paris")
    both = asked("causal", [7, " Paris"])
    assert both.parts[0].axes == ("target", "position") and one.parts[0].axes == ("position",)
    assert [number.said for number in both.numbers] == [one.numbers[0].said, two.numbers[0].said]
    same(both.parts[0].values[0], one.parts[0].values)
    same(both.parts[0].values[1], two.parts[0].values)
    assert two.numbers[0].label == " Paris"
    assert two.numbers[0].said.startswith("logit of ' Paris' (rank ")
    assert two.numbers[0].said.endswith(") at position 4, after ' is'")


def test_every_kind_of_index_is_the_same_target() -> None:
    expected = asked("causal", 7).numbers[0]
    logits = explained("causal")(**alone("causal").inputs).logits[0, 4].detach()
    for target in (np.int64(7), torch.tensor(7), np.array(7)):
        assert asked("causal", target).numbers[0] == expected
    assert asked("causal", logits.argmax()).numbers[0] == asked("causal", None).numbers[0]


def test_a_contrast_is_the_difference_of_two_numbers() -> None:
    first, second, both = (asked("causal", target) for target in (" Paris", " London", (" Paris", " London")))
    rounding = 1e-6 * float(first.parts[0].values.abs().max())  # norms are in float32
    torch.testing.assert_close(both.parts[0].values, first.parts[0].values - second.parts[0].values, rtol=0, atol=rounding)
    assert both.numbers[0].value == pytest.approx(first.numbers[0].value - second.numbers[0].value)
    pair = asked("classifying", (0, 2))
    assert pair.numbers[0].said.startswith("logit of 'bad' (class 0, rank ")
    assert " minus logit of 'good'" in pair.numbers[0].said


@pytest.mark.parametrize("name", ["causal", "causal, padded left"])
def test_positions_are_those_of_the_text_itself(name: str) -> None:
    """The second text is the shorter one, so it is padded."""
    for position in (0, 1, -1):
        ids = alone(name, 1).inputs["input_ids"][alone(name, 1).inputs["attention_mask"].bool()].tolist()
        found = asked(name, Target.at(position, 7), 1)
        expected = case_of(name).model(input_ids=torch.tensor([ids])).logits[0, position, 7]
        assert found.numbers[0].value == pytest.approx(float(expected), rel=1e-6)
        assert f"at position {position % len(ids)}," in found.numbers[0].said
    with pytest.raises(InputError, match=r"position 2 is not in the text, which has 2 tokens \(0 to 1\)"):
        asked(name, Target.at(2, 7), 1)


def test_a_batch_takes_a_target_for_each_input() -> None:
    case = case_of("causal")
    found = several(explain(explained("causal"), case.tokenizer, case.given, [" Paris", 7]))
    for index, target in enumerate((" Paris", 7)):
        expected = asked("causal", target, index)
        assert found[index].numbers[0].label == expected.numbers[0].label
        assert found[index].numbers[0].value == pytest.approx(expected.numbers[0].value)
        same(found[index].parts[0].values, expected.parts[0].values, 1e-8)
    two = several(explain(explained("causal"), case.tokenizer, case.given, [[1, 2], [3, 4]]))
    assert [number.label for number in two[1].numbers] == [number.label for number in asked("causal", [3, 4], 1).numbers]
    same(two[1].parts[0].values, asked("causal", [3, 4], 1).parts[0].values, 1e-8)
    ids = several(explain(explained("causal"), case.tokenizer, case.given, torch.tensor([5, 6])))
    assert ids[1].numbers[0].value == pytest.approx(asked("causal", 6, 1).numbers[0].value)


def test_a_function_gives_one_number_for_each_input() -> None:
    case = case_of("image")
    found = several(explain(explained("image"), None, case.given, lambda out: out.logits[:, 1]))
    expected = several(explain(explained("image"), None, case.given, 1))
    for one, other in zip(found, expected, strict=True):
        same(one.parts[0].values, other.parts[0].values)
    assert found[0].numbers[0].said == "a function of the output"
    with pytest.raises(InputError, match=r"must return one number for each of the 2 inputs, \[2\], got .* \[\]"):
        explain(explained("image"), None, case.given, lambda out: out.logits[0, 1])
    with pytest.raises(InputError, match="do not depend on the input by a differentiable path"):
        explain(explained("image"), None, case.given, lambda out: out.logits[:, 1].detach())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "the empty string names no token and no class; give a name or an index"),
        (True, r"True is a bool, not a target; give an index \(1 for True\)"),
        (0.5, "0.5 is a value, not an index"),
        ([], "the list of targets is empty"),
        ([1, 2, 3], r"3 targets for 2 inputs; give one target for all, .* \[\[\.\.\.\]\] \* 2"),
        ([[1, 2], [3]], "each input needs as many targets as the others, at least one; got 2, 1"),
        ([[1, [2]], [3, 4]], "a list of targets inside of a list of targets"),
        (Target.at(1, 2), "the target names a position .1., but the logits of ViTForImageClassification have none"),
        ("Paris", "the model has no class 'Paris'; its classes are 'LABEL_0', 'LABEL_1'"),
    ],
)
def test_what_is_no_target_is_refused_with_advice(target: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^explain: {message}|^explain: .*{message}"):
        explain(explained("image"), None, case_of("image").given, target)


def test_labels_are_found_whatever_their_capital_letters() -> None:
    found = [asked("classifying", target).numbers[0] for target in ("Good", "good", 2)]
    assert found[0] == found[1] == found[2]
    with pytest.raises(InputError, match="the model has no class 'goood'; its classes are 'bad', 'fair', 'good'"):
        asked("classifying", "goood")
    many = [f"kind {number}" for number in range(40)] + ["Tabby cat", "tabby Cat"]
    logits = torch.zeros(42)
    names = ClassNames(many, "explain")
    assert names.find(["KIND 7"], logits) == (7,) and names.find(["Tabby cat"], logits) == (40,)
    with pytest.raises(InputError, match="no class 'TABBY CAT'; the nearest of its 42 classes are 't?T?abby c?C?at'"):
        names.find(["TABBY CAT"], logits)


def test_a_model_is_transformed_with_logits_at_the_positions_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    compiled_by = call_capture.compiled_by
    monkeypatch.setattr(call_capture, "compiled_by", lambda *args: seen.append(args[2].positions) or compiled_by(*args))
    case = case_of("causal")
    found = several(explain(case.model, case.tokenizer, case.given, rules="gradient"))
    assert seen == [(-4, -1)]  # of texts of 5 and 2 tokens, padded on the right
    expected = several(explain(explained("causal"), case.tokenizer, case.given))
    for one, other in zip(found, expected, strict=True):
        same(one.parts[0].values, other.parts[0].values, 1e-8)
        assert one.numbers[0].said == other.numbers[0].said
    assert found[0].origin.table_name == "gradient" and found[0].origin.model_class == "LlamaForCausalLM"
    assert {"lxt_fx", "torch", "transformers"} == set(found[0].origin.versions)


def test_the_equations_give_the_same_as_the_fast_form() -> None:
    case = case_of("causal")
    target: Any = [[" Paris", (" Paris", 7)], [3, 4]]
    fast, written = (
        lxt_fx.transform(case.model, kwargs=inputs_of(case), form=form, epsilon=0.0) for form in ("gradient", "explicit")
    )
    one, other = (several(explain(module, case.tokenizer, case.given, target)) for module in (fast, written))
    for index in range(2):
        same(other[index].parts[0].values, one[index].parts[0].values, 1e-5)
    name = [" Parisian", " London is Rome"]
    one, other = (several(explain(module, case.tokenizer, case.given, name)) for module in (fast, written))
    for index in range(2):
        same(other[index].parts[0].values, one[index].parts[0].values, 1e-5)


NAMES = (" Parisian", " London is Rome")


def forced(model: nn.Module, text: list[int], name: str) -> tuple[Tensor, Tensor, list[int]]:
    """The sum of log-probabilities, each from a call of its own, and input * gradient of the text with the name but its
    last token."""
    ids = byte_tokenizer().encode(name, add_special_tokens=False)
    with looked_up([model.get_input_embeddings()]) as made:  # type: ignore[operator]
        logits = model(input_ids=torch.tensor([[*text, *ids[:-1]]])).logits[0]
    steps = [logits[len(text) - 1 + step].log_softmax(-1)[token] for step, token in enumerate(ids)]
    total = torch.stack(steps).sum()
    (gradient,) = torch.autograd.grad(total, made[0])
    return total.detach(), (made[0] * gradient).detach()[0], ids


@pytest.mark.parametrize("name", ["causal", "causal, padded left"])
def test_names_of_several_tokens_are_appended_to_each_text_of_a_batch(name: str) -> None:
    case = case_of(name)
    texts = encoded(byte_tokenizer(), "The capital of France is", "Paris play")
    found = several(explain(explained(name), case.tokenizer, case.given, list(NAMES)))
    for explanation, text, wanted in zip(found, texts, NAMES, strict=True):
        value, relevance, ids = forced(case.model, text, wanted)
        assert explanation.numbers[0].value == pytest.approx(float(value), rel=1e-6)
        units, reading = explanation.parts[0].units, explanation.parts[0].reading
        assert units is not None and isinstance(reading, TextReading)
        same(units, relevance, 1e-6)
        assert reading.ids == (*text, *ids[:-1]) and reading.answer == len(ids) - 1
        assert explanation.numbers[0].said.startswith("log-probability of ' ")
        assert explanation.numbers[0].label == wanted
    whole = lxt_fx.explain(explained(name), byte_tokenizer(), "The capital of France is", NAMES[0])
    assert found[0].numbers[0].said == whole.explained
    same(found[0].parts[0].values, whole.relevance, 1e-6)


def test_a_name_of_several_tokens_is_alone_and_at_the_end() -> None:
    with pytest.raises(InputError, match="a name of several tokens is explained alone"):
        asked("causal", [NAMES[0], 3])
    with pytest.raises(InputError, match="explained only after the last token of the text, and position 0 is not the last"):
        asked("causal", Target.at(0, NAMES[0]))
    with pytest.raises(InputError, match="one target of the batch is a name of several tokens"):
        case = case_of("causal")
        explain(explained("causal"), case.tokenizer, case.given, [NAMES[0], 3])


def test_the_likeness_of_two_texts_is_explained_by_both(tmp_path: Any) -> None:
    """By the mean of the last hidden states, and by that of [CLS] where a checkpoint says so. In front of every other text
    there is padding."""
    case = pairs()
    case.model.double()
    module = lxt_fx.transform(case.model, kwargs=inputs_of(case), rules="gradient")
    found = several(explain(module, case.tokenizer, case.given, account=True))
    sentences = lxt_fx.transform(Sentences(case.model).eval(), ({**inputs_of(case)},), rules="gradient")
    also = several(explain(sentences, case.tokenizer, case.given))
    case.model.config.name_or_path = str(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    first = several(explain(module, case.tokenizer, case.given))
    for index, explanation in enumerate(first):
        value, relevance = likeness_by_hand(case, index, lambda hidden: hidden[0])
        assert explanation.numbers[0].value == pytest.approx(value, rel=1e-9)
        for part, expected in zip(explanation.parts, relevance, strict=True):
            same(part.values, expected.sum(-1), 1e-6)
    for index, (explanation, other) in enumerate(zip(found, also, strict=True)):
        value, relevance = likeness_by_hand(case, index, lambda hidden: hidden.mean(0))
        assert explanation.numbers[0].value == pytest.approx(value, rel=1e-9)
        assert len(explanation.parts) == len(other.parts) == 2
        for part, again, expected in zip(explanation.parts, other.parts, relevance, strict=True):
            assert part.units is not None
            largest = max(float(each.abs().max()) for each in relevance)
            torch.testing.assert_close(part.units, expected, rtol=0, atol=1e-6 * largest)
            torch.testing.assert_close(again.values, expected.sum(-1), rtol=0, atol=1e-6 * largest * len(expected[0]))
        account = explanation.account
        assert account is not None and abs(account.residual) < 1e-9
        total = sum(float(part.values.sum()) for part in explanation.parts)
        assert sum(account.reached.values()) == pytest.approx(total, abs=1e-9)
    assert found[1].numbers[0].said.startswith("cosine of 'paris' and 'the capital of england is london' (the mean of")
    assert also[1].numbers[0].said == "cosine of 'paris' and 'the capital of england is london'"
    with pytest.raises(InputError, match="has no classes or tokens to name; leave target out"):
        explain(module, case.tokenizer, case.given, 3)


def likeness_by_hand(case: Case, index: int, pooled: Callable[[Tensor], Tensor]) -> tuple[float, list[Tensor]]:
    """The cosine of a pair of texts, each called alone, and input * gradient of each [tokens, units]."""
    vectors, leaves = [], []
    for place in case.given.examples[index].places:
        with looked_up(case.made_by(case.model)) as made:
            hidden = case.model(input_ids=torch.tensor([place.ids])).last_hidden_state  # type: ignore[attr-defined]
        vectors.append(pooled(hidden[0]))
        leaves += made
    cosine = vectors[0] @ vectors[1] / (vectors[0].norm() * vectors[1].norm())
    gradients = torch.autograd.grad(cosine, leaves)
    pairs = zip(leaves, gradients, strict=True)
    return float(cosine.detach()), [(leaf * gradient).detach()[0] for leaf, gradient in pairs]


def test_an_encoder_without_a_pair_says_what_to_give() -> None:
    case = pairs()
    texts = texts_at(case.tokenizer, encoded(word_tokenizer(), "Paris", "London"), "right")
    given = in_batch(dict(case.given.inputs), texts)
    one = Given({name: value[:1] for name, value in given.inputs.items()}, given.examples[:1], False)
    with pytest.raises(InputError, match="BertModel has no logits, .*: give two texts as a pair"):
        explain(case.model, case.tokenizer, one)


def test_images_that_share_texts_are_explained_one_by_one() -> None:
    """Two images and two texts: the score of each image with the second text, which both read."""
    case, module = case_of("matching"), explained("matching")
    texts: list[Any] = [example.places[1] for example in case.given.examples]
    texts = [replace(place, name=f"text {index}") for index, place in enumerate(texts)]
    examples = tuple(Example((ImageAt(index), *texts)) for index in range(2))
    found = several(explain(module, case.tokenizer, Given(case.given.inputs, examples, True), 1))
    for index, explanation in enumerate(found):
        output, leaves = module.with_leaves(**case.given.inputs)
        output.logits_per_image[index, 1].backward()
        relevance = {name: (leaf * leaf.grad).detach() for name, leaf in leaves.items()}  # type: ignore[operator]
        assert explanation.numbers[0].value == pytest.approx(float(output.logits_per_image[index, 1].detach()))
        same(explanation.parts[0].values, relevance["pixel_values"][index].sum(0))
        same(explanation.parts[2].values, relevance["inputs_embeds"][1].sum(-1)[: len(explanation.parts[2].values)])
        assert not bool(explanation.parts[1].values.any())
    contrast = several(explain(module, case.tokenizer, Given(case.given.inputs, examples, True), (1, 0)))
    assert contrast[0].numbers[0].said.count("score of the image and '") == 2
    with pytest.raises(InputError, match=r"there is no text 2; the image has 2 \(0 to 1\)"):
        explain(module, case.tokenizer, Given(case.given.inputs, examples, True), 2)


@pytest.mark.parametrize("name", ["encoder-decoder", "whisper"])
def test_a_decoder_is_asked_for_a_word_that_it_has_written(name: str) -> None:
    case = case_of(name)
    tokenizer = byte_tokenizer()
    answer = [7, 8, 9]
    given = alone(name)
    start = int(given.inputs["decoder_input_ids"][0, 0])
    given.inputs["decoder_input_ids"][0] = torch.tensor([start, *answer])  # type: ignore[index]
    written = explain(explained(name), tokenizer, given, tokenizer.convert_ids_to_tokens([8])[0])
    assert isinstance(written, Explanation)
    logits = case.model(**given.inputs).logits[0]
    assert written.numbers[0].value == pytest.approx(float(logits[1].log_softmax(-1)[8].detach()), rel=1e-6)
    assert "as written at position 2, each token given those before" in written.numbers[0].said
    later = written.parts[1].values[2:]
    assert not bool(later.any()), "a token that is written later got relevance"

    asked = Given({**given.inputs, "decoder_input_ids": torch.tensor([[start, *answer[:-1]]])}, (
        replace(given.examples[0], places=given.examples[0].places[:1], answer=tuple(answer)),), False)  # fmt: skip
    asked.inputs.pop("decoder_attention_mask", None)  # type: ignore[attr-defined]
    whole = explain(explained(name), tokenizer, asked)
    assert isinstance(whole, Explanation)
    steps = [float(logits[place].log_softmax(-1)[token].detach()) for place, token in enumerate(answer)]
    assert whole.numbers[0].value == pytest.approx(sum(steps), rel=1e-6)
    last = explain(explained(name), tokenizer, asked, tokenizer.convert_ids_to_tokens([9])[0])
    assert isinstance(last, Explanation) and last.numbers[0].value == pytest.approx(steps[2], rel=1e-6)


def test_a_name_after_a_decoder_s_text_is_appended_to_it() -> None:
    case = case_of("encoder-decoder")
    given = alone("encoder-decoder")
    tokens = byte_tokenizer().convert_ids_to_tokens([30, 31])
    found = explain(explained("encoder-decoder"), byte_tokenizer(), given, "".join(tokens))
    assert isinstance(found, Explanation)
    ids = {**given.inputs, "decoder_input_ids": torch.tensor([[*given.inputs["decoder_input_ids"][0].tolist(), 30]])}
    ids.pop("decoder_attention_mask")
    logits = case.model(**ids).logits[0, -2:].log_softmax(-1)
    assert found.numbers[0].value == pytest.approx(float((logits[0, 30] + logits[1, 31]).detach()), rel=1e-6)
    reading = found.parts[1].reading
    assert isinstance(reading, TextReading) and reading.answer == 1
    assert found.parts[0].reading.answer == 0  # type: ignore[union-attr]


def test_padding_to_one_length_is_added_with_a_mask() -> None:
    """Names of another number of tokens make the texts of a batch uneven: a mask says which tokens are real."""
    texts = encoded(byte_tokenizer(), "Paris play", " London play")
    width = min(map(len, texts))
    texts = [text[:width] for text in texts]
    inputs = {"input_ids": padded(byte_tokenizer(), texts, "right")["input_ids"]}
    given = in_batch(inputs, texts_at(byte_tokenizer(), texts, "right"))
    found = several(explain(explained("causal"), byte_tokenizer(), given, list(NAMES)))
    for explanation, text, name in zip(found, texts, NAMES, strict=True):
        value, relevance, _ = forced(case_of("causal").model, text, name)
        assert explanation.numbers[0].value == pytest.approx(float(value), rel=1e-6)
        same(explanation.parts[0].values, relevance.sum(-1), 1e-6)


def test_the_units_may_be_summed_and_the_numbers_chunked() -> None:
    """And several lookups of one input are added up by token."""
    model, inputs = ids_models.gemma3n()
    module = lxt_fx.transform(model, kwargs=inputs)
    texts = [[int(id) for id in row[mask.bool()]] for row, mask in zip(*inputs.values(), strict=True)]
    places = [
        TextAt(byte_tokenizer(), tuple(text), tuple(mask.nonzero().flatten().tolist()), index)
        for index, (text, mask) in enumerate(zip(texts, inputs["attention_mask"], strict=True))
    ]
    asked = [[Asked(target, spot=-1) for target in (3, 4, 5)]] * 3
    made = calls.explained_call(module, byte_tokenizer(), in_batch(inputs, places), asked, None, None, "explain")
    call = call_at_all_leaves(module, inputs, "explain")
    whole = attributed(call, made.numbers, "explain")
    summed = attributed(call, made.numbers, "explain", chunk=2, units=False)
    assert set(whole.relevance) == {"input_ids"} and whole.relevance["input_ids"].shape[-1] == 32 + 2 * 8
    same(summed.relevance["input_ids"][..., 0], whole.relevance["input_ids"].sum(-1), 1e-5)
    same(summed.values, whole.values, 1e-6)
    expected = lxt_fx.relevance_of(module, inputs, [Target.at(-1, target) for target in (3, 4, 5)])
    last = list(places[2].columns)  # padded on the left, so that its last token is the last column
    same(whole.relevance["input_ids"].sum(-1)[:, 2, last], expected[:, 2, last], 1e-5)


def test_what_is_not_finite_is_refused() -> None:
    case = case_of("image")
    with pytest.raises(lxt_fx.NonFiniteError, match="explain: an explained number, or its relevance, is not finite"):
        explain(explained("image"), None, case.given, lambda out: out.logits[:, 1] / 0)
    with pytest.raises(InputError, match="account=True is for one number, got 2 targets"):
        explain(explained("image"), None, alone("image"), [1, 2], account=True)
