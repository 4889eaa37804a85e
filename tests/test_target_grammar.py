"""One grammar of targets: in every function each form means the number that indexing the logits by hand gives."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import tiny
import torch
from tiny_text import bert, byte_tokenizer, llama, vit, word_tokenizer
from torch import Tensor, nn

import lxt_fx
from lxt_fx import InputError, Removal, Target
from lxt_fx.attribution.split_head import split_model

pytestmark = pytest.mark.usefixtures("captures_in_files")

TEXT = "The capital of France is"
LENGTHS = (5, 3)
"""Tokens of the two examples; the second is padded on the right."""


@functools.cache
def tokenizer() -> Any:
    return byte_tokenizer()


@functools.cache
def model() -> nn.Module:
    return llama(len(tokenizer())).double()


@functools.cache
def explained(form: str = "gradient") -> lxt_fx.Explained:
    return lxt_fx.transform(model(), rules="gradient" if form == "gradient" else "attnlrp", form=form, epsilon=0.0)


def inputs() -> dict[str, Tensor]:
    ids = tokenizer()(TEXT, return_tensors="pt")["input_ids"]
    mask = torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])
    return {"input_ids": torch.cat([ids, ids.flip(1)]) * mask, "attention_mask": mask}


def token(piece: str) -> int:
    return int(tokenizer().convert_tokens_to_ids(piece))


def best(logits: Tensor, name: str) -> Tensor:
    """The likelier of a word's two spellings."""
    return logits[[token(name), token(f"Ġ{name}")]].max()


ByHand = Callable[[Tensor, int], Tensor]
FORMS: dict[str, tuple[Any, ByHand]] = {
    "nothing": (None, lambda row, last: row[last].max()),
    "index": (7, lambda row, last: row[last, 7]),
    "numpy scalar": (numpy.int64(7), lambda row, last: row[last, 7]),
    "numpy array of no dim": (numpy.array(7), lambda row, last: row[last, 7]),
    "torch scalar": (torch.tensor([1, 9, 3]).argmax() + 6, lambda row, last: row[last, 7]),
    "name": (" Paris", lambda row, last: row[last, token("ĠParis")]),
    "name with two spellings": ("Paris", lambda row, last: best(row[last], "Paris")),
    "pair of names": ((" Paris", " London"), lambda row, last: row[last, token("ĠParis")] - row[last, token("ĠLondon")]),
    "name and index": ((" Paris", numpy.int32(9)), lambda row, last: row[last, token("ĠParis")] - row[last, 9]),
    "contrast": (Target(7, minus=9), lambda row, last: row[last, 7] - row[last, 9]),
    "contrast with the best": (Target(minus=9), lambda row, last: row[last].max() - row[last, 9]),
    "position": (Target.at(1, 7), lambda row, last: row[1, 7]),
    "best at a position": (Target.at(2), lambda row, last: row[2].max()),
    "position from the end": (Target.at(numpy.int64(-4), torch.tensor(7)), lambda row, last: row[1, 7]),
    "contrast at a position": (
        Target.at(1, " of", minus=numpy.int64(9)),
        lambda row, last: row[1, token("Ġof")] - row[1, 9],
    ),
}
PAIR = ((7, torch.tensor(9)), lambda row, last: row[last, 7] - row[last, 9])
"""Of two indices: everywhere but in `relevance_of`."""

FUNCTION = (lambda out: out.logits[:, 1, 7] - out.logits[:, 0, 3], lambda row, last: row[1, 7] - row[0, 3])


def of_one(output: Any) -> Tensor:
    number: Tensor = FUNCTION[0](output)[0]
    return number


def by_hand(number: ByHand) -> tuple[Tensor, Tensor]:
    """The numbers [2] in the logits of the model itself, and input * gradient [2, tokens]."""
    leaf = lxt_fx.embed(model(), inputs()["input_ids"])
    logits = model()(inputs_embeds=leaf, attention_mask=inputs()["attention_mask"]).logits
    values = torch.stack([number(logits[row], length - 1) for row, length in enumerate(LENGTHS)])
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), (leaf * gradient).sum(-1).detach()


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


IN_FLOAT32 = 1e-6
"""Llama computes its norms in float32 whatever its dtype, and sums of differences have their rounding."""


