"""Which tokens the live page may call later ones: models that read both ways, whatever their class is called."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_text
import torch
import transformers as hf

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.explorer.server.asked import read_asked
from lxt_fx.explorer.server.served_model import Answered, ServedModel

pytestmark = pytest.mark.usefixtures("captures_in_files")

Image = pytest.importorskip("PIL.Image")

TEXT = "Paris, London and Rome"
WORDS = tiny_text.word_tokenizer()
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
BERT = {"vocab_size": len(WORDS), **SMALL}


def xlnet() -> Any:
    return hf.XLNetLMHeadModel(hf.XLNetConfig(vocab_size=len(WORDS), d_model=32, n_layer=1, n_head=4, d_inner=64))


def xlm() -> Any:
    return hf.XLMWithLMHeadModel(hf.XLMConfig(vocab_size=len(WORDS), emb_dim=32, n_layers=1, n_heads=4))


def served(model: Any, processor: Any = WORDS) -> ServedModel:
    return ServedModel(model.eval(), processor)


def ask(served: ServedModel, **question: Any) -> Answered:
    return served.answer(read_asked(json.dumps({"kind": "explain", "text": TEXT, "rules": "attnlrp", **question})))


def text_of(found: Answered) -> dict[str, Any]:
    part: dict[str, Any] = next(part for part in found.result["parts"] if part["kind"] == "text")
    return part


def behind(found: Answered, position: int) -> np.ndarray:
    """The relevance of the tokens behind a position."""
    values = text_of(found)["values"]
    return np.frombuffer(base64.b64decode(values["data"]), "<f4").reshape(values["shape"])[..., position + 1 :]


MODELS: dict[str, Callable[[], Any]] = {
    "bert": lambda: hf.BertLMHeadModel(hf.BertConfig(**BERT)),
    "xlnet": xlnet,
    "xlm": xlm,
}


@pytest.mark.parametrize("name", MODELS)
def test_relevance_behind_the_position_is_shown_where_a_model_reads_both_ways(name: str) -> None:
    torch.manual_seed(0)
    model = served(MODELS[name]())
    found = ask(model, position=2)
    assert behind(found, 2).all(), "each token behind the position has relevance"
    assert "read" not in text_of(found) and not found.predicts_next
    assert found.positions == len(text_of(found)["tokens"]), "what is predicted there can be explained all the same"
    logits = model.module(**WORDS(TEXT, return_tensors="pt")).logits[0, 2].detach()
    assert found.candidates[0]["id"] == int(logits.argmax())


def test_a_model_that_reads_one_way_has_not_read_what_comes_later() -> None:
    torch.manual_seed(0)
    model = served(hf.BertLMHeadModel(hf.BertConfig(is_decoder=True, **BERT)))
    found = ask(model, position=2)
    assert text_of(found)["read"] == 3 and not behind(found, 2).any() and found.predicts_next
    assert ask(model, position=2, steer={"residual.0": {"scale": 0.5}}).predicts_next
    tagger = ask(served(tiny_text.bert("tagger", len(WORDS))), position=2)
    assert tagger.positions and not tagger.predicts_next and "read" not in text_of(tagger)


def test_the_score_of_a_start_has_relevance_on_both_sides() -> None:
    torch.manual_seed(0)
    found = ask(served(hf.BertForQuestionAnswering(hf.BertConfig(**BERT))), target="start", position=2)
    assert behind(found, 2).all() and "read" not in text_of(found) and found.positions is None


def test_a_graph_for_other_values_alone_is_not_said_to_predict_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it refuses the other token, nothing is known."""
    tokenizer = tiny_text.byte_tokenizer()
    explained = lxt_fx.transform(tiny_text.llama(len(tokenizer)))
    model, own = ServedModel(explained, tokenizer), tokenizer(TEXT, return_tensors="pt").input_ids
    assert ask(model).predicts_next
    model._predict_next.clear()
    plain = type(explained)._prepared

    def refusing(self: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(ids := kwargs.get("input_ids"), torch.Tensor) and not torch.equal(ids, own):
            raise lxt_fx.CallError("made for other values")
        return plain(self, args, kwargs)

    monkeypatch.setattr(type(explained), "_prepared", refusing)
    assert not ask(model).predicts_next


def paligemma() -> ServedModel:
    tokenizer = tiny_text.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"], "bos_token": "<|bos|>"})
    image, count = tokenizer.convert_tokens_to_ids("<image>"), len(tokenizer) + 2000
    text = hf.GemmaConfig(vocab_size=count, num_key_value_heads=4, head_dim=8, **SMALL)
    looks = hf.SiglipVisionConfig(image_size=8, patch_size=4, projection_dim=32, **SMALL)
    config = hf.PaliGemmaConfig(text_config=text, vision_config=looks, image_token_index=image, projection_dim=32)
    pictures = hf.SiglipImageProcessor(size={"height": 8, "width": 8})
    pictures.image_seq_length = 4
    processor = hf.PaliGemmaProcessor(pictures, tokenizer)
    config.image_token_id = processor.image_token_id
    return ServedModel(hf.PaliGemmaForConditionalGeneration(config).eval(), processor)


def test_a_prompt_that_is_read_both_ways_has_relevance_behind_the_position() -> None:
    torch.manual_seed(0)
    written = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(written, "png")
    picture = "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()
    found = ask(paligemma(), image=picture, position=2)
    assert behind(found, 2).all() and "read" not in text_of(found) and not found.predicts_next


def test_the_candidates_are_read_where_explain_reads_the_target() -> None:
    torch.manual_seed(0)
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=len(WORDS), **SMALL)).eval()
    masked, text = tiny_text.bert("masked", len(WORDS)), "London is [MASK] and [MASK]"
    for one in (model, masked):
        found = ask(ServedModel(one, WORDS), text=text)
        own = lxt_fx.explain(one, WORDS, text)
        assert found.candidates[0]["logit"] == pytest.approx(own.value, rel=1e-5), "a mask is no place of its own in a text"
    with pytest.raises(InputError, match="position 99"):
        ask(ServedModel(model, WORDS), position=99)
