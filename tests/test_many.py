"""Many targets from one forward: each gets what a call of its own gives it, and answers read only what came before."""

from __future__ import annotations

import functools
import gc
import json
import math
import weakref
from typing import Any

import pytest
import tiny
import torch
from saved import saved_bytes
from shared_captures import each_model
from shared_captures import explained as compiled
from torch import Tensor

import lxt_fx
from lxt_fx.attribution import many_targets as many
from lxt_fx.attribution import through_head
from lxt_fx.attribution.split_head import split_model
from lxt_fx.views.terminal import plain

pytestmark = pytest.mark.usefixtures("captures_in_files")

TOKENS = 6
PLACES = [(2, 5), (-1, 7), (0, 3), (2, 6), (5, 7)]
PAIRS = [lxt_fx.Target.at(position, entry) for position, entry in PLACES]
CLASSES = [1, 0, 1]


@functools.cache
def explained(name: str, form: str = "gradient", attention: str = "sdpa") -> lxt_fx.Explained:
    return compiled(name, torch.float64, attention, form=form, epsilon=0.0)


def leaf_of(module: lxt_fx.Explained) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if module.record.leaves == ("pixel_values",):
        return torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=generator)
    return lxt_fx.embed(module, torch.randint(3, 60, (2, TOKENS), generator=generator)).detach()


def one_by_one(module: lxt_fx.Explained, x: Tensor, targets: list) -> Tensor:
    """Forward and backward for each target alone, by hand."""
    found = []
    for target in targets:
        leaf = x.clone().requires_grad_(True)
        logits = module(leaf).logits
        values = logits[:, target] if isinstance(target, int) else logits[:, target.position, target.token]
        if module.record.form == "gradient":
            (gradient,) = torch.autograd.grad(values.sum(), leaf)
            found.append(gradient * leaf.detach())
        else:
            found.extend(torch.autograd.grad(values, leaf, values.detach()))
    return torch.stack(found)


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * float(expected.abs().max()))


IN_FLOAT32 = 1e-7
"""Eager attention computes its softmax in float32, in float64 models too; a batched backward sums in another order."""


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("name", each_model(["llama", "gemma3", "gpt2", "bert", "vit"]))
def test_every_target_gets_what_a_call_of_its_own_gives_it(name: str, form: str) -> None:
    module = explained(name, form)
    x = leaf_of(module)
    targets = CLASSES if name in ("bert", "vit") else PAIRS
    expected = one_by_one(module, x, targets)
    assert_same(many.relevance_of(module, x, targets, reduce="none"), expected)
    assert_same(many.relevance_of(module, x, targets, reduce="none", chunk=1), expected)
    assert_same(many.relevance_of(module, x, targets, reduce="none", chunk=2), expected)


def test_eager_attention_gives_the_same_as_one_by_one() -> None:
    module = explained("llama", attention="eager")
    x = leaf_of(module)
    assert_same(many.relevance_of(module, x, PAIRS, reduce="none"), one_by_one(module, x, PAIRS), IN_FLOAT32)