@pytest.mark.parametrize("form", [*FORMS, "pair", "function"])
def test_explain_means_the_number_of_the_logits(form: str) -> None:
    target, number = {**FORMS, "pair": PAIR, "function": (of_one, FUNCTION[1])}[form]
    values, relevance = by_hand(number)
    found = lxt_fx.explain(explained(), tokenizer(), TEXT, target)
    assert found.value == pytest.approx(float(values[0]), rel=1e-9, abs=1e-12)
    same(found.relevance, relevance[0], IN_FLOAT32)


@pytest.mark.parametrize("form", [*FORMS, "pair", "function"])
def test_audit_means_the_number_of_the_logits(form: str) -> None:
    target, number = {**FORMS, "pair": PAIR, "function": FUNCTION}[form]
    values, relevance = by_hand(number)
    ledger = lxt_fx.audit(explained(), inputs(), target, tokenizer=tokenizer())
    same(ledger.value, values)
    same(ledger.sources[0].by_token(), relevance, IN_FLOAT32)


@pytest.mark.parametrize("form", [*FORMS, "pair", "function"])
def test_removal_curves_and_tuning_begin_at_the_number_of_the_logits(form: str) -> None:
    target, number = {**FORMS, "pair": PAIR, "function": FUNCTION}[form]
    values, relevance = by_hand(number)
    removal = Removal(steps=1)
    for subject in (model(), explained()):
        curves = lxt_fx.perturbation_curves(
            subject, inputs(), relevance, target, removal=removal, tokenizer=tokenizer()
        )
        same(curves.morf[:, 0], values, 1e-8)
    tuned = lxt_fx.tune(
        explained(), inputs(), target, grid={"linear": [0]}, metric=lambda curves: curves.morf[:, 0], removal=removal,
        tokenizer=tokenizer(), progress=False,
    )  # fmt: skip
    same(tuned.best.values, values, 1e-8)


@pytest.mark.parametrize("form", [*FORMS, "function"])
def test_relevance_of_one_target_is_that_of_the_number_of_the_logits(form: str) -> None:
    target, number = {**FORMS, "function": ([FUNCTION[0]], FUNCTION[1])}[form]
    found = lxt_fx.relevance_of(explained(), inputs(), target, tokenizer=tokenizer())
    assert found.shape == (1, 2, 5)
    same(found[0], by_hand(number)[1], IN_FLOAT32)


def test_relevance_of_takes_lists_of_all_forms_at_once() -> None:
    targets = [target for target, _ in FORMS.values()] + [FUNCTION[0]]
    expected = torch.stack([by_hand(number)[1] for number in [*(number for _, number in FORMS.values()), FUNCTION[1]]])
    found = lxt_fx.relevance_of(explained(), inputs(), targets, tokenizer=tokenizer(), chunk=4)
    same(found, expected, IN_FLOAT32)
    same(lxt_fx.relevance_of(explained(), inputs(), targets[:-1], tokenizer=tokenizer()), expected[:-1], IN_FLOAT32)


@pytest.mark.parametrize("listed", [torch.tensor([7, 9, 3]), numpy.array([7, 9, 3]), [7, 9, 3]])
def test_a_tensor_or_an_array_of_indices_is_a_list_of_targets(listed: Any) -> None:
    alone = torch.cat([lxt_fx.relevance_of(explained(), inputs(), entry) for entry in (7, 9, 3)])
    same(lxt_fx.relevance_of(explained(), inputs(), listed), alone)
    ledger = lxt_fx.audit(explained(), inputs(), listed[:2])
    expected = [by_hand(lambda row, last, entry=entry: row[last, entry])[0][row] for row, entry in enumerate((7, 9))]
    same(ledger.value, torch.stack(expected))


def test_in_explicit_form_a_difference_gives_each_logit_its_own_value() -> None:
    """The logits start with their values, of opposite signs: the difference of two single explanations."""
    module = explained("explicit")
    first, second, both = lxt_fx.relevance_of(module, inputs(), [7, 9, Target(7, minus=9)], reduce="none")
    same(both, first - second, IN_FLOAT32)
    difference = [lambda out: out.logits[:, 1, 7] - out.logits[:, 1, 9]]
    by_function = lxt_fx.relevance_of(module, inputs(), difference, reduce="none")
    same(lxt_fx.relevance_of(module, inputs(), Target.at(1, 7, minus=9), reduce="none"), by_function, IN_FLOAT32)


