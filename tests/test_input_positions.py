"""A padded text is read as if alone, whatever a model counts its positions by; where it cannot be, it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_text import byte_tokenizer
from torch import Tensor

import lxt_fx
from lxt_fx.attribution.leaf_call import leaf_call
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import part_of
from lxt_fx.inputs.read import read_inputs

SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
HEADED: dict[str, Any] = {"vocab_size": 400, "intermediate_size": 48, "pad_token_id": 0, **SIZES}

LEFT = torch.tensor([[0, 0, 0, 56, 37, 28, 10], [77, 8, 9, 10, 11, 12, 13]])
MASKS = {
    "left": (LEFT != 0).long(),
    "right": (LEFT.flip(1) != 0).long(),
    "holes": torch.tensor([[1, 0, 1, 1, 0, 1, 0], [1] * 7]),
}


def ids_of(side: str) -> Tensor:
    return LEFT if side == "left" else LEFT.flip(1) if side == "right" else torch.arange(20, 34).reshape(2, 7)


def opt() -> Any:
    config = transformers.OPTConfig(ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32, vocab_size=400, **SIZES)
    return transformers.OPTForCausalLM(config)


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=400, **GPT)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**HEADED)),
    "opt": opt,
    "bloom": lambda: transformers.BloomForCausalLM(
        transformers.BloomConfig(vocab_size=400, hidden_size=32, n_layer=2, n_head=4)
    ),
    "bloom float64": lambda: MODELS["bloom"](),
    "roberta": lambda: transformers.RobertaForMaskedLM(transformers.RobertaConfig(max_position_embeddings=64, **HEADED)),
    "bert": lambda: transformers.BertForTokenClassification(transformers.BertConfig(**HEADED)),
    "classifier": lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**HEADED)),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=400, hidden_size=32, num_hidden_layers=2, state_size=4)
    ),
    "t5": lambda: transformers.T5ForConditionalGeneration(
        transformers.T5Config(
            vocab_size=400, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
        )
    ),
    "bart": lambda: transformers.BartModel(
        transformers.BartConfig(
            vocab_size=400, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        )
    ),
}  # fmt: skip

GETS_POSITIONS = {(name, side) for name in ("gpt2", "llama", "opt", "bert") for side in ("left", "holes")} | {
    ("classifier", "holes")
}
CANNOT = {
    ("classifier", "left"), ("t5", "holes"), ("bart", "left"), ("bart", "holes"), ("mamba", "holes"), ("roberta", "holes"),
    ("bloom float64", "left"),
}  # fmt: skip
"""A class is read off column 0, which is padding; relative distances go over holes; BART takes no positions;
Bloom computes NaN in float64."""


def made(name: str) -> Any:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    model = model if name == "bloom" else model.double()
    for parameter in model.parameters():  # positions count: random models hardly use them
        parameter.data = parameter.data + 0.1 * torch.randn_like(parameter)
    return model


def numbers(model: Any, inputs: Any) -> Tensor:
    with torch.no_grad():
        output = model(**inputs)
    found: Tensor = output.get("logits", output.get("last_hidden_state"))
    return found


@pytest.mark.parametrize("side", MASKS)
@pytest.mark.parametrize("name", MODELS)
def test_a_padded_text_is_read_as_if_alone(name: str, side: str) -> None:
    model, given = made(name), {"input_ids": ids_of(side), "attention_mask": MASKS[side]}
    if (name, side) in CANNOT:
        with pytest.raises(InputError, match="changes what .* computes for a text"):
            read_inputs(model, None, given, "explain")
        return
    read = read_inputs(model, None, given, "explain")
    assert ("position_ids" in read.inputs) == ((name, side) in GETS_POSITIONS)
    together, close = numbers(model, read.inputs), 1e-5 if name == "bloom" else 1e-9
    for index in range(2):
        columns = MASKS[side][index].bool()
        alone = {"input_ids": ids_of(side)[index : index + 1, columns]}
        more = {"decoder_input_ids": read.inputs["decoder_input_ids"][:1]} if "decoder_input_ids" in read.inputs else {}
        single = numbers(model, {**alone, **more})[0]
        own = together[index] if together.dim() == 2 or more else together[index, columns]
        torch.testing.assert_close(own, single, rtol=close, atol=close)


def test_left_padded_prompts_are_read_as_generate_reads_them() -> None:
    model = made("gpt2")
    inputs = read_inputs(model, None, {"input_ids": LEFT, "attention_mask": MASKS["left"]}, "explain").inputs
    made_by = model.generate(
        LEFT, attention_mask=MASKS["left"], max_new_tokens=1, output_logits=True, return_dict_in_generate=True,
        pad_token_id=0, do_sample=False,
    )  # fmt: skip
    torch.testing.assert_close(numbers(model, inputs)[:, -1], made_by.logits[0].double(), rtol=1e-5, atol=1e-5)
    by_mask_only = numbers(model, {"input_ids": LEFT, "attention_mask": MASKS["left"]})[0, -1]
    assert (by_mask_only - made_by.logits[0][0]).abs().max() > 0.01


def test_positions_are_given_in_half_precision_too() -> None:
    given = {"input_ids": LEFT, "attention_mask": MASKS["left"]}
    for name, gets in (("gpt2", True), ("roberta", False)):
        read = read_inputs(made(name).to(torch.bfloat16), None, given, "explain")
        assert ("position_ids" in read.inputs) == gets


def test_positions_that_are_given_are_taken() -> None:
    given = {
        "input_ids": LEFT,
        "attention_mask": MASKS["left"],
        "position_ids": (MASKS["left"].cumsum(-1) - 1).clamp(min=0),
    }
    read = read_inputs(made("gpt2"), None, given, "explain")
    assert torch.equal(read.inputs["position_ids"], given["position_ids"])
    wrong = {**given, "position_ids": torch.arange(7).expand(2, 7)}
    with pytest.raises(InputError, match="changes what"):
        read_inputs(made("gpt2"), None, wrong, "explain")


@pytest.mark.parametrize(("name", "side"), [("classifier", "right"), ("gpt2", "left")])
def test_texts_go_to_the_side_where_padding_does_not_show(name: str, side: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.padding_side = "left"
    mask = read_inputs(made(name), tokenizer, ["The capital of France", "Rome"], "explain").inputs["attention_mask"]
    assert bool(mask[1, 0]) == (side == "right")


def test_relevance_of_a_padded_text_is_that_of_the_text_alone() -> None:
    """Against gradient x input of the model itself, called by hand on the text alone."""
    model = made("gpt2")
    explained = lxt_fx.transform(model, rules="gradient")
    given = read_inputs(explained, None, {"input_ids": LEFT, "attention_mask": MASKS["left"]}, "explain")
    call = leaf_call(explained, (), given.inputs, "input_ids", "explain")
    (leaf,) = call.leaves.values()
    (gradient,) = torch.autograd.grad(call.output().logits[0, -1, 3], leaf)
    part = part_of(given.examples[0].places[0], (leaf * gradient)[None])
    embedded = model.get_input_embeddings()(LEFT[:1, 3:]).detach().requires_grad_()
    (alone,) = torch.autograd.grad(model(inputs_embeds=embedded).logits[0, -1, 3], embedded)
    torch.testing.assert_close(part.values[0], (embedded * alone).sum(-1)[0].detach(), rtol=1e-9, atol=1e-12)
