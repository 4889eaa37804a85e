"""What a unit writes: against the weights of the models themselves, and against what the logits do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_text
import torch
from torch import Tensor, nn
from transformers import Olmo2Config, Olmo2ForCausalLM

import lxt_fx
from lxt_fx import InputError
from lxt_fx.inside import directions as directions_module
from lxt_fx.inside.corpus.header import PlaceHeader
from lxt_fx.inside.directions import directions, read_words, words, write_words

pytestmark = pytest.mark.usefixtures("captures_in_files")

CLOSE = 1e-4
"""float32; the scale of a norm is measured through the norm, which has an epsilon."""


def close(found: Tensor, expected: Tensor) -> bool:
    return float((found - expected).abs().max()) < CLOSE * float(expected.abs().max())


def olmo2() -> nn.Module:
    torch.manual_seed(0)
    model = Olmo2ForCausalLM(Olmo2Config(**tiny.SIZES, num_key_value_heads=2, pad_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


MODELS: dict[str, Any] = {**{name: tiny.MODELS[name] for name in ("llama", "gpt2", "gemma3", "vit")}, "olmo2": olmo2}


def parts(name: str, model: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Down projection [hidden, neurons] and output projection [hidden, heads * size] of layer 1, the scales of what stands
    behind them, that of the last norm, and the head [entries, hidden]."""
    if name == "gpt2":
        block = model.transformer.h[1]
        head = model.transformer.ln_f.weight, model.lm_head.weight
        return block.mlp.c_proj.weight.T, block.attn.c_proj.weight.T, torch.ones(()), torch.ones(()), *head
    if name == "vit":
        layer = (model.vit.encoder.layer if hasattr(model.vit, "encoder") else model.vit.layers)[1]
        linears = [each for each in layer.modules() if isinstance(each, nn.Linear)]
        down = next(each for each in linears if each.weight.shape == (32, 48))
        out = [each for each in linears if each.weight.shape == (32, 32)][3]
        return down.weight, out.weight, torch.ones(()), torch.ones(()), model.vit.layernorm.weight, model.classifier.weight
    layer, one = model.model.layers[1], torch.ones(())
    plus = 1 if name == "gemma3" else 0
    after = {
        "gemma3": "post_attention_layernorm post_feedforward_layernorm",
        "olmo2": "post_attention_layernorm post_feedforward_layernorm",
    }
    scales = [getattr(layer, norm).weight + plus for norm in after[name].split()] if name in after else [one, one]
    last = model.model.norm.weight + plus
    return layer.mlp.down_proj.weight, layer.self_attn.o_proj.weight, scales[1], scales[0], last, model.lm_head.weight


@pytest.mark.parametrize("name", MODELS)
def test_directions_are_the_columns_of_the_projections(name: str) -> None:
    model = MODELS[name]()
    explained = lxt_fx.transform(model)
    down, out, behind_down, behind_out, scale, head = (each.detach() for each in parts(name, model))
    assert close(directions(explained, "mlp.1.neurons", 5)[0], behind_down * down[:, 5])
    size = out.shape[1] // 4
    found = directions(explained, "attention.1.heads", 2)
    assert found.shape == (size, 32) and close(found, (behind_out[..., None] * out)[:, 2 * size : 3 * size].T)
    assert torch.equal(directions(explained, "residual.1", 3), torch.eye(32)[3:4])
    assert close(directions(explained, "mlp.1.output", 3), (behind_down * torch.eye(32)[3])[None])
    scores = head @ (scale * behind_down * down[:, 5])
    (made,) = words(explained, None, "mlp.1.neurons", [5], 3)[0]
    order = scores.argsort(descending=True).tolist()
    assert [word.entry for word in made.most] == order[:3] and [word.entry for word in made.least] == order[::-1][:3]
    # up to one factor: a norm of values of size 1 divides by almost 1
    assert abs(made.most[0].score / float(scores.max()) - 1) < CLOSE


def test_words_say_what_a_larger_neuron_does_to_the_logits() -> None:
    """A neuron of the last layer that is made much larger pushes the logits the way that its words say."""
    tokenizer = tiny_text.byte_tokenizer()
    model = tiny_text.llama(len(tokenizer))
    explained = lxt_fx.transform(model)
    (made,) = words(explained, tokenizer, "mlp.0.neurons", [11], 4)[0]
    ids = torch.tensor([tokenizer.encode("The capital of France")])

    def larger(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0].index_fill(2, torch.tensor([11]), 1e4),)

    handle = model.model.layers[0].mlp.down_proj.register_forward_pre_hook(larger)
    with torch.no_grad():
        order = model(ids).logits[0, -1].argsort(descending=True).tolist()
    handle.remove()
    assert [word.entry for word in made.most] == order[:4]
    assert [word.entry for word in made.least] == order[::-1][:4]
    assert made.most[0].text == tokenizer.decode([order[0]])