def test_the_head_runs_on_the_positions_of_the_targets_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []

    def spied(module: lxt_fx.Explained) -> Any:
        cut = split_model(module)
        assert cut is not None
        forward = cut.head.forward
        cut.head.forward = lambda rows: heads.append(rows.shape) or forward(rows)
        return cut

    monkeypatch.setattr("lxt_fx.attribution.many_targets.split_model", spied)
    targets = [Target.at(1, 7), (" Paris", " London"), "Paris", 7]
    lxt_fx.relevance_of(explained(), inputs(), targets, tokenizer=tokenizer())
    assert heads == [(2, 4, 32)]


def test_a_module_of_the_last_position_answers_there_and_nowhere_else() -> None:
    narrow = lxt_fx.transform(model(), rules="gradient", positions="last")
    ids = {"input_ids": inputs()["input_ids"][:1]}
    expected = lxt_fx.relevance_of(explained(), ids, [7, Target.at(4, 9)])
    for targets in ([7, 9], [Target.at(4, 7), Target.at(-1, 9)]):
        same(lxt_fx.relevance_of(narrow, ids, targets), expected, IN_FLOAT32)
    with pytest.raises(InputError, match="relevance_of: the target is at position 0, and this module .* at 4 only"):
        lxt_fx.relevance_of(narrow, ids, [Target.at(0, 7)])


# Classes


@functools.cache
def classifier() -> lxt_fx.Explained:
    return lxt_fx.transform(bert("classifier", len(word_tokenizer())), rules="gradient")


CLASSES: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "label": ("good", lambda row: row[2]),
    "index": (numpy.int64(2), lambda row: row[2]),
    "best": (None, lambda row: row.max()),
    "contrast": (("good", "bad"), lambda row: row[2] - row[0]),
    "contrast by index": (Target(torch.tensor(2), minus=0), lambda row: row[2] - row[0]),
}


@pytest.mark.parametrize("form", CLASSES)
def test_classes_are_named_by_the_config_in_every_function(form: str) -> None:
    target, number = CLASSES[form]
    ids = torch.tensor([[2, 9, 17, 3], [2, 11, 8, 3]])
    leaf = lxt_fx.embed(classifier(), ids)
    values = torch.stack([number(row) for row in classifier()(inputs_embeds=leaf).logits])
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    relevance, values = (leaf * gradient).sum(-1).double(), values.detach().double()
    same(lxt_fx.relevance_of(classifier(), {"input_ids": ids}, target)[0], relevance, 1e-5)
    same(lxt_fx.audit(classifier(), {"input_ids": ids}, target).value, values, 1e-5)
    curves = lxt_fx.perturbation_curves(classifier(), {"input_ids": ids}, relevance, target, removal=Removal(steps=1))
    same(curves.morf[:, 0], values, 1e-5)
    assert lxt_fx.explain(classifier(), word_tokenizer(), ids[0], target).value == pytest.approx(float(values[0]), rel=1e-5)


def test_labels_name_the_classes_of_many_targets() -> None:
    ids = {"input_ids": torch.tensor([[2, 9, 17, 3]])}
    named = lxt_fx.relevance_of(classifier(), ids, ["c", ("c", "a")], labels=("a", "b", "c"))
    same(named, lxt_fx.relevance_of(classifier(), ids, [2, Target(2, minus=0)]).double())


@pytest.mark.parametrize("target", [3, numpy.int64(3), torch.tensor(3), Target(3), "LABEL_3"])
def test_an_image_is_explained_for_every_form_of_a_class(target: Any) -> None:
    module = lxt_fx.transform(vit())
    pixels = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = lxt_fx.explain_image(module, pixels, target)
    assert found.value == pytest.approx(float(module(pixel_values=pixels[None]).logits[0, 3]), rel=1e-6)
    many = lxt_fx.relevance_of(module, pixels[None], target, reduce="channels")
    torch.testing.assert_close(many[0, 0], found.relevance)