@pytest.mark.parametrize("name", each_model(["llama", "gemma3", "gpt2"]))
def test_the_head_of_a_language_model_is_cut_off(name: str) -> None:
    module = explained(name)
    cut = split_model(module)
    assert cut is not None
    x = leaf_of(module)
    states, _ = cut.body(**module._prepared((x,), {})[1] | {"inputs_embeds": x})
    assert states.shape == (2, TOKENS, 32)
    assert_same(cut.head(states), module(x).logits)


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("at_once", [1, 2])
def test_the_head_runs_for_a_part_of_the_targets_after_another(
    monkeypatch: pytest.MonkeyPatch, form: str, at_once: int
) -> None:
    """Parts of one and of two targets: entries and contrasts, answers of two lengths, targets that differ by example."""
    module = explained("llama", form)
    x, ids = leaf_of(module), torch.tensor([[5, 9, 11, 30], [12, 44, 7, 3]])
    targets = [*PAIRS, lxt_fx.Target(3, minus=7), lxt_fx.Target.at(-2, 5)]

    def asked() -> list[Any]:
        answers = lxt_fx.answer_relevance(module, None, [PROMPT, PROMPT], [ANSWER, [3]])
        contrast = lxt_fx.answer_relevance(module, None, PROMPT, ANSWER, contrast=7)
        several = lxt_fx.explain(module, None, {"input_ids": ids}, [[3, 4, (5, 6)], [7, 8, 9]])
        found = [many.relevance_of(module, x, targets, reduce="none")]
        return [*found, *(each.relevance for each in (*answers, contrast, *several)), contrast.numbers, several[1].numbers]

    whole, cut = asked(), split_model(module)
    assert cut is not None
    seen = list[int]()
    hook = cut.head.register_forward_hook(lambda head, args, logits: seen.append(logits.shape[1]))
    monkeypatch.setattr(through_head, "MEMORY", at_once * 2 * 8 * cut.entries)  # of two examples in float64
    try:
        parts = asked()
    finally:
        hook.remove()
    assert max(seen) <= 2 * at_once and len(seen) > 8
    for expected, found in zip(whole, parts, strict=True):
        if isinstance(expected, Tensor):
            assert_same(found, expected)
        else:
            assert [number.said for number in found] == [number.said for number in expected]


def test_a_module_that_recomputes_its_layers_does_so_for_many_targets() -> None:
    module = explained("llama")
    x = leaf_of(module)
    lean = compiled("llama", torch.float64, checkpoint="layers")
    assert_same(many.relevance_of(lean, x, PAIRS, chunk=2), many.relevance_of(module, x, PAIRS, chunk=2), IN_FLOAT32)
    saved = {
        name: saved_bytes(split_model(found).body, found._prepared((x,), {})[1])
        for name, found in (("whole", module), ("lean", lean))
    }
    assert 0 < saved["lean"] < 0.3 * saved["whole"]


def test_the_parts_of_a_module_are_made_once_follow_its_tensors_and_go_with_it() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 5)).eval()
    module, x = lxt_fx.transform(net, (torch.randn(2, 3, 4),)), torch.randn(2, 3, 4)
    cut = split_model(module)
    assert cut is not None and split_model(module) is cut
    with torch.no_grad():
        net[0].weight.mul_(2)  # a value written in place counts
    assert_same(cut.head(cut.body(x)[0]), net(x))
    name, old = next((n, p) for n, p in module.named_parameters() if p.shape == (4, 4))
    owner = module.get_submodule(name.rpartition(".")[0])
    setattr(owner, name.rpartition(".")[2], torch.nn.Parameter(old.detach() * 3))  # as where a loaded module moves
    again = split_model(module)
    assert again is not None and again is not cut
    assert not torch.allclose(again.body(x)[0], cut.body(x)[0])
    gone = weakref.ref(module)
    del module, owner
    gc.collect()
    assert gone() is None


