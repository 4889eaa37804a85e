"""The answer that a model writes: the likeliest token each time, with and without its cache, up to the end of the text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from torch import Tensor, nn

import lxt_fx
from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import facts_of
from lxt_fx.tasks.written_answer import writes, written_answer

TOKENIZER = tiny_text.byte_tokenizer()
IDS = TOKENIZER("The capital of France is", return_tensors="pt").input_ids

OWN = {
    "repetition_penalty": 50.0, "no_repeat_ngram_size": 1, "min_new_tokens": 6, "do_sample": True, "temperature": 5.0,
    "num_beams": 3,
}  # fmt: skip
"""Settings with which a checkpoint may want `generate` to write something else."""


@pytest.fixture
def model() -> Any:
    return tiny_text.llama(len(TOKENIZER))


def likeliest(model: Any, count: int) -> list[int]:
    """By a loop of plain calls."""
    ids = IDS
    for _ in range(count):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    return ids[0, IDS.shape[1] :].tolist()


def written(model: Any, count: int, of: nn.Module | None = None, **inputs: Tensor) -> list[int]:
    own = model if of is None else of
    return written_answer(own, {"input_ids": IDS, **inputs}, count, facts_of(model, "answer"), TOKENIZER)


@torch.no_grad()
def test_it_is_the_likeliest_token_each_time_whatever_generate_is_set_to(model: Any) -> None:
    expected = likeliest(model, 6)
    for name, value in OWN.items():
        setattr(model.generation_config, name, value)
    torch.manual_seed(0)
    generated = model.generate(IDS, max_new_tokens=6, pad_token_id=0)[0, IDS.shape[1] :].tolist()
    assert generated != expected, "the settings count for generate"
    explained = lxt_fx.transform(model)
    for own in (model, explained):
        assert written(model, 6, own, attention_mask=torch.ones_like(IDS)) == expected


@torch.no_grad()
@pytest.mark.parametrize("several", [False, True])
def test_it_ends_before_the_token_that_ends_a_text(several: bool, model: Any) -> None:
    first, *others = likeliest(model, 8)
    end = next((token for token in others if token != first), None)
    assert end is not None, "this model writes more than one token"
    model.generation_config.eos_token_id = [end, 0] if several else end
    assert written(model, 8) == [first, *others[: others.index(end)]]
    model.generation_config.eos_token_id = first
    assert written(model, 8) == [first], "all that there is"


@torch.no_grad()
def test_what_is_made_of_a_model_ends_a_text_where_the_model_does(model: Any, tmp_path: Path) -> None:
    first, *others = likeliest(model, 8)
    end = next(token for token in others if token != first)
    expected = [first, *others[: others.index(end)]]
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = [end, 0], 7
    explained = lxt_fx.transform(model)
    lxt_fx.save(explained, tmp_path / "module.safetensors")
    loaded = lxt_fx.load(tmp_path / "module.safetensors")
    other = as_explained(explained, (), {"input_ids": IDS}, "answer", "cp_lrp")
    for made in (explained, other, copy.deepcopy(explained), loaded, copy.deepcopy(loaded)):
        inputs = {"input_ids": IDS}
        assert written_answer(made, inputs, 8, facts_of(made, "answer"), TOKENIZER) == expected
    assert (loaded.generation_config.eos_token_id, loaded.generation_config.pad_token_id) == ([end, 0], [7])


def test_an_input_that_goes_on_in_an_unknown_way_is_refused(model: Any) -> None:
    with pytest.raises(InputError, match="answer: no answer can be written behind this text, since what token_type_ids"):
        written(model, 2, token_type_ids=torch.zeros_like(IDS))


@pytest.mark.parametrize("kind", ["classifier", "masked"])
def test_a_model_that_goes_on_with_no_text_writes_none(kind: str, model: Any) -> None:
    other = tiny_text.bert(kind, 20)
    assert writes(facts_of(model, "answer"), Reading.of("answer", model, None))
    assert not writes(facts_of(other, "answer"), Reading.of("answer", other, None))