# Texts of a decoder, and models without a text


def test_positions_of_an_encoder_decoder_are_those_that_the_decoder_reads() -> None:
    module = lxt_fx.transform(tiny.whisper())
    features, ids = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 5, 9]])
    given = {"input_features": features, "decoder_inputs_embeds": lxt_fx.embed(module, ids).detach()}
    logits = module(**given).logits[0]
    assert lxt_fx.audit(module, given, 7).value.item() == pytest.approx(float(logits[-1, 7]), rel=1e-6)
    assert lxt_fx.audit(module, given, Target.at(1, 7)).value.item() == pytest.approx(float(logits[1, 7]), rel=1e-6)
    found = lxt_fx.relevance_of(module, given, [7, Target.at(2, 7)], leaf="decoder_inputs_embeds")
    assert torch.equal(found[0], found[1]) and found.shape == (2, 1, 3)


def test_logits_of_no_text_need_a_position() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5))
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    module = lxt_fx.transform(net, (x,))
    for function in (lxt_fx.relevance_of, lxt_fx.audit):
        with pytest.raises(InputError, match=rf"{function.__name__}: .* no text says which is meant: give Target\.at"):
            function(module, x, 3)
    assert torch.allclose(lxt_fx.audit(module, x, Target.at(-1, 3)).value.float(), net(x)[:, 2, 3])
    with pytest.raises(InputError, match="audit: position 3 is not among the 3 positions of the logits"):
        lxt_fx.audit(module, x, Target.at(3, 3))


def test_a_masked_model_needs_its_ids_or_a_position() -> None:
    words = word_tokenizer()
    masked = lxt_fx.transform(bert("masked", len(words)))
    encoded = words("The capital of [MASK] is London", return_tensors="pt")
    ids = {"input_ids": encoded["input_ids"]}
    at_mask = lxt_fx.relevance_of(masked, ids, "paris", tokenizer=words)
    assert torch.equal(at_mask, lxt_fx.relevance_of(masked, ids, Target.at(4, "paris"), tokenizer=words))
    embeds = {"inputs_embeds": lxt_fx.embed(masked, ids["input_ids"])}
    with pytest.raises(InputError, match="relevance_of: the token ids are not known"):
        lxt_fx.relevance_of(masked, embeds, "paris", tokenizer=words)
    assert torch.equal(at_mask, lxt_fx.relevance_of(masked, embeds, Target.at(4, "paris"), tokenizer=words))


# Refusals, with the name of the function that was called


def everywhere(target: Any) -> dict[str, Callable[[], object]]:
    relevance = torch.ones(2, 5)
    return {
        "explain": lambda: lxt_fx.explain(explained(), tokenizer(), TEXT, target),
        "explain_image": lambda: lxt_fx.explain_image(lxt_fx.transform(vit()), torch.zeros(3, 8, 8), target),
        "relevance_of": lambda: lxt_fx.relevance_of(explained(), inputs(), [target], tokenizer=tokenizer()),
        "audit": lambda: lxt_fx.audit(explained(), inputs(), target, tokenizer=tokenizer()),
        "perturbation_curves": lambda: lxt_fx.perturbation_curves(
            explained(), inputs(), relevance, target, tokenizer=tokenizer()
        ),
        "tune": lambda: lxt_fx.tune(explained(), inputs(), target, tokenizer=tokenizer(), progress=False),
    }


