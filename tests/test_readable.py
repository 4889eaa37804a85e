"""Tokens of every kind of tokenizer as a person reads them."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_text import byte_tokenizer, sentence_tokenizer, word_tokenizer
from transformers import PreTrainedTokenizerFast

from lxt_fx.attribution.readable_tokens import readable_tokens


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_tokenizer()


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return word_tokenizer()


BYTES = {
    "The capital": ("The", " capital"),
    "é": ("é(1/2)", "é(2/2)"),
    " 🦙\n\tx": (" ", "🦙(1/4)", "🦙(2/4)", "🦙(3/4)", "🦙(4/4)", "↵", "⇥", "x"),
    "a\u202eb": ("a", "⟨U+202E⟩(1/3)", "⟨U+202E⟩(2/3)", "⟨U+202E⟩(3/3)", "b"),
    "Paris<|end|>": ("Paris", "<|end|>"),
    "\x1b[": ("␛", "["),
}


@pytest.mark.parametrize("text", BYTES)
def test_byte_level_tokens_read_as_text(tokenizer: Any, text: str) -> None:
    assert readable_tokens(tokenizer, tokenizer(text)["input_ids"]) == BYTES[text]


def test_a_broken_character_stays_one_token_each(tokenizer: Any) -> None:
    half = tokenizer("🦙")["input_ids"][:2]
    assert readable_tokens(tokenizer, half) == ("�", "�")
    literal = tokenizer("a�b")["input_ids"]
    assert len(readable_tokens(tokenizer, literal)) == len(literal)


def test_word_pieces_join_and_words_have_a_space_in_front(words: Any) -> None:
    tokens = readable_tokens(words, words("Playing, Parises [MASK]")["input_ids"])
    assert tokens[:3] == ("[CLS]", " playing", ",")
    assert not any("##" in token for token in tokens)
    assert "".join(tokens) == "[CLS] playing, parises [MASK] [SEP]"


def test_an_id_that_the_tokenizer_does_not_know_is_its_number(words: Any) -> None:
    unknown = len(words) + 7
    assert readable_tokens(words, [words("playing")["input_ids"][1], unknown])[1] in (str(unknown), f" {unknown}")


def test_sentence_pieces_and_their_byte_tokens_read_as_text() -> None:
    tokenizer = sentence_tokenizer()
    tokens = readable_tokens(tokenizer, tokenizer("Paris é\n")["input_ids"])
    assert tokens == ("Paris", " ", "é(1/2)", "é(2/2)", "↵")
