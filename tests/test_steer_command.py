"""The answers of `--steer` are read where `explain` reads the number."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_text
import torch
from test_served_model import PIXELS, TEXT, Image, llava

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.inside.steering.steer_command import answers
from lxt_fx.shell.loading import inputs_of

pytestmark = pytest.mark.usefixtures("captures_in_files")

WORDS = tiny_text.word_tokenizer()


def first(model: Any, text: str, position: int | None = None) -> tuple[str, float]:
    """The likeliest answer and its number."""
    inputs = inputs_of(model, WORDS, text, "explain")
    name, value = answers(lxt_fx.transform(model), inputs, WORDS, position)[0].rsplit(" ", 1)
    return name, float(value)


@pytest.mark.parametrize("position", [None, 2, -1])
def test_a_mask_in_a_text_that_goes_on_is_a_token_as_any_other(position: int | None) -> None:
    model, text = tiny_text.llama(len(WORDS)), "London is [MASK] and Rome"
    own = lxt_fx.explain(model, WORDS, text, None if position is None else lxt_fx.Target.at(position))
    name, value = first(model, text, position)
    assert value == pytest.approx(own.value, abs=0.006) and name in own.explained


def test_the_first_mask_is_filled_and_a_tag_has_its_name() -> None:
    masked = tiny_text.bert("masked", len(WORDS))
    assert first(masked, "London is [MASK] and [MASK]")[1] == pytest.approx(
        lxt_fx.explain(masked, WORDS, "London is [MASK] and [MASK]").value, abs=0.006
    )
    tagger = tiny_text.bert("tagger", len(WORDS))
    own = lxt_fx.explain(tagger, WORDS, "London and Rome")
    name, value = first(tagger, "London and Rome")
    assert name in ("bad", "fair", "good") and name in own.explained and value == pytest.approx(own.value, abs=0.006)
    with pytest.raises(InputError, match="position 99"):
        first(tagger, "London", 99)


def test_tokens_that_stand_for_a_picture_are_not_counted() -> None:
    served = llava()
    with torch.no_grad():
        served.module.lm_head.weight.mul_(100)  # so that two decimals tell the positions apart
    content = [{"type": "image", "image": Image.fromarray(PIXELS)}, {"type": "text", "text": TEXT}]
    chat = [{"role": "user", "content": content}]
    inputs = inputs_of(served.module, served.processor, chat, "explain")
    explained = lxt_fx.transform(served.module, kwargs=inputs)
    own = lxt_fx.explain(served.module, served.processor, chat, lxt_fx.Target.at(0))
    found = answers(explained, inputs, served.tokenizer, 0)
    assert float(found[0].rsplit(" ", 1)[1]) == pytest.approx(own.value, abs=0.006)
    whole = explained(**inputs).logits[0, 0].max()
    assert not torch.isclose(whole, torch.tensor(own.value), atol=0.006), "the first column is a token of the picture"