def test_nothing_is_cut_off_behind_what_mixes_positions() -> None:
    class MixedBehind(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.head(x)
            return logits + logits.mean(1, keepdim=True)

    torch.manual_seed(0)
    module = lxt_fx.transform(MixedBehind(), (torch.randn(2, 3, 4),))
    assert split_model(module) is None
    x = torch.randn(2, 3, 4)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(module(leaf)[:, 1, 2].sum(), leaf)
    found = many.relevance_of(module, x, [lxt_fx.Target.at(1, 2), lxt_fx.Target.at(0, 0)], reduce="none")
    torch.testing.assert_close(found[0], gradient * x)


@pytest.mark.parametrize("form", ["gradient", "explicit"])
def test_a_function_gives_a_vector_of_numbers(form: str) -> None:
    module = explained("llama", form)
    x = leaf_of(module)[:1]
    contrasts = many.relevance_of(module, x, lambda out: out.logits[0, -1, :4] - out.logits[0, -1, 4:8], reduce="none")
    alone = one_by_one(module, x, [lxt_fx.Target.at(-1, entry) for entry in range(8)])
    # the model's norms compute in float32, so a difference of two relevances has their rounding
    torch.testing.assert_close(contrasts, alone[:4] - alone[4:], rtol=0, atol=1e-6 * float(contrasts.abs().max()))


def test_what_is_summed_is_for_the_caller_to_say() -> None:
    text, image = explained("llama"), explained("vit")
    x, pixels = leaf_of(text), leaf_of(image)
    whole = many.relevance_of(text, x, PAIRS, reduce="none")
    assert whole.shape == (5, 2, TOKENS, 32)
    assert_same(many.relevance_of(text, x, PAIRS), whole.sum(-1))
    whole = many.relevance_of(image, pixels, CLASSES, reduce="none")
    assert whole.shape == (3, 2, 1, 8, 8)
    assert_same(many.relevance_of(image, {"pixel_values": pixels}, torch.tensor(CLASSES), reduce="channels"), whole.sum(2))


def test_token_ids_and_masks_are_taken_by_name() -> None:
    module = explained("llama")
    ids = torch.tensor([[5, 9, 11, 30], [7, 7, 12, 40]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    found = many.relevance_of(module, {"input_ids": ids, "attention_mask": mask}, [3, 4])
    leaf = lxt_fx.embed(module, ids)
    (gradient,) = torch.autograd.grad(module(inputs_embeds=leaf, attention_mask=mask).logits[:, -1, 4].sum(), leaf)
    assert_same(found[1], (leaf * gradient).detach().sum(-1))


def test_gradients_and_grad_mode_of_the_caller_are_left_alone() -> None:
    module = explained("llama")
    x = leaf_of(module).requires_grad_(True)
    with torch.no_grad():
        found = many.relevance_of(module, x, PAIRS)
        assert not torch.is_grad_enabled()
    assert not found.requires_grad and x.grad is None
    assert all(parameter.grad is None for parameter in module.parameters())


def test_a_chunk_shrinks_with_what_the_forward_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    module = explained("llama")
    x, sizes = leaf_of(module), []
    backward = many.backward
    monkeypatch.setattr(many, "backward", lambda *args: sizes.append(len(args[2][0])) or backward(*args))
    many.relevance_of(module, x, PAIRS)
    assert sizes == [5]
    largest = 2 * TOKENS * 64 * 8  # the widest values are the MLP's 48 and the attention's 32 columns: below 64
    monkeypatch.setattr(many, "MEMORY", 2 * many.ALIVE * largest)
    sizes.clear()
    many.relevance_of(module, x, PAIRS)
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        ([], "no targets"),
        ([lxt_fx.Target.at(9, 1)], "position 9"),
        ([lxt_fx.Target.at(0, 64)], "there is no token id 64"),
        ([(0, 1, 2)], "a tuple is a contrast of two, and several targets are a list"),
        (lambda out: out.logits, "vector"),
        (lambda out: out.logits[0, 0].detach(), "differentiable path"),
    ],
)
def test_targets_that_do_not_fit_are_refused(targets: object, said: str) -> None:
    module = explained("llama")
    with pytest.raises(lxt_fx.InputError, match=said):
        many.relevance_of(module, leaf_of(module), targets)


def test_positions_of_a_classifier_are_refused() -> None:
    module = explained("bert")
    with pytest.raises(lxt_fx.InputError, match="without a position"):
        many.relevance_of(module, leaf_of(module), [lxt_fx.Target.at(0, 1)])


def test_a_relevance_that_is_not_finite_is_refused() -> None:
    module = explained("llama")
    x = leaf_of(module)
    x[0, 1, 3] = math.inf
    with pytest.raises(lxt_fx.NonFiniteError, match="relevance_of"):
        many.relevance_of(module, x, PAIRS)


PROMPT, ANSWER = [5, 9, 11, 30], [12, 44, 7]


@pytest.mark.parametrize("form", ["gradient", "explicit"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_each_token_of_an_answer_has_the_relevance_of_its_logit_one_position_earlier(form: str, attention: str) -> None:
    module = explained("llama", form, attention)
    answer = lxt_fx.answer_relevance(module, None, PROMPT, ANSWER)
    assert answer.relevance.shape == (3, 7) and answer.of_prompt().shape == (3, 4)
    for index, token in enumerate(ANSWER):
        ids = torch.tensor([PROMPT + ANSWER[:index]])  # what the model had read when it said the token, and no more
        leaf = lxt_fx.embed(module, ids)
        logit = module(leaf).logits[0, -1, token]
        seed = torch.ones_like(logit) if form == "gradient" else logit.detach()
        (found,) = torch.autograd.grad(logit, leaf, seed)
        expected = (found * leaf.detach() if form == "gradient" else found).sum(-1)[0]
        assert_same(answer.relevance[index, : len(expected)], expected, IN_FLOAT32 if attention == "eager" else 1e-9)
        assert float(answer.logits[index]) == pytest.approx(float(logit), rel=1e-9)
        assert bool((answer.relevance[index, len(expected) :] == 0).all())


def test_an_answer_of_the_model_itself_is_explained_like_that_of_the_module() -> None:
    model = tiny.gemma3().double()
    answer = lxt_fx.answer_relevance(model, None, torch.tensor([PROMPT]), torch.tensor([ANSWER]))
    module = lxt_fx.answer_relevance(lxt_fx.transform(model), None, PROMPT, ANSWER, chunk=1)
    assert_same(answer.relevance, module.relevance)
    assert answer.input_ids == (*PROMPT, *ANSWER)


def test_a_model_that_looks_ahead_has_no_answers() -> None:
    class LooksAhead(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = torch.nn.Embedding(64, 8), torch.nn.Linear(8, 64)

        def get_input_embeddings(self) -> torch.nn.Embedding:
            return self.embedding

        def forward(self, inputs_embeds: Tensor) -> Tensor:
            return self.head(inputs_embeds + inputs_embeds.mean(1, keepdim=True))

    torch.manual_seed(0)
    with pytest.raises(lxt_fx.InputError, match="looks ahead"):
        lxt_fx.answer_relevance(LooksAhead(), None, PROMPT, ANSWER)


def test_the_padding_of_a_prompt_does_not_show() -> None:
    alone = lxt_fx.answer_relevance(explained("llama"), None, PROMPT, ANSWER)
    ids = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.tensor([PROMPT]).reshape(1, -1)], dim=1)
    mask = (torch.arange(ids.shape[1]) >= 3).long()[None]
    padded = lxt_fx.answer_relevance(explained("llama"), None, {"input_ids": ids, "attention_mask": mask}, ANSWER)
    assert padded.tokens == alone.tokens and padded.prompt == 4
    torch.testing.assert_close(padded.logits, alone.logits, rtol=1e-5, atol=1e-6)  # rotary positions are relative
    torch.testing.assert_close(padded.relevance, alone.relevance, rtol=1e-4, atol=1e-6)


def test_an_empty_answer_is_refused() -> None:
    with pytest.raises(lxt_fx.InputError, match="at least one token"):
        lxt_fx.answer_relevance(explained("llama"), None, PROMPT, [])


def test_an_answer_can_be_printed_drawn_and_written(tmp_path: object) -> None:
    answer = lxt_fx.answer_relevance(explained("llama"), None, PROMPT, ANSWER)
    lines = plain(answer.__rich__()).splitlines()
    assert "each answer token (rows)" in lines[0] and any(line.startswith("rules attnlrp") for line in lines)
    strongest = int(answer.relevance[2].abs().argmax())
    assert [line for line in lines if line.split()[:1] == ["7"] and f"({strongest})" in line]
    answer.to_png(tmp_path / "answer.png")
    assert (tmp_path / "answer.png").read_bytes()[:4] == b"\x89PNG"
    answer.to_json(tmp_path / "answer.json")
    assert json.loads((tmp_path / "answer.json").read_text())["relevance"] == answer.relevance.tolist()
    assert repr(answer) == "Explanation(3 numbers, 7 tokens, rules attnlrp)"
    assert isinstance(answer, lxt_fx.AnswerRelevance) and answer.prompt == 4
