"""What people have, made the inputs of a call: texts, chats, pairs, ids, what a tokenizer returned; and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_text import bert, byte_tokenizer, llama, word_tokenizer

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Given, part_of
from lxt_fx.inputs.places import TextPlace
from lxt_fx.inputs.read import read_inputs

LONG, SHORT = "The capital of France is Paris", "Rome: play"
CHAT = [{"role": "user", "content": "The capital"}]
TEMPLATE = (
    "{% for m in messages %}<|end|>{{ m['role'] }} {{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|end|>bot {% endif %}"
)
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def words() -> Any:
    return word_tokenizer()


@pytest.fixture(scope="module")
def model() -> Any:
    return llama(400)


def read(model: Any, processor: Any, what: Any, **more: Any) -> Given:
    return read_inputs(model, processor, what, "explain", **more)


def text(given: Given, index: int = 0, place: int = 0) -> TextPlace:
    found = given.examples[index].places[place]
    assert isinstance(found, TextPlace)
    return found


def test_a_string_is_what_the_tokenizer_makes_of_it(model: Any, tokenizer: Any) -> None:
    given = read(model, tokenizer, LONG)
    reading = text(given).reading
    assert torch.equal(given.inputs["input_ids"], tokenizer(LONG, return_tensors="pt").input_ids)
    assert "".join(reading.tokens) == LONG and reading.ids == tuple(tokenizer(LONG).input_ids)
    assert reading.text == LONG and reading.spans is not None
    assert [LONG[start:end] for start, end in reading.spans] == list(reading.tokens)
    assert not given.batched and given.inputs["attention_mask"].all()


def test_a_list_of_one_is_a_batch(model: Any, tokenizer: Any) -> None:
    assert read(model, tokenizer, [LONG]).batched


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_on_the_tokenizers_own_side_and_padding_never_shows(model: Any, side: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = side
    given = read(model, tokenizer, [LONG, SHORT])
    expected = tokenizer([LONG, SHORT], padding=True, return_tensors="pt")
    assert torch.equal(given.inputs["input_ids"], expected["input_ids"])
    assert torch.equal(given.inputs["attention_mask"], expected["attention_mask"])
    assert "".join(text(given, 1).reading.tokens) == SHORT
    relevance = torch.randn(3, *given.inputs["input_ids"].shape, 5)
    part = part_of(text(given, 1), relevance)
    own = given.inputs["attention_mask"][1].bool()
    assert part.axes == ("target", "position") and part.units is not None
    torch.testing.assert_close(part.values, relevance[:, 1, own].sum(-1))
    torch.testing.assert_close(part.units, relevance[:, 1, own])


def test_holes_of_a_mask_do_not_show(model: Any, tokenizer: Any) -> None:
    ids, mask = torch.tensor([[9, 50, 60, 70]]), torch.tensor([[0, 1, 0, 1]])
    given = read(model, tokenizer, {"input_ids": ids, "attention_mask": mask})
    assert text(given).reading.ids == (50, 70) and text(given).own == (1, 3)
    assert part_of(text(given), torch.ones(1, 1, 4, 2)).values.shape == (1, 2)


def test_nothing_of_the_tokenizer_or_the_inputs_changes(model: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token, tokenizer.padding_side = None, "left"
    before = copy.deepcopy((tokenizer.init_kwargs, tokenizer.special_tokens_map, tokenizer.backend_tokenizer.to_str()))
    given = read(model, tokenizer, [LONG, SHORT])
    assert (tokenizer.init_kwargs, tokenizer.special_tokens_map, tokenizer.backend_tokenizer.to_str()) == before
    assert tokenizer.pad_token is None and tokenizer.padding_side == "left"
    assert given.inputs["attention_mask"][1].tolist() == sorted(given.inputs["attention_mask"][1].tolist())
    ids = torch.tensor([[5, 6, 7]])
    read(model, tokenizer, {"input_ids": ids}).inputs["input_ids"].zero_()
    assert ids.tolist() == [[5, 6, 7]]


def test_a_chat_is_written_by_its_template_up_to_where_the_model_answers(model: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    reading = text(read(model, tokenizer, CHAT)).reading
    encoded = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=True)
    assert list(reading.ids or ()) == encoded["input_ids"]
    own = "".join(token for token, special in zip(reading.tokens, reading.special, strict=True) if not special)
    assert own.strip() == "The capital"
    several = read(model, tokenizer, [CHAT, [*CHAT, {"role": "bot", "content": "Rome"}, *CHAT]])
    assert several.batched and len(several.examples) == 2
    assert text(several).reading.ids == reading.ids
    assert not read(model, tokenizer, CHAT).batched


def test_an_answer_that_was_begun_is_gone_on_with(model: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    reading = text(read(model, tokenizer, [*CHAT, {"role": "assistant", "content": "Paris"}])).reading
    assert "".join(reading.tokens).endswith("Paris")


def test_a_tuple_of_two_texts_is_one_row_of_a_model_of_pairs(words: Any) -> None:
    classifier = bert("classifier", 120)
    given = read(classifier, words, ("Rome", "London and Paris"))
    expected = words("Rome", "London and Paris", return_tensors="pt", return_token_type_ids=True)
    reading = text(given).reading
    assert torch.equal(given.inputs["input_ids"], expected["input_ids"]) and not given.batched
    first = len(words("Rome").input_ids)
    assert reading.segments == (0,) * first + (1,) * (len(reading.tokens) - first)
    assert reading.special[0] and reading.special[-1] and reading.special[first - 1] and sum(reading.special) == 3
    assert reading.text is not None and reading.spans is not None
    assert reading.text[slice(*reading.spans[first])].lower() == "london"
    batch = read(classifier, words, [("Rome", "London"), ("Paris", "play")])
    assert batch.batched and len(batch.examples) == 2


def test_a_tuple_of_two_texts_is_two_rows_of_a_bare_encoder(words: Any) -> None:
    given = read(bert("bare", 120), words, ("Rome", "London and Paris"))
    assert not given.batched and given.inputs["input_ids"].shape[0] == 2
    first, second = given.examples[0].places
    assert (first.name, first.within, second.name, second.within) == ("text a", 0, "text b", 1)
    relevance = torch.randn(1, *given.inputs["input_ids"].shape, 3)
    assert part_of(second, relevance).values.shape[1] == len(words("London and Paris").input_ids)


@pytest.mark.parametrize(
    "ids",
    [[5, 6, 7], (5, 6, 7), torch.tensor([5, 6, 7]), torch.tensor([[5, 6, 7]]), np.array([5, 6, 7]), [np.int64(5), 6, 7]],
)
def test_ids_of_any_kind_are_one_text(model: Any, ids: Any) -> None:
    given = read(model, None, ids)
    assert given.inputs["input_ids"].tolist() == [[5, 6, 7]] and not given.batched
    assert text(given).reading.ids == (5, 6, 7)


@pytest.mark.parametrize("ids", [[[5, 6, 7], [8, 9]], [torch.tensor([5, 6, 7]), torch.tensor([8, 9])]])
def test_rows_of_ids_are_a_batch(model: Any, ids: Any) -> None:
    given = read(model, None, ids)
    assert given.batched and text(given, 1).reading.ids == (8, 9)
    assert given.inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert read(model, None, torch.tensor([[5, 6], [7, 8]])).batched


def test_embeddings_are_a_text_without_names(model: Any) -> None:
    embeddings = torch.randn(1, 4, 32, dtype=torch.float64)
    for given in (read(model, None, embeddings), read(model, None, {"inputs_embeds": embeddings[0]})):
        assert given.inputs["inputs_embeds"].dtype == torch.float32
        assert text(given).leaf == "inputs_embeds" and text(given).reading.ids is None
        assert part_of(text(given), torch.ones(1, 1, 4, 32)).values.tolist() == [[32.0] * 4]


def test_what_the_tokenizer_returned_is_read_with_its_segments(words: Any) -> None:
    encoded = words([("Rome", "London"), ("Paris and Rome", "play")], padding=True, return_tensors="pt")
    given = read(bert("classifier", 120), words, encoded)
    assert given.batched
    assert text(given).reading.segments == (0, 0, 0, 1, 1) and len(text(given, 1).reading.tokens) == 7


def test_a_pipeline_brings_its_model_and_tokenizer(tokenizer: Any) -> None:
    model = llama(400)
    pipeline = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert text(read(pipeline, None, LONG)).reading.ids == tuple(tokenizer(LONG).input_ids)


def test_a_vocabulary_larger_than_the_tokenizers_is_fine(model: Any, tokenizer: Any) -> None:
    assert len(tokenizer) < 399
    assert text(read(model, tokenizer, [399, 5])).reading.tokens[0] == "399"


@pytest.fixture(scope="module")
def t5() -> Any:
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=400, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4,
        decoder_start_token_id=1, pad_token_id=1, eos_token_id=0,
    )  # fmt: skip
    return transformers.T5ForConditionalGeneration(config).eval()


def test_an_encoder_decoder_starts_its_decoder(t5: Any, tokenizer: Any) -> None:
    given = read(t5, tokenizer, LONG)
    source, target = given.examples[0].places
    assert (source.leaf, target.leaf) == ("input_ids", "decoder_input_ids")
    assert given.inputs["decoder_input_ids"].tolist() == [[1]] and given.examples[0].answer == ()


@pytest.mark.parametrize("form", ["text", "ids", "generated"])
def test_an_answer_is_forced_token_by_token(t5: Any, tokenizer: Any, form: str) -> None:
    ids = tokenizer(" Paris play").input_ids
    forms = {"text": " Paris play", "ids": ids, "generated": torch.tensor([[1, *ids, 0, 1, 1]])}
    given = read(t5, tokenizer, LONG, answer=forms[form])
    said = [*ids, 0] if form == "generated" else ids  # 0 is the end of the text, which was generated too
    assert given.inputs["decoder_input_ids"].tolist() == [[1, *said[:-1]]]
    assert given.examples[0].answer == tuple(said)
    assert text(given, 0, 1).reading.answer == len(given.examples[0].answer) - 1


def test_answers_of_different_lengths_are_padded_on_the_right(t5: Any, tokenizer: Any) -> None:
    given = read(t5, tokenizer, [LONG, SHORT], answer=[[5, 6, 7, 8], [9, 10]])
    assert given.inputs["decoder_input_ids"][1].tolist()[:2] == [1, 9]
    assert given.inputs["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert text(given, 1, 1).reading.ids == (1, 9)
    with pytest.raises(InputError, match="1 answers and 2 inputs"):
        read(t5, tokenizer, [LONG, SHORT], answer=" Paris")


def test_an_answer_is_for_a_decoder_and_given_once(t5: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="has no decoder of its own"):
        read(model, tokenizer, LONG, answer=" Paris")
    with pytest.raises(InputError, match="give one of them"):
        read(t5, tokenizer, {"input_ids": [[5, 6]], "decoder_input_ids": [[1, 7]]}, answer=" Paris")
    given = read(t5, tokenizer, {"input_ids": [[5, 6]], "decoder_input_ids": [[1, 7]]})
    assert [place.leaf for place in given.examples[0].places] == ["input_ids", "decoder_input_ids"]
    with pytest.raises(InputError, match="is empty"):
        read(t5, tokenizer, LONG, answer=" ")


def small() -> Any:
    config = transformers.LlamaConfig(vocab_size=400, max_position_embeddings=64, **SIZES)
    return transformers.LlamaForCausalLM(config).eval()


REFUSED: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "empty text": (lambda m, t: (m, t, " "), "is empty"),
    "empty list": (lambda m, t: (m, t, []), "list of inputs is empty"),
    "no ids": (lambda m, t: (m, t, torch.zeros(1, 0, dtype=torch.long)), "no tokens"),
    "empty in a batch": (lambda m, t: (m, t, ["a", ""]), "is empty"),
    "mixed kinds": (lambda m, t: (m, t, ["a", [5, 6]]), "one kind of input, got a text first and token ids at 1"),
    "three texts in a tuple": (lambda m, t: (m, t, ("a", "b", "c")), "a tuple of two texts is a pair"),
    "pair for a causal model": (lambda m, t: (m, t, ("a", "b")), "does not read pairs"),
    "tokenizer and text": (lambda m, t: (m, "a text", t), "swap the two"),
    "model and tokenizer": (lambda m, t: (t, m, "a"), "swap the two"),
    "two models": (lambda m, t: (m, m, "a"), "got a model"),
    "name of a model": (lambda m, t: ("gpt2", t, "a"), "from_pretrained"),
    "no tokenizer": (lambda m, t: (m, None, "a"), "needs a tokenizer"),
    "no template": (lambda m, t: (m, t, CHAT), "no chat template"),
    "negative id": (lambda m, t: (m, t, [5, -1]), "id -1 at position 1 is outside"),
    "id too large": (lambda m, t: (m, t, [5, 400]), "id 400 at position 1 is outside"),
    "float ids": (lambda m, t: (m, t, {"input_ids": torch.ones(2)}), "whole numbers"),
    "number": (lambda m, t: (m, t, True), "is no kind of input"),
    "nothing": (lambda m, t: (m, t, None), "NoneType is no kind of input"),
    "no text": (lambda m, t: (m, t, {"attention_mask": [[1]]}), "neither input_ids nor inputs_embeds"),
    "empty dict": (lambda m, t: (m, t, {}), "dict of inputs is empty"),
    "all masked": (lambda m, t: (m, t, {"input_ids": [[5]], "attention_mask": [[0]]}), "all padding"),
    "mask of another size": (lambda m, t: (m, t, {"input_ids": [[5, 6]], "attention_mask": [[1]]}), r"is \[1, 1\]"),
    "unknown input": (lambda m, t: (m, t, {"input_ids": [[5]], "boxes": torch.ones(1)}), "gives boxes, which Llama"),
    "picture": (lambda m, t: (m, t, np.zeros((8, 8, 3), dtype=np.uint8)), "are no text"),
    "NaN": (lambda m, t: (m, None, torch.full((1, 2, 32), float("nan"))), "inputs_embeds is nan"),
    "too long": (lambda m, t: (small(), t, [5] * 101), "101 tokens, but LlamaForCausalLM has positions for 64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_any_work(model: Any, tokenizer: Any, name: str) -> None:
    make, why = REFUSED[name]
    with pytest.raises(InputError, match=why) as raised:
        read(*make(model, tokenizer))
    assert str(raised.value).startswith("explain: ")


def test_the_positions_of_a_model_that_counts_from_its_padding_are_fewer() -> None:
    config = transformers.RobertaConfig(vocab_size=400, max_position_embeddings=12, pad_token_id=1, **SIZES)
    model = transformers.RobertaModel(config).eval()
    read(model, None, [5] * 10)
    with pytest.raises(InputError, match="11 tokens, but RobertaModel has positions for 10"):
        read(model, None, [5] * 11)
