"""The answer that a model writes: the likeliest token each time, with and without its cache, up to the end of the text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tiny_text
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PaliGemmaConfig, PaliGemmaForConditionalGeneration

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


def gpt2() -> Any:
    """A random GPT-2 of one layer, which takes token types."""
    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
    return GPT2LMHeadModel(GPT2Config(vocab_size=len(TOKENIZER), **sizes)).eval()


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


@pytest.mark.parametrize(
    ("name", "value"),
    [("marks", torch.zeros_like(IDS)), ("marks", torch.zeros(*IDS.shape, 3)), ("position_ids", torch.zeros(3, *IDS.shape))],
)
def test_an_input_that_goes_on_in_an_unknown_way_is_refused(name: str, value: Tensor, model: Any) -> None:
    with pytest.raises(InputError, match=f"answer: no answer can be written .* how {name} .*goes on.*0 answer tokens"):
        written(model, 2, **{name: value})


@torch.no_grad()
def test_token_types_go_on_as_at_the_last_token() -> None:
    model = gpt2()
    model.transformer.wte.weight[9] *= 40  # so that this type counts, which is added as the token is
    types = torch.cat([torch.zeros_like(IDS[:, :-2]), torch.full((1, 2), 9)], 1)
    ids, kinds = IDS, types
    for _ in range(5):
        ids = torch.cat([ids, model(input_ids=ids, token_type_ids=kinds).logits[:, -1:].argmax(-1)], 1)
        kinds = torch.cat([kinds, torch.full((1, 1), 9)], 1)
    expected = ids[0, IDS.shape[1] :].tolist()
    assert written(model, 5, token_type_ids=types) == expected != written(model, 5)
    found = lxt_fx.answer_relevance(model, TOKENIZER, {"input_ids": IDS, "token_type_ids": types}, expected)
    assert [number.value for number in found.numbers] and found.input_ids == tuple(ids[0].tolist())


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_not_read(side: str, model: Any) -> None:
    """Neither ignored with the mask nor written behind."""
    padding, expected = torch.full((1, 3), 5), written(model, 4)
    ids = torch.cat([padding, IDS] if side == "left" else [IDS, padding], 1)
    mask = torch.cat([torch.zeros_like(padding), torch.ones_like(IDS)], 1)
    mask = mask if side == "left" else mask.flip(1)
    inputs = {"input_ids": ids, "attention_mask": mask}
    inputs |= {"position_ids": (mask.cumsum(1) - 1).clamp(0)}
    assert written_answer(model, inputs, 4, facts_of(model, "answer"), TOKENIZER) == expected


@torch.no_grad()
def test_positions_that_a_person_gave_go_on_from_the_last() -> None:
    model = gpt2()
    model.transformer.wpe.weight.mul_(30)  # so that a position counts
    places = torch.arange(IDS.shape[1])[None] * 2 + 3
    ids, at = IDS, places
    for _ in range(5):
        ids = torch.cat([ids, model(input_ids=ids, position_ids=at).logits[:, -1:].argmax(-1)], 1)
        at = torch.cat([at, at[:, -1:] + 1], 1)
    assert written(model, 5, position_ids=places) == ids[0, IDS.shape[1] :].tolist() != written(model, 5)


@torch.no_grad()
def test_an_answer_to_a_picture_is_what_generate_writes() -> None:
    """The types of the answer's tokens say that they are read from left to right, other than the prompt."""
    torch.manual_seed(0)
    text = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    eye = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", "vocab_size": 340, "num_key_value_heads": 1, **text},
        vision_config={"model_type": "siglip_vision_model", "image_size": 8, "patch_size": 4, "projection_dim": 32, **eye},
        image_token_index=339, projection_dim=32, hidden_size=32,
    )  # fmt: skip
    model = PaliGemmaForConditionalGeneration(config).eval()
    ids = torch.cat([torch.full((1, 4), 339), IDS], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
    inputs |= {"pixel_values": torch.randn(1, 3, 8, 8), "mm_token_type_ids": (ids == 339).long()}
    facts = facts_of(model, "answer")
    inputs = {name: value for name, value in inputs.items() if facts.takes(name)}
    generated = model.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert writes(facts, Reading.of("answer", model, None))
    assert written_answer(model, inputs, 6, facts, None) == generated[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("kind", ["classifier", "masked"])
def test_a_model_that_goes_on_with_no_text_writes_none(kind: str, model: Any) -> None:
    other = tiny_text.bert(kind, 20)
    assert writes(facts_of(model, "answer"), Reading.of("answer", model, None))
    assert not writes(facts_of(other, "answer"), Reading.of("answer", other, None))