BAD: dict[str, tuple[Any, str]] = {
    "a truth value": (True, r"True is a bool, not a target; give an index \(1 for True\)"),
    "a truth value of numpy": (numpy.bool_(True), "is a bool, not a target"),
    "a truth value of torch": (torch.tensor(False), "is a bool, not a target"),
    "the empty string": ("", "the empty string names no token and no class; give a name or an index"),
    "a float": (3.0, r"3\.0 is a value, not an index; give the index, such as logits\.argmax\(\)"),
    "a value of torch": (torch.tensor(3.0), "is a value, not an index"),
    "an object": (object(), "a target must be an index, a name, two of them for a contrast, a lxt_fx.Target or a function"),
    "a side of a contrast": (("Paris", True), "True is a bool"),
    "a part of a Target": (Target(7, minus=""), "the empty string names no token"),
    "a position": (Target.at(True, 7), "True is a bool, not a position"),
    "a position by name": (Target.at("last", 7), "a target must be an index"),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("function", everywhere(None))
def test_what_is_no_target_is_refused_in_the_name_of_the_function(function: str, bad: str) -> None:
    target, why = BAD[bad]
    with pytest.raises(InputError, match=f"^{function}: .*{why}"):
        everywhere(target)[function]()


@pytest.mark.parametrize("function", everywhere(None))
def test_an_entry_that_does_not_exist_is_refused_in_the_name_of_the_function(function: str) -> None:
    with pytest.raises(InputError, match=f"^{function}: there is no (token id|class) 1000; the model has"):
        everywhere(1000)[function]()


@pytest.mark.parametrize("several", [[3, 2], torch.tensor([3])])
def test_a_list_of_targets_is_an_axis_of_one_picture(several: Any) -> None:
    module, picture = lxt_fx.transform(vit()), torch.arange(192.0).view(3, 8, 8) / 192
    found = lxt_fx.explain_image(module, picture, several)
    assert found.axes == ("target", "row", "column") and len(found.numbers) == len(several)
    for index, (one, target) in enumerate(zip(found.numbers, several, strict=True)):
        alone = lxt_fx.explain_image(module, picture, target)
        assert one.said == alone.explained and one.value == pytest.approx(alone.value, rel=1e-5)
        same(found.relevance[index].double(), alone.relevance.double(), 1e-5)


@pytest.mark.parametrize("function", ["audit", "perturbation_curves", "tune"])
def test_a_list_has_one_target_for_each_example(function: str) -> None:
    with pytest.raises(InputError, match=f"^{function}: 3 targets for 2 examples; give one target, or a list with one"):
        everywhere([7, 9, 3])[function]()


@pytest.mark.parametrize("targets", [[(3, 7)], [[3, 7]], (3, 7), torch.tensor([[3, 7]]), [5, (numpy.int64(3), 7)]])
def test_a_pair_of_indices_in_relevance_of_names_both_readings(targets: Any) -> None:
    with pytest.raises(InputError) as refusal:
        lxt_fx.relevance_of(explained(), inputs(), targets)
    for reading in (
        "relevance_of: the pair (3, 7)", "Target.at(3, 7) for entry 7 at position 3", "until 0.2",
        "Target(3, minus=7) for logit 3 minus logit 7", "from 0.3 on", "Two targets are a list: [3, 7]",
    ):  # fmt: skip
        assert reading in str(refusal.value)


def test_names_of_tokens_need_a_tokenizer() -> None:
    for function in (lxt_fx.relevance_of, lxt_fx.audit):
        with pytest.raises(InputError, match=f"^{function.__name__}: ' Paris' needs its tokenizer .*: give tokenizer="):
            function(explained(), inputs(), " Paris")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda out: out.logits, "must return one number, or one for each example"),
        (lambda out: 3.0, "must return one number, or one for each example .*, got float"),
    ],
)
def test_a_function_in_a_list_gives_one_number(function: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        lxt_fx.relevance_of(explained(), inputs(), [7, function])


@pytest.mark.parametrize("answer", [7, numpy.int64(7), torch.tensor(7), [7], numpy.array([7]), torch.tensor([[7]])])
def test_an_answer_is_a_text_or_ids_of_any_kind(answer: Any) -> None:
    found = lxt_fx.answer_relevance(explained(), None, [5, 9, 11], answer)
    assert found.input_ids == (5, 9, 11, 7) and found.relevance.shape == (1, 4)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (True, "must be a string or token ids, got values of torch.bool"),
        (3.0, "must be a string or token ids, got values of torch.float32"),
        ("", "at least one token"),
        ((" Paris", " London"), "is a text or token ids, .* lxt_fx.relevance_of takes targets of other kinds"),
        (Target(7), "is a text or token ids"),
        (torch.tensor([[7], [9]]), r"one answer of at least one token is explained, got \[2, 1\] token ids"),
    ],
)
def test_what_is_no_answer_is_refused(answer: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^answer_relevance: .*{said}"):
        lxt_fx.answer_relevance(explained(), tokenizer(), [5, 9, 11], answer)
