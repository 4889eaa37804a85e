"""Functions that need an explained module take a model, and functions that take a model take an explained module."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_text import bert, byte_tokenizer, llama, vit, word_tokenizer
from torch import Tensor, nn

import lxt_fx
from lxt_fx import InputError
from lxt_fx.rule_table import basic_rules as basic
from lxt_fx.rule_table.linear_rules import gamma, z_box
from lxt_fx.rule_table.tables import attnlrp_gamma

pytestmark = pytest.mark.usefixtures("remembered_captures")

TEXT = "The capital of France is"
IDS = torch.tensor([[5, 9, 17, 23], [7, 3, 11, 2]])


@functools.cache
def tokenizer() -> Any:
    return byte_tokenizer()


@functools.cache
def text_model() -> nn.Module:
    return llama(len(tokenizer()))


@functools.cache
def text_explained(rules: str = "attnlrp") -> lxt_fx.Explained:
    return lxt_fx.transform(text_model(), rules=rules)


def text_under(rules: Any) -> lxt_fx.Explained:
    """The module under other rules, without a capture of its own."""
    return lxt_fx.transform(text_explained(), kwargs={"input_ids": IDS}, rules=rules)


def same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


# A model where an explained module is needed


@pytest.mark.parametrize("inputs", [{"input_ids": IDS}, {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}])
def test_a_language_model_is_audited_and_explained_for_many_targets_as_its_module_is(inputs: dict[str, Tensor]) -> None:
    model = tiny.llama(layers=1)
    module = lxt_fx.transform(model)
    same(lxt_fx.relevance_of(model, inputs, [7, 9]), lxt_fx.relevance_of(module, inputs, [7, 9]))
    ledger = lxt_fx.audit(model, inputs, 7)
    ledger.check()
    assert ledger.table_name == "attnlrp"
    same(ledger.sources[0].by_token(), lxt_fx.audit(module, inputs, 7).sources[0].by_token())


def test_ids_embeddings_and_plain_inputs_are_taken_in_order_too() -> None:
    model = tiny.llama(layers=1)
    explained = lxt_fx.transform(model)
    expected = lxt_fx.relevance_of(explained, {"input_ids": IDS}, 7)
    same(lxt_fx.relevance_of(model, IDS, 7), expected)
    same(lxt_fx.relevance_of(explained, IDS, 7), expected)
    same(lxt_fx.relevance_of(model, lxt_fx.embed(model, IDS), 7), expected)
    net, x = tiny.Mlp(), torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
    module = lxt_fx.transform(net, (x,))
    same(lxt_fx.relevance_of(net, x, [0, 2]), lxt_fx.relevance_of(module, x, [0, 2]))
    for given in (x, (x,), {"x": x}):
        lxt_fx.audit(net, given, 2).check()
        assert torch.equal(lxt_fx.audit(net, given, 2).value, lxt_fx.audit(module, given, 2).value)


def test_a_transformers_model_has_a_certificate_and_another_needs_its_module() -> None:
    model = tiny.llama(layers=1)
    assert lxt_fx.certificate(model).counts == lxt_fx.certificate(lxt_fx.transform(model)).counts
    with pytest.raises(InputError, match=r"^certificate: Mlp was not made by .* lxt_fx.transform\(model, \(x,\)\) returns"):
        lxt_fx.certificate(tiny.Mlp())
    with pytest.raises(InputError, match="^certificate: model must be a torch.nn.Module, got str"):
        lxt_fx.certificate("model")  # type: ignore[arg-type]


def test_a_model_has_no_graph_to_show_or_watch() -> None:
    model = tiny.llama(layers=1)
    for function, call in (
        ("show", lambda: lxt_fx.show(model)),
        ("diff", lambda: lxt_fx.diff(model, "canonical", "rules")),
        ("watch", lambda: lxt_fx.watch(model, "model.layers.*").__enter__()),
    ):
        with pytest.raises(InputError, match=f"^{function}: LlamaForCausalLM was not made by .* and has no graph"):
            call()


@pytest.mark.parametrize(
    ("function", "more"),
    [
        ("audit", [IDS, 7]),
        ("relevance_of", [IDS, 7]),
        ("answer_relevance", [None, [5, 9], [7]]),
        ("explain", [None, [5, 9]]),
        ("explain_image", [torch.zeros(3, 8, 8)]),
    ],
)
def test_what_is_no_module_is_refused(function: str, more: list[Any]) -> None:
    said = "(torch.nn.Module, got str|loaded model, got the string)"
    with pytest.raises(InputError, match=f"^{function}: model must be a {said}"):
        getattr(lxt_fx, function)("model", *more)


# An explained module where a model is taken


def test_an_explained_module_serves_as_it_is() -> None:
    words, pixels = word_tokenizer(), torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    classifier, images = bert("classifier", len(words)), vit()
    pairs = (
        (lambda m: lxt_fx.explain(m, tokenizer(), TEXT).relevance, text_model()),
        (lambda m: lxt_fx.explain(m, words, "play", "good").relevance, classifier),
        (lambda m: lxt_fx.explain_image(m, pixels, 3).relevance, images),
        (lambda m: lxt_fx.answer_relevance(m, None, [5, 9], [7, 3]).relevance, text_model()),
        (lambda m: lxt_fx.perturbation_curves(m, pixels[None], pixels[None], 3).morf, images),
        (lambda m: lxt_fx.tune(m, pixels[None], 3, grid={"linear": [0, 0.1]}, progress=False).best.values, images),
        (lambda m: lxt_fx.embed(m, IDS).detach(), text_model()),
        (lambda m: lxt_fx.audit(m, {"input_ids": IDS}, 7).value, text_model()),
    )
    modules = {model: lxt_fx.transform(model) for model in (text_model(), classifier, images)}
    for call, model in pairs:
        same(call(modules[model]), call(model))


def calls(rules: Any) -> dict[str, Any]:
    return {
        "explain": lambda m: lxt_fx.explain(m, tokenizer(), TEXT, rules=rules),
        "answer_relevance": lambda m: lxt_fx.answer_relevance(m, None, [5, 9], [7, 3], rules=rules),
    }


@pytest.mark.parametrize("function", calls(None))
@pytest.mark.parametrize("rules", ["cp_lrp", "gradient"])
def test_an_explained_module_is_put_under_the_rules_that_are_given(function: str, rules: str) -> None:
    call = calls(rules)[function]
    found = call(text_explained())
    assert found.table_name == rules
    same(found.relevance, call(text_model()).relevance)
    assert text_explained().record.table_name == "attnlrp"


def test_an_image_is_explained_under_other_rules_by_an_explained_module() -> None:
    model, pixels = vit(), torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    module = lxt_fx.transform(model, rules="gradient")
    found = lxt_fx.explain_image(module, pixels, 3, rules="attnlrp")
    same(found.relevance, lxt_fx.explain_image(model, pixels, 3).relevance)


def test_tables_of_one_name_are_told_apart() -> None:
    """Gammas have one name for all their values: the name alone would leave the module as it was, silently."""
    module = text_under(attnlrp_gamma(linear=0.0))
    other = attnlrp_gamma(linear=1.0)
    found = lxt_fx.explain(module, tokenizer(), TEXT, 7, rules=other)
    expected = lxt_fx.explain(text_model(), tokenizer(), TEXT, 7, rules=other)
    same(found.relevance, expected.relevance)
    before = lxt_fx.explain(module, tokenizer(), TEXT, 7).relevance
    assert float((found.relevance - before).abs().max()) > 3e-4 * float(before.abs().max())
    overridden = text_under({"model.layers.0.mlp": lxt_fx.rules.Stop()})
    plain = lxt_fx.explain(overridden, tokenizer(), TEXT, 7, rules="attnlrp")
    same(plain.relevance, lxt_fx.explain(text_model(), tokenizer(), TEXT, 7).relevance)


def test_a_module_that_has_the_rules_is_not_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_again(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("transformed again")

    monkeypatch.setattr("lxt_fx.attribution.as_explained.transform", not_again)
    for rules in ("attnlrp", lxt_fx.TABLES["attnlrp"]):
        assert lxt_fx.explain(text_explained(), tokenizer(), TEXT, rules=rules).table_name == "attnlrp"


def test_a_file_holds_no_table_to_compare_rules_with(tmp_path: Path) -> None:
    lxt_fx.save(text_explained(), tmp_path / "llama.safetensors")
    loaded = lxt_fx.load(tmp_path / "llama.safetensors")
    for rules in ("cp_lrp", "attnlrp"):
        with pytest.raises(InputError, match=f"rules='{rules}': this module was loaded from a file"):
            lxt_fx.explain(loaded, tokenizer(), TEXT, rules=rules)
    assert lxt_fx.explain(loaded, tokenizer(), TEXT).table_name == "attnlrp"


LINEAR = torch.nn.Linear
ALIKE: dict[str, tuple[Any, Any]] = {
    "another epsilon": ({LINEAR: gamma(0.25, epsilon=1e-9)}, {LINEAR: gamma(0.25, epsilon=0.5)}),
    "other bounds": ({LINEAR: z_box(-1.0, 1.0)}, {LINEAR: z_box(-9.0, 1.0)}),
    "a rule tried before": (
        lxt_fx.TABLES["attnlrp"], lxt_fx.TABLES["attnlrp"].with_rules("attnlrp", basic.GATE_HELD, summary="")
    ),
    "an epsilon put in": (
        lxt_fx.TABLES["epsilon"],
        replace(lxt_fx.TABLES["epsilon"], rules=tuple(replace(r, epsilon=0.5) for r in lxt_fx.TABLES["epsilon"].rules)),
    ),
}  # fmt: skip
"""Tables of one name whose rules have the same names and formulas."""


@pytest.mark.parametrize("case", ALIKE)
def test_tables_that_look_alike_are_told_apart(case: str) -> None:
    first, second = ALIKE[case]
    module = text_under(first)
    found = lxt_fx.explain(module, tokenizer(), TEXT, 7, rules=second).relevance
    expected = lxt_fx.explain(text_under(second), tokenizer(), TEXT, 7).relevance
    torch.testing.assert_close(found, expected)
    own = lxt_fx.explain(module, tokenizer(), TEXT, 7).relevance
    assert (own - expected).abs().max() > 1e-3 * expected.abs().max()  # the case can fail


def test_the_form_of_an_explained_module_stays_under_other_rules() -> None:
    exact = lxt_fx.transform(text_model(), form="explicit", rules="gradient")
    found = lxt_fx.explain(exact, tokenizer(), TEXT, 7, rules="attnlrp")
    expected = lxt_fx.explain(lxt_fx.transform(text_model(), form="explicit"), tokenizer(), TEXT, 7)
    torch.testing.assert_close(found.relevance, expected.relevance)
