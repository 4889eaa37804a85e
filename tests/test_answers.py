"""`answer_relevance` from what people have. Each row is input * gradient of the model called by hand on what stands before
the answer token, one example alone and without padding."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import ids_models
import pytest
import tiny
import tiny_text
import torch
import transformers as hf
from task_cases import byte_tokenizer, looked_up, vision_language
from torch import Tensor, nn

import lxt_fx
from lxt_fx import Explanation, InputError, answer_relevance
from lxt_fx.attribution import many_targets

PROMPTS, ANSWERS = [[5, 9, 17, 23], [6, 7]], [[12, 44], [7, 3, 8]]


@functools.cache
def model(name: str) -> Any:
    if name == "t5":
        return ids_models.t5()[0].double()
    if name == "bart":
        config = hf.BartConfig(**ids_models.SEQ2SEQ, forced_eos_token_id=None)
        return ids_models.made(hf.BartForConditionalGeneration, config).double()
    if name == "llava":
        return vision_language().model.double()
    return getattr(tiny, name)().double()


@functools.cache
def explained(name: str) -> Any:
    return lxt_fx.transform(model(name), rules="gradient")


def batch_of(prompts: Sequence[Sequence[int]], side: str, pad: int = 0) -> dict[str, Tensor]:
    """Ids and mask, and nothing about positions."""
    width, rows, masks = max(map(len, prompts)), [], []
    for prompt in prompts:
        fill = width - len(prompt)
        before, behind = ([pad] * fill, []) if side == "left" else ([], [pad] * fill)
        rows.append([*before, *prompt, *behind])
        masks.append([*[0] * len(before), *[1] * len(prompt), *[0] * len(behind)])
    return {"input_ids": torch.tensor(rows), "attention_mask": torch.tensor(masks)}


def by_hand(of: Any, prompt: Sequence[int], answer: Sequence[int], minus: Sequence[int] | None = None) -> Tensor:
    """[answer, prompt + answer]: one forward for each token."""
    rows = torch.zeros(len(answer), len(prompt) + len(answer), dtype=torch.float64)
    for index, token in enumerate(answer):
        read = [*prompt, *answer[:index]]
        with looked_up([of.get_input_embeddings()]) as made:
            logits = of(input_ids=torch.tensor([read])).logits[0, -1]
        number = logits[token] - (0 if minus is None else logits[minus[index]])
        (gradient,) = torch.autograd.grad(number, made)
        rows[index, : len(read)] = (made[0] * gradient).sum(-1)[0].detach()
    return rows


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-6) -> None:
    assert found.shape == expected.shape and float(expected.abs().max()) > 0
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


# Batches


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_each_answer_of_a_padded_batch_is_input_times_gradient_of_its_own_text(name: str, side: str) -> None:
    found = answer_relevance(explained(name), None, batch_of(PROMPTS, side), ANSWERS)
    assert isinstance(found, lxt_fx.Explanations) and len(found) == 2
    for one, prompt, answer in zip(found, PROMPTS, ANSWERS, strict=True):
        same(one.relevance, by_hand(model(name), prompt, answer))
        assert one.axes == ("target", "position") and one.input_ids == (*prompt, *answer)
        assert isinstance(one, lxt_fx.AnswerRelevance) and one.prompt == len(prompt)
        later = torch.arange(one.relevance.shape[1]) >= torch.arange(len(prompt), one.relevance.shape[1])[:, None]
        assert not one.relevance[later].any() and bool(one.of_prompt().abs().min() > 0)
        with torch.no_grad():
            logits = model(name)(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(one.logits, logits[torch.arange(len(answer)), answer], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_of_texts_is_each_text_alone(side: str) -> None:
    tokenizer = byte_tokenizer()
    config = hf.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=4, n_positions=32)
    of = tiny._made(hf.GPT2LMHeadModel, config, "sdpa")
    texts, answers = ["The capital of France is", "Paris"], [" Paris and Rome", [7]]
    before, tokenizer.padding_side = tokenizer.padding_side, side
    try:
        found = answer_relevance(of, tokenizer, texts, answers)
    finally:
        tokenizer.padding_side = before
    for one, text, answer in zip(found, texts, answers, strict=True):
        alone = answer_relevance(of, tokenizer, text, answer)
        assert isinstance(alone, Explanation) and one.tokens == alone.tokens
        same(one.relevance, alone.relevance.double(), 1e-5)
        assert [number.said.split(" (rank")[0] for number in one.numbers] == [
            number.said.split(" (rank")[0] for number in alone.numbers
        ]
    assert found[0].tokens[:5] == ("The", " capital", " of", " France", " is") and found[0].numbers[0].label == " Paris"
    assert found[0].numbers[1].said.endswith("at position 5, after ' Paris'")


def test_chunks_bound_how_many_gradients_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    backward = many_targets.backward
    monkeypatch.setattr(many_targets, "backward", lambda *args: sizes.append(len(args[2][0])) or backward(*args))
    whole = answer_relevance(explained("gpt2"), None, batch_of(PROMPTS, "left"), ANSWERS)
    cut = answer_relevance(explained("gpt2"), None, batch_of(PROMPTS, "left"), ANSWERS, chunk=2)
    assert sizes == [3, 2, 1]
    for one, other in zip(whole, cut, strict=True):
        same(other.relevance, one.relevance, 1e-9)
    with pytest.raises(InputError, match="^answer_relevance: chunk must be a whole number of at least 1"):
        answer_relevance(explained("gpt2"), None, PROMPTS[0], ANSWERS[0], chunk=0)


def test_a_chat_is_the_prompt_of_its_template() -> None:
    tokenizer = byte_tokenizer()
    of = tiny_text.llama(len(tokenizer))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.content }}>{% endfor %}:"
    try:
        chat = [{"role": "user", "content": "The capital of France"}]
        found = answer_relevance(of, tokenizer, chat, " Paris")
        batch = answer_relevance(of, tokenizer, [chat, chat], [" Paris", " Rome"])
    finally:
        tokenizer.chat_template = None
    plain = answer_relevance(of, tokenizer, "<The capital of France>:", " Paris")
    assert torch.equal(found.relevance, plain.relevance) and found.input_ids == plain.input_ids
    same(batch[0].relevance, plain.relevance.double(), 1e-5)


# What generate returned


@functools.cache
def generated(**settings: Any) -> Any:
    given = batch_of(PROMPTS, "left")
    return model("gpt2").generate(**given, max_new_tokens=4, do_sample=False, pad_token_id=0, **settings)


@pytest.mark.parametrize("form", ["tensor", "object", "dict", "lists", "new tokens"])
def test_the_prompt_is_cut_off_what_generate_returned(form: str) -> None:
    whole, given = generated(), batch_of(PROMPTS, "left")
    forms = {
        "tensor": lambda: whole, "object": lambda: generated(return_dict_in_generate=True),
        "dict": lambda: {"sequences": whole}, "lists": lambda: whole.tolist(), "new tokens": lambda: whole[:, 4:],
    }  # fmt: skip
    found = answer_relevance(explained("gpt2"), None, given, forms[form]())
    for index, one in enumerate(found):
        new = whole[index, 4:].tolist()
        assert one.answer_tokens == 4
        same(one.relevance, by_hand(model("gpt2"), PROMPTS[index], new))
        assert all("(rank 1)" in number.said for number in one.numbers)  # generate was greedy
    alone = answer_relevance(explained("gpt2"), Words(), PROMPTS[1], whole[1])  # more padding than the prompt has
    same(alone.relevance, found[1].relevance, 1e-5)


def test_what_fills_a_batch_up_behind_the_end_does_not_count() -> None:
    of = tiny.gpt2().double()
    of.generation_config.eos_token_id, of.generation_config.pad_token_id = [50, 51], 60
    prompt = batch_of([[5, 9], [6, 7, 8, 9]], "left", 60)
    sequences = torch.tensor([[60, 60, 5, 9, 7, 51, 60, 60], [6, 7, 8, 9, 3, 60, 4, 5]])
    short, long = answer_relevance(of, None, prompt, sequences)
    assert short.input_ids == (5, 9, 7, 51) and long.input_ids == (6, 7, 8, 9, 3, 60, 4, 5)
    of.generation_config.pad_token_id = 51  # as where the end of text fills up
    assert answer_relevance(of, None, [5, 9], [7, 51, 51, 51]).input_ids == (5, 9, 7, 51)
    assert answer_relevance(of, None, [5, 9], [51]).input_ids == (5, 9, 51)
    of.generation_config.pad_token_id = 60
    with pytest.raises(InputError, match="the answer needs at least one token"):
        answer_relevance(of, None, [5, 9], [60, 60])
    padded = answer_relevance(of, None, [[5, 9], [6, 7]], batch_of([[7], [3, 4, 5]], "right"))  # as a tokenizer pads
    assert [one.input_ids for one in padded] == [(5, 9, 7), (6, 7, 3, 4, 5)]


def test_an_answer_that_repeats_the_prompt_is_whole_if_one_says_so() -> None:
    prompt, repeated = [5, 9], [5, 9, 7]
    cut = answer_relevance(explained("gpt2"), None, prompt, repeated)
    whole = answer_relevance(explained("gpt2"), None, prompt, repeated, with_prompt=False)
    assert cut.input_ids == (5, 9, 7) and whole.input_ids == (5, 9, 5, 9, 7)
    same(whole.relevance, by_hand(model("gpt2"), prompt, repeated))
    assert answer_relevance(explained("gpt2"), None, prompt, prompt).input_ids == (5, 9, 5, 9)  # nothing is behind it
    with pytest.raises(InputError, match="answer 0 starts with its prompt and answer 1 does not, .*say with_prompt=True"):
        answer_relevance(explained("gpt2"), None, [[5, 9], [6, 7]], [[5, 9, 7], [3, 4]])
    with pytest.raises(InputError, match="answer 0 does not start with its prompt, although with_prompt=True says so"):
        answer_relevance(explained("gpt2"), None, prompt, [3, 4], with_prompt=True)
    with pytest.raises(InputError, match="although generate.. returns prompt and answer.*or with_prompt=False"):
        answer_relevance(explained("gpt2"), None, prompt, {"sequences": torch.tensor([[3, 4]])})
    with pytest.raises(InputError, match="the answer '5 9 7' starts with its prompt, which would count twice"):
        answer_relevance(model("gpt2"), Words(), "5 9", "5 9 7")  # as tokenizer.decode(output[0]) is
    text = answer_relevance(model("gpt2"), Words(), "5 9", "5 9 7", with_prompt=False)  # a text is the answer alone
    assert text.input_ids == (5, 9, 5, 9, 7)
    with pytest.raises(InputError, match="with_prompt=True is for token ids, and the answer is a text"):
        answer_relevance(model("gpt2"), Words(), "5 9", "5 9 7", with_prompt=True)


class Words:
    """A tokenizer of numbers, which are their own ids."""

    pad_token_id, all_special_ids = 0, list[int]()

    def __call__(self, text: str, **settings: Any) -> Mapping[str, Any]:
        return {"input_ids": self.encode(text)}

    def encode(self, text: str, **settings: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **settings: Any) -> str:
        return "".join(f" {token}" for token in ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [f" {token}" for token in ids]

    def get_vocab(self) -> dict[str, int]:
        return {str(token): token for token in range(64)}


# Contrasts


@pytest.mark.parametrize("contrast", [9, "9", [9], torch.tensor([[9]])])
def test_one_token_is_subtracted_at_every_token_of_the_answer(contrast: Any) -> None:
    found = answer_relevance(explained("llama"), Words(), PROMPTS[0], ANSWERS[1], contrast=contrast)
    same(found.relevance, by_hand(model("llama"), PROMPTS[0], ANSWERS[1], [9, 9, 9]))
    assert found.numbers[0].label == " 7 minus  9" and "minus logit of ' 9' (rank " in found.numbers[0].said
    plain = answer_relevance(explained("llama"), None, PROMPTS[0], ANSWERS[1])
    other = answer_relevance(explained("llama"), None, PROMPTS[0], [9])
    assert float(found.logits[0]) == pytest.approx(float(plain.logits[0] - other.logits[0]), rel=1e-9)


def test_a_second_answer_is_weighed_token_by_token() -> None:
    found = answer_relevance(explained("llama"), None, PROMPTS[0], ANSWERS[1], contrast=[7, 11, 12])
    expected = by_hand(model("llama"), PROMPTS[0], ANSWERS[1], [7, 11, 12])
    same(found.relevance, expected)
    assert not found.relevance[0].any()  # both answers begin with the same token
    batch = answer_relevance(explained("llama"), Words(), batch_of(PROMPTS, "left"), ANSWERS, contrast=["9", [7, 11, 12]])
    same(batch[0].relevance, by_hand(model("llama"), PROMPTS[0], ANSWERS[0], [9, 9]))
    same(batch[1].relevance, by_hand(model("llama"), PROMPTS[1], ANSWERS[1], [7, 11, 12]))
    begins = answer_relevance(explained("llama"), None, [6, 7], [7, 3, 8], contrast=[6, 7, 9])  # as the prompt does
    same(begins.relevance, by_hand(model("llama"), [6, 7], [7, 3, 8], [6, 7, 9]))
    whole = answer_relevance(explained("llama"), None, [6, 7], [6, 7, 7, 3, 8], contrast=[6, 7, 6, 7, 9], with_prompt=True)
    assert torch.equal(whole.relevance, begins.relevance)
    for_all = answer_relevance(explained("llama"), Words(), batch_of(PROMPTS, "right"), ANSWERS, contrast="9")
    same(for_all[1].relevance, by_hand(model("llama"), PROMPTS[1], ANSWERS[1], [9, 9, 9]))


def test_explicit_form_starts_a_contrast_with_both_logits() -> None:
    module = lxt_fx.transform(model("llama"), form="explicit", epsilon=0.0)
    plain = lxt_fx.transform(model("llama"))
    found, fast = (answer_relevance(each, None, PROMPTS[0], ANSWERS[1], contrast=9) for each in (module, plain))
    same(found.relevance, fast.relevance, 1e-4)


@pytest.mark.parametrize(
    ("contrast", "said"),
    [
        ([7, 3], r"the contrast has 2 tokens \(\[7, 3\]\) and the answer 3; give one token"),
        (99, "token 0 of the contrast is 99, outside the vocabulary"),
        ("", "the contrast needs at least one token"),
        ((" a", " b"), "the contrast is a text or token ids"),
        ([[7], [3]], "there is one prompt and there are 2 contrasts"),
    ],
)
def test_a_contrast_that_does_not_fit_is_refused(contrast: Any, said: str) -> None:
    with pytest.raises(InputError, match=f"^answer_relevance: {said}"):
        answer_relevance(explained("llama"), Words(), PROMPTS[0], ANSWERS[1], contrast=contrast)


# Encoders with a decoder


def decoded_by_hand(
    of: Any, source: Sequence[int], start: int, answer: Sequence[int], minus: int | None = None
) -> tuple[Tensor, Tensor]:
    """[answer, source] and [answer, start + answer]."""
    sources, targets = (torch.zeros(len(answer), n, dtype=torch.float64) for n in (len(source), 1 + len(answer)))
    for index, token in enumerate(answer):
        made = [of.get_input_embeddings()(torch.tensor([ids])).detach().requires_grad_()
                for ids in (source, [start, *answer[:index]])]  # fmt: skip
        logits = of(inputs_embeds=made[0], decoder_inputs_embeds=made[1]).logits[0, -1]
        gradients = torch.autograd.grad(logits[token] - (0 if minus is None else logits[minus]), made)
        for rows, leaf, gradient in zip((sources, targets), made, gradients, strict=True):
            rows[index, : leaf.shape[1]] = (leaf * gradient).sum(-1)[0].detach()
    return sources, targets


@pytest.mark.parametrize(("name", "start"), [("t5", 0), ("bart", 2)])
def test_an_answer_of_a_decoder_has_the_relevance_of_the_source_and_of_itself(name: str, start: int) -> None:
    for side in ("right", "left") if name == "t5" else ("right",):  # BART counts columns
        found = answer_relevance(explained(name), None, batch_of(PROMPTS, side), ANSWERS)
        for one, source, answer in zip(found, PROMPTS, ANSWERS, strict=True):
            sources, targets = decoded_by_hand(model(name), source, start, answer)
            assert [part.name for part in one.parts] == ["text", "answer"]
            same(one.part("text").values, sources)
            torch.testing.assert_close(one.part("answer").values, targets, rtol=0, atol=1e-6 * float(sources.abs().max()))
            assert one.part("answer").reading.ids == (start, *answer) and isinstance(one, lxt_fx.AnswerRelevance)
            assert one.numbers[1].said.endswith(f"at position 1, after ' {answer[0]}'")


def test_what_a_decoder_generated_starts_with_its_start_token() -> None:
    of, sources = model("t5"), batch_of(PROMPTS, "right")
    whole = of.generate(**sources, max_new_tokens=4, do_sample=False)
    found = answer_relevance(explained("t5"), None, sources, whole, contrast=9)
    for index, one in enumerate(found):
        said = whole[index, 1:].tolist()
        assert whole[index, 0] == 0 and one.part("answer").reading.ids == (0, *said)
        expected, targets = decoded_by_hand(of, PROMPTS[index], 0, said, 9)
        same(one.relevance, expected)
        torch.testing.assert_close(one.part("answer").values, targets, rtol=0, atol=1e-6 * float(expected.abs().max()))
    with pytest.raises(InputError, match="whose output never holds the prompt"):
        answer_relevance(explained("t5"), None, sources, whole, with_prompt=True)
    with pytest.raises(InputError, match="the decoder's own inputs too"):
        answer_relevance(explained("t5"), None, {**sources, "decoder_input_ids": whole[:, :1]}, whole)


def test_a_sound_with_the_start_that_the_model_was_told() -> None:
    of, tokenizer = model("whisper"), Told()
    features = torch.randn(1, 8, 20, generator=torch.Generator().manual_seed(0)).double()
    said = [1, 60, 61, 7, 8, 9]  # another language than the tokenizer's
    found = answer_relevance(of, tokenizer, {"input_features": features}, said, rules="gradient")
    assert [part.name for part in found.parts] == ["sound", "answer"] and len(found.numbers) == 3
    assert found.part("answer").reading.ids == tuple(said)
    for index in range(3):
        leaf = features.clone().requires_grad_()
        with looked_up([of.model.decoder.embed_tokens]) as made:
            before = torch.tensor([said[: 3 + index]])
            logit = of(input_features=leaf, decoder_input_ids=before).logits[0, -1, said[3 + index]]
        by_leaf = torch.autograd.grad(logit, [leaf, *made])
        expected = (leaf * by_leaf[0]).detach()[0].sum(0)
        same(found.parts[0].values[index], expected)
        text = (made[0] * by_leaf[1]).detach().sum(-1)[0]
        tolerance = 1e-6 * float(expected.abs().max())
        torch.testing.assert_close(found.parts[1].values[index, : 3 + index], text, rtol=0, atol=tolerance)
        assert not found.parts[1].values[index, 3 + index :].any()


class Told(Words):
    """A tokenizer with special tokens that the decoder starts with."""

    prefix_tokens, all_special_ids, eos_token_id = [1, 59, 61], [1, 2, 59, 60, 61], 2


# Pictures


def test_the_picture_has_a_map_for_each_token_of_the_answer() -> None:
    case, of = vision_language(), model("llava")
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in case.given.inputs.items()}
    answers = [[12, 44], [7, 3, 8], [9]]
    module = lxt_fx.transform(of, kwargs=inputs, rules="gradient")
    found = answer_relevance(module, case.tokenizer, inputs, answers)
    for index, (one, answer) in enumerate(zip(found, answers, strict=True)):
        assert [part.name for part in one.parts] == ["text", "image"]
        prompt = inputs["input_ids"][index][inputs["attention_mask"][index].bool()].tolist()
        for at, token in enumerate(answer):
            pixels = inputs["pixel_values"][index : index + 1].clone().requires_grad_()
            with looked_up([of.get_input_embeddings()]) as made:
                logit = of(input_ids=torch.tensor([[*prompt, *answer[:at]]]), pixel_values=pixels).logits[0, -1, token]
            by_leaf = torch.autograd.grad(logit, [pixels, *made])
            expected = (pixels * by_leaf[0]).detach()[0].sum(0)
            text = (made[0] * by_leaf[1]).detach().sum(-1)[0, 4:]  # the first four stand for the picture
            largest = max(float(expected.abs().max()), float(text.abs().max()))
            torch.testing.assert_close(one.part("image").values[at], expected, rtol=0, atol=1e-6 * largest)
            torch.testing.assert_close(one.relevance[at, : len(text)], text, rtol=0, atol=1e-6 * largest)
            assert float(expected.abs().max()) > 0 and not one.relevance[at, len(text) :].any()
    alone = {name: value[:1] for name, value in inputs.items()}
    whole = of.generate(**alone, max_new_tokens=2, do_sample=False, pad_token_id=0)
    again = answer_relevance(of, case.tokenizer, alone, whole)
    assert again.answer_tokens == 2 and again.input_ids[-2:] == tuple(whole[0, -2:].tolist())
    with pytest.raises(InputError, match="stands for a picture; if this is prompt and answer"):
        answer_relevance(of, case.tokenizer, alone, whole, with_prompt=False)


# Accounts


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_the_account_is_that_of_the_sum_and_closes(name: str) -> None:
    found = answer_relevance(explained(name), None, batch_of(PROMPTS, "right"), ANSWERS, account=True)
    for one in found:
        account = one.account
        assert account is not None and account.value == pytest.approx(float(one.logits.sum()), rel=1e-9)
        largest = max(abs(amount) for amount in (account.value, *account.reached.values()))
        assert abs(account.residual) <= 1e-6 * largest
        for part in one.parts:
            assert account.reached[part.name] == pytest.approx(float(part.values.sum()), rel=1e-5)  # norms are in float32


# Refusals, before any work


@pytest.mark.parametrize(
    ("prompt", "answer", "said"),
    [
        ([5, 9], [], "the answer needs at least one token"),
        ([5, 9], [7, 64], "token 1 of the answer is 64, outside the vocabulary of GPT2LMHeadModel, which has 64 tokens"),
        ([5, 9], [-1], "token 0 of the answer is -1, outside"),
        ([5] * 60, [7] * 5, "the prompt has 60 tokens, behind it stand 5 of the answer, and GPT2.* positions for 64"),
        ([5, 9], "7 8", "the answer is a text, which needs the tokenizer"),
        ([5, 9], ["a", "b"], "there is one prompt and there are 2 answers.*give the prompt as often"),
        ([[5, 9], [6, 7]], [[7]], "there are 2 prompts and 1 answer; give one answer for each prompt"),
        ([[5, 9], [6, 7]], "7", "there are 2 prompts and 1 answer"),
        ([[5, 9], [6, 7]], [[7], []], "answer 1 needs at least one token"),
        ([5, 9], None, "the answer is a text or token ids"),
        ({"inputs_embeds": torch.zeros(1, 2, 32)}, [7], "must be given as text or input_ids"),
    ],
)
def test_what_does_not_fit_is_refused_before_work(
    prompt: Any, answer: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lxt_fx.tasks import answers

    monkeypatch.setattr(answers, "as_explained", lambda *args: pytest.fail("worked"))
    with pytest.raises(InputError, match=f"^answer_relevance: .*{said}"):
        answer_relevance(model("gpt2"), None, prompt, answer)


def test_a_text_of_as_many_tokens_as_positions_is_explained() -> None:
    assert answer_relevance(explained("gpt2"), None, [5] * 60, [7] * 4).answer_tokens == 4


def test_a_decoder_has_positions_of_its_own() -> None:
    for count in (16, 17):
        answer = [1, *[7] * count]  # behind the start token, and without the last, count tokens are read
        inputs = {"input_features": torch.zeros(1, 8, 20).double()}
        if count > 16:
            with pytest.raises(InputError, match="decoder's start has 1 tokens, behind it stand 16 .* positions for 16"):
                answer_relevance(model("whisper"), None, inputs, answer)
        else:
            assert len(answer_relevance(model("whisper"), None, inputs, answer)) == 16


def test_a_head_that_cannot_run_alone_gives_the_same() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(64, 8), nn.Linear(8, 64)

        def forward(self, input_ids: Tensor) -> Tensor:
            hidden = torch.tanh(self.embedding(input_ids).cumsum(1))
            out: Tensor = self.head(hidden) * hidden.mean(-1, keepdim=True)
            return out

    torch.manual_seed(0)
    of = Scaled().double().eval()
    found = answer_relevance(of, None, PROMPTS[0], ANSWERS[1], contrast=9, rules="gradient")
    for index, token in enumerate(ANSWERS[1]):
        read = [*PROMPTS[0], *ANSWERS[1][:index]]
        with looked_up([of.embedding]) as made:
            logits = of(torch.tensor([read]))[0, -1]
        (gradient,) = torch.autograd.grad(logits[token] - logits[9], made)
        same(found.relevance[index, : len(read)], (made[0] * gradient).sum(-1)[0].detach())
        assert found.numbers[index].value == pytest.approx(float((logits[token] - logits[9]).detach()), rel=1e-9)


def test_answers_of_different_lengths_need_a_mask() -> None:
    class NoMask(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(64, 8), nn.Linear(8, 64)

        def forward(self, input_ids: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(self.embedding(input_ids).cumsum(1)))
            return out

    torch.manual_seed(0)
    of = NoMask().eval()
    with pytest.raises(InputError, match="answers of different lengths are padded, and NoMask takes no attention_mask"):
        answer_relevance(of, None, [[5, 9], [6, 7]], [[7, 3], [8]])
    assert len(answer_relevance(of, None, [[5, 9], [6, 7]], [[7, 3], [8, 4]])) == 2


def test_models_that_write_no_text_are_refused() -> None:
    masked = hf.BertForMaskedLM(hf.BertConfig(**tiny.SIZES)).eval()
    for of in (masked, tiny.vit()):
        with pytest.raises(InputError, match=f"^answer_relevance: {type(of).__name__} writes no text"):
            answer_relevance(of, None, [5, 9], [7])
    with pytest.raises(InputError, match="BertForSequenceClassification gives logits .*needs a model that writes text"):
        answer_relevance(tiny.bert(), None, [5, 9], [7])


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_model_that_looks_ahead_is_found_in_a_batch(side: str) -> None:
    class LooksAhead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(64, 8), nn.Linear(8, 64)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            hidden = self.embedding(input_ids) * attention_mask[..., None]
            own = hidden.sum(1, keepdim=True) if len(input_ids[0]) > 6 else 0  # reads all of a longer text
            out: Tensor = self.head(hidden.cumsum(1) + own)
            return out

    torch.manual_seed(0)
    with pytest.raises(InputError, match="^answer_relevance: LooksAhead looks ahead"):
        answer_relevance(LooksAhead().eval(), None, batch_of(PROMPTS, side), ANSWERS)


def test_a_module_that_answers_at_the_end_only_says_so() -> None:
    narrow = lxt_fx.transform(model("llama"), positions="last")
    with pytest.raises(InputError, match="this module was made to answer at .* only"):
        answer_relevance(narrow, None, PROMPTS[0], ANSWERS[0])


def test_an_answer_of_a_decoder_goes_to_files_and_back(tmp_path: Any) -> None:
    found = answer_relevance(explained("t5"), None, PROMPTS[0], ANSWERS[0])
    found.to_json(tmp_path / "answer.json")
    found.to_png(tmp_path / "answer.png")
    read = Explanation.from_json(tmp_path / "answer.json")
    assert isinstance(read, lxt_fx.AnswerRelevance) and torch.equal(read.part("answer").values, found.part("answer").values)
    assert "answer" in str(found) and found.prompt == len(PROMPTS[0])
