"""A name of several tokens means the sum of their log-probabilities, each given those before it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_text import bert, byte_tokenizer, llama, sentence_tokenizer, word_tokenizer
from torch import Tensor, nn

import lxt_fx
from lxt_fx import InputError, Target
from lxt_fx.attribution.target_names import TokenNames
from lxt_fx.compiler import call_capture

TEXT = "The capital of France is"
SEVERAL = (" Parisian", " London is Rome", "🦙", " San Francisco")


@functools.cache
def tokenizer() -> Any:
    return byte_tokenizer()


@functools.cache
def model() -> nn.Module:
    return llama(len(tokenizer())).double()


@functools.cache
def module(rules: str = "attnlrp") -> lxt_fx.Explained:
    return lxt_fx.transform(model(), rules=rules)


def forced(name: str, text: str = TEXT, of: Any = None) -> tuple[Tensor, Tensor, list[int]]:
    """log p(name | text) by one forward for each of its tokens, input * gradient of the sum at the text with the tokens but
    the last, and the ids of the whole."""
    of = of or model()
    prompt, answer = (tokenizer().encode(part, add_special_tokens=False) for part in (text, name))
    leaf = lxt_fx.embed(of, torch.tensor([[*prompt, *answer[:-1]]]))
    total: Tensor = torch.zeros(())
    for step, token in enumerate(answer):
        logits = of(inputs_embeds=leaf[:, : len(prompt) + step]).logits[0, -1]
        total = total + logits.log_softmax(-1)[token]
    (gradient,) = torch.autograd.grad(total, leaf)
    return total.detach(), (leaf * gradient).detach()[0], [*prompt, *answer]


@pytest.mark.parametrize("name", SEVERAL)
def test_the_value_and_the_plain_gradient_are_those_of_a_forward_for_each_token(name: str) -> None:
    value, attribution, ids = forced(name)
    assert len(ids) - 5 > 1
    for subject in (model(), module("gradient")):
        rules = None if isinstance(subject, lxt_fx.Explained) else "gradient"
        found = lxt_fx.explain(subject, tokenizer(), TEXT, name, rules=rules)
        assert found.value == pytest.approx(float(value), rel=1e-9)
        assert found.input_ids == tuple(ids[:-1]) and found.answer_tokens == len(ids) - 6
        largest = float(attribution.abs().max())
        torch.testing.assert_close(found.attribution, attribution, rtol=0, atol=1e-6 * largest)  # norms are in float32


def test_the_graph_answers_at_the_positions_of_the_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    compiled_by = call_capture.compiled_by
    monkeypatch.setattr(call_capture, "compiled_by", lambda *args: asked.append(args[2].positions) or compiled_by(*args))
    found, whole = (lxt_fx.explain(subject, tokenizer(), TEXT, " Parisian") for subject in (model(), module()))
    assert asked == [(-3, -2, -1)] and found.answer_tokens == 2
    assert found.value == pytest.approx(whole.value, rel=1e-9)
    torch.testing.assert_close(found.relevance, whole.relevance, rtol=1e-5, atol=1e-9)


def test_the_sentence_names_every_token_and_what_stands_before() -> None:
    found = lxt_fx.explain(module(), tokenizer(), TEXT, " Parisian")
    assert found.explained == (
        "log-probability of ' Paris' + 'i' + 'an', each given those before, at position 4, after ' is'"
    )
    assert found.tokens == ("The", " capital", " of", " France", " is", " Paris", "i")


def test_of_two_spellings_the_likelier_is_meant() -> None:
    spaced, bare = (float(forced(name)[0]) for name in (" Parisian", "Parisian"))
    assert spaced != bare
    found = lxt_fx.explain(module(), tokenizer(), TEXT, "Parisian")
    assert found.value == pytest.approx(max(spaced, bare), rel=1e-9)
    assert lxt_fx.explain(module(), tokenizer(), TEXT, " Parisian").value == pytest.approx(spaced, rel=1e-9)


def test_a_name_of_one_token_stays_a_logit() -> None:
    found = lxt_fx.explain(module(), tokenizer(), TEXT, " Paris")
    assert found.explained.startswith("logit of ' Paris'") and found.answer_tokens == 0


def test_masks_and_positions_go_on_behind_the_text() -> None:
    ids = tokenizer()(TEXT, return_tensors="pt")["input_ids"]
    padded = {
        "input_ids": torch.cat([torch.zeros(1, 2, dtype=torch.long), ids], dim=1),
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1]]),
        "position_ids": torch.tensor([[0, 0, 0, 1, 2, 3, 4]]),
    }
    found = lxt_fx.explain(module(), tokenizer(), padded, " Parisian")
    alone = lxt_fx.explain(module(), tokenizer(), TEXT, " Parisian")
    assert found.value == pytest.approx(alone.value, rel=1e-9)
    torch.testing.assert_close(found.relevance, alone.relevance, rtol=1e-5, atol=1e-9)
    assert found.tokens == alone.tokens


def test_views_mark_where_the_name_begins(tmp_path: Path) -> None:
    found = lxt_fx.explain(module(), tokenizer(), TEXT, " Parisian")
    found.to_json(tmp_path / "why.json")
    found.to_png(tmp_path / "why.png")
    assert "▸Paris" in str(found) and "▸Paris" in found._repr_html_()
    read = json.loads((tmp_path / "why.json").read_text(encoding="utf-8"))
    assert read["answer_tokens"] == 2 and read["tokens"][5:] == [" Paris", "i"]
    assert sum(read["relevance"]) == pytest.approx(read["sum"], rel=1e-5)
    assert "▸" not in str(lxt_fx.explain(module(), tokenizer(), TEXT, " Paris"))


def test_a_tokenizer_that_puts_a_space_in_front_spells_no_second_one() -> None:
    sentences = sentence_tokenizer()
    text = llama(len(sentences)).double()
    names = TokenNames(sentences, "explain")
    assert names.single(" Paris") == (sentences.convert_tokens_to_ids("▁Paris"),) * 2
    spellings = names.several("Paris is", sentences.encode("is", add_special_tokens=False)[-1])
    assert [sentences.convert_ids_to_tokens(ids) for ids in spellings] == [["▁Paris", "▁", "is"]]
    for name in ("Paris is", " Paris is"):
        found = lxt_fx.explain(text, sentences, TEXT, name)
        assert found.answer_tokens == 2 and found.tokens[-2] == " Paris" and "of ' Paris' + " in found.explained


# Refusals


def test_a_contrast_of_names_of_several_tokens_is_refused_with_a_way_out() -> None:
    for contrast in ((" Parisian", " London"), (" London", " Parisian"), Target(7, minus=" Parisian")):
        with pytest.raises(InputError, match="^explain: ' Parisian' is not one token .*: ' Paris' 'i' 'an'") as no:
            lxt_fx.explain(module(), tokenizer(), TEXT, contrast)
        assert "in a contrast give one of the pieces, or explain both names, each alone, and compare" in str(no.value)


@pytest.mark.parametrize("function", ["relevance_of", "audit", "perturbation_curves", "tune"])
def test_other_functions_point_to_those_that_take_such_a_name(function: str) -> None:
    inputs = tokenizer()(TEXT, return_tensors="pt")
    given: dict[str, Any] = {"tokenizer": tokenizer()}
    more = [torch.ones(1, 5)] if function == "perturbation_curves" else []
    given |= {"progress": False} if function == "tune" else {}
    with pytest.raises(InputError, match=f"^{function}: ' Parisian' is not one.*lxt_fx.explain takes .*answer_relevance"):
        getattr(lxt_fx, function)(module(), {"input_ids": inputs["input_ids"]}, *more, " Parisian", **given)


def test_the_name_stands_behind_the_last_token() -> None:
    with pytest.raises(InputError, match="is several tokens, explained only after the last .* position 1 is not"):
        lxt_fx.explain(module(), tokenizer(), TEXT, Target.at(1, " Parisian"))
    same = [lxt_fx.explain(module(), tokenizer(), TEXT, Target.at(at, " Parisian")) for at in (4, -1)]
    assert same[0].value == same[1].value
    padded = dict(tokenizer()(TEXT, return_tensors="pt")) | {"attention_mask": torch.tensor([[1, 1, 1, 1, 0]])}
    found, alone = (lxt_fx.explain(module(), tokenizer(), text, " Parisian") for text in (padded, "The capital of France"))
    assert found.value == pytest.approx(alone.value, rel=1e-9) and found.tokens == alone.tokens
    torch.testing.assert_close(found.relevance, alone.relevance, rtol=1e-5, atol=1e-9)


def test_a_name_that_makes_the_text_too_long_is_refused_before_work() -> None:
    short = llama(len(tokenizer()))
    short.config.max_position_embeddings = 6
    with pytest.raises(InputError, match="which makes 7 tokens, but LlamaForCausalLM has positions for 6; shorten"):
        lxt_fx.explain(short, tokenizer(), TEXT, " Parisian")
    with pytest.raises(InputError, match="the text has 9 tokens, but LlamaForCausalLM has positions for 6; shorten"):
        lxt_fx.explain(short, tokenizer(), torch.arange(9))


def test_a_narrow_module_does_not_answer_before_its_last_position() -> None:
    narrow = lxt_fx.transform(model(), positions="last")
    with pytest.raises(InputError, match="the target is at position 4, and this module was made to answer at 6 only"):
        lxt_fx.explain(narrow, tokenizer(), TEXT, " Parisian")


def test_a_model_that_looks_ahead_gives_no_such_probability() -> None:
    class LooksAhead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(len(tokenizer()), 8), nn.Linear(8, len(tokenizer()))

        def get_input_embeddings(self) -> nn.Embedding:
            return self.embedding

        def forward(self, inputs_embeds: Tensor) -> Tensor:
            out: Tensor = self.head(inputs_embeds + inputs_embeds.mean(1, keepdim=True))
            return out

    torch.manual_seed(0)
    with pytest.raises(InputError, match="^explain: LooksAhead looks ahead, so it gives no probability of a token"):
        lxt_fx.explain(LooksAhead(), tokenizer(), TEXT, " Parisian")


def test_masked_models_and_classifiers_have_no_such_names() -> None:
    words = word_tokenizer()
    with pytest.raises(InputError, match="A logit belongs to one token: explain one of the pieces"):
        lxt_fx.explain(bert("masked", len(words)), words, "the [MASK]", "paris london")
    with pytest.raises(InputError, match="no class 'very good'; its classes are 'bad', 'fair', 'good'"):
        lxt_fx.explain(bert("classifier", len(words)), words, "play", "very good")

    class OwnClassifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(len(tokenizer()), 8), nn.Linear(8, 2)

        def get_input_embeddings(self) -> nn.Embedding:
            return self.embedding

        def forward(self, inputs_embeds: Tensor) -> Tensor:
            out: Tensor = self.head(inputs_embeds.mean(1))
            return out

    net = OwnClassifier()
    assert lxt_fx.explain(net, tokenizer(), TEXT, "very good", labels=("bad", "very good")).answer_tokens == 0
    with pytest.raises(InputError, match="has no class 'very bad'; its classes are 'bad', 'very good'"):
        lxt_fx.explain(net, tokenizer(), TEXT, "very bad", labels=("bad", "very good"))