def test_words_of_a_head_are_its_strongest_directions() -> None:
    model = tiny.MODELS["llama"]()
    explained = lxt_fx.transform(model)
    found = words(explained, None, "attention.1.heads", [0, 3], 2)
    assert [len(each) for each in found] == [2, 2]
    _, out, _, _, scale, head = (each.detach() for each in parts("llama", model))
    left, sizes, _ = torch.linalg.svd(scale[:, None] * out[:, 24:32])
    sign = left[:, 0][left[:, 0].abs().argmax()].sign()
    expected = sign * sizes[0] * (head @ left[:, 0])
    assert abs(float(expected.max()) - found[1][0].most[0].score) < 1e-3
    assert found[1][0].most[0].entry == int(expected.argmax()) and found[1][0].least[0].entry == int(expected.argmin())


@pytest.mark.parametrize("place", ["mlp.1.neurons", "attention.1.heads"])
def test_words_of_many_units_are_those_of_each(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Units are read by the head in chunks; here of 3, so that the last one is smaller and one is full."""
    pytest.importorskip("pyarrow")
    explained = lxt_fx.transform(tiny.MODELS["llama"]())
    ids = (3, 1, 0, 2) if place.endswith("heads") else (7, 0, 47, 5, 6, 11, 12, 30)
    alone = [words(explained, None, place, [unit], 2)[0] for unit in ids]
    monkeypatch.setattr(directions_module, "CHUNK", 3)
    together = words(explained, None, place, ids, 2)
    write_words(explained, None, {place: PlaceHeader("", (), 48, ids)}, 2, tmp_path / "words.parquet")
    assert len(together) == len(ids)
    for unit, found, expected in zip(ids, together, alone, strict=True):
        written = read_words(tmp_path / "words.parquet", place, unit)
        assert len(found) == len(written) == len(expected) == (2 if place.endswith("heads") else 1)
        for direction, each in enumerate(expected):
            for made in (found[direction], written[direction]):
                for one, other in ((made.most, each.most), (made.least, each.least)):
                    assert [word.entry for word in one] == [word.entry for word in other]
                    assert [word.score for word in one] == pytest.approx([word.score for word in other], rel=1e-5)


def test_where_it_is_not_known_what_a_unit_writes_it_is_said() -> None:
    explained = lxt_fx.transform(tiny.MODELS["llama"]())
    with pytest.raises(InputError, match="attention.0.queries .* read by other ops"):
        directions(explained, "attention.0.queries", 1)
    with pytest.raises(InputError, match="it is no standard place"):
        directions(explained, "model.layers.0", 1)
    with pytest.raises(InputError, match="its projection reads 48 numbers"):
        directions(explained, "mlp.0.neurons", 48)
    bert = lxt_fx.transform(tiny.MODELS["bert"]())
    assert directions(bert, "mlp.0.neurons", 1).shape == (1, 32)
    with pytest.raises(InputError, match="more than a norm"):  # its pooler
        words(bert, None, "mlp.0.neurons", [1])
    squashed = tiny.MODELS["llama"]()
    squashed.model.norm = nn.Sequential(squashed.model.norm, nn.Tanh())  # of values of one size it is a scale
    with pytest.raises(InputError, match="more than a norm"):
        words(lxt_fx.transform(squashed), None, "mlp.0.neurons", [1])


@pytest.mark.parametrize("place", ["residual.1", "mlp.1.output"])
def test_a_feature_of_a_dictionary_writes_its_direction(place: str) -> None:
    rows = torch.nn.functional.normalize(torch.randn(20, 32, generator=torch.Generator().manual_seed(3)), dim=1)
    dictionary = lxt_fx.Dictionary(rows.T.contiguous(), rows, kind="topk", k=4)
    spliced = lxt_fx.splice(tiny.MODELS["llama"](), place, dictionary)
    for feature in (0, 7):
        (found,) = directions(spliced, f"{place}.features", feature)
        assert close(found, rows[feature])
    neurons = lxt_fx.Dictionary(torch.randn(48, 5), torch.randn(5, 48), kind="relu")
    inside = lxt_fx.splice(tiny.MODELS["llama"](), "mlp.1.neurons", neurons)
    with pytest.raises(InputError, match="mlp.1.neurons is read by other ops"):
        directions(inside, "mlp.1.neurons.features", 0)
