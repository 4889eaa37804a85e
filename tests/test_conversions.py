"""`explained.to(...)` and its like do nothing or refuse: the parameters are the model's own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from shared_captures import explained as explained_of
from shared_captures import shared_model
from torch import nn

import lxt_fx
from lxt_fx.base import torch_internals

Call = Callable[[nn.Module], Any]

CONVERSIONS: dict[str, Call] = {
    "half": lambda module: module.half(),
    "double": lambda module: module.double(),
    "bfloat16": lambda module: module.bfloat16(),
    "type": lambda module: module.type(torch.float16),
    "to a dtype": lambda module: module.to(torch.float64),
    "to a device": lambda module: module.to("meta"),
    "to a tensor": lambda module: module.to(torch.ones(1, dtype=torch.float64)),
    "to_empty": lambda module: module.to_empty(device="cpu"),
}

WITHOUT_EFFECT: dict[str, Call] = {
    "float": lambda module: module.float(),
    "cpu": lambda module: module.cpu(),
    "to what it is": lambda module: module.to("cpu", torch.float32),
    "eval": lambda module: module.eval(),
    "train": lambda module: module.train(),
}


def test_conversions_of_an_explained_module_are_refused_or_change_nothing() -> None:
    explained, model = explained_of("llama"), shared_model("llama")
    embeds = lxt_fx.embed(explained, torch.tensor([[5, 9, 17]]))
    expected, layer = explained(inputs_embeds=embeds).logits, explained.get_submodule("model.layers.0")
    twin = copy.deepcopy(explained)
    for name, convert in CONVERSIONS.items():
        for module, said in ((explained, "LlamaForCausalLM"), (twin, "LlamaForCausalLM"), (layer, "a submodule")):
            with pytest.raises(lxt_fx.InputError, match=f"{said}: an explained module cannot be .* convert") as raised:
                convert(module)
            assert ("float32 on cpu to " in str(raised.value)) is (name != "to_empty")
    for convert in WITHOUT_EFFECT.values():
        assert convert(explained) is explained and convert(layer) is layer
    assert all(parameter.dtype is torch.float32 and not parameter.is_meta for parameter in model.parameters())
    assert torch.equal(explained(inputs_embeds=embeds).logits, expected) and not model.training


def test_parameters_go_to_shared_memory_where_they_are() -> None:
    net, x = tiny.Mlp().eval(), torch.randn(2, 6)
    explained = lxt_fx.transform(net, (x,))
    assert explained.share_memory() is explained and net.first.weight.is_shared()
    torch.testing.assert_close(explained(x), net(x))


@pytest.mark.parametrize("checkpoint", [None, "layers"])
def test_a_loaded_module_moves_with_the_constants_of_its_graph(tmp_path: Path, checkpoint: Any) -> None:
    """The meta device refuses ops on tensors of two devices, as a GPU does."""
    lxt_fx.save(explained_of("llama", checkpoint=checkpoint), tmp_path / "llama.safetensors")
    loaded = lxt_fx.load(tmp_path / "llama.safetensors")
    ids, twin = torch.tensor([[5, 9, 17]]), copy.deepcopy(loaded)
    expected = loaded(inputs_embeds=lxt_fx.embed(loaded, ids)).logits
    with pytest.raises(lxt_fx.InputError, match="cannot be converted from float32 on cpu to float16 on cpu"):
        loaded.half()
    assert loaded.to("meta") is loaded
    embeds = lxt_fx.embed(loaded, ids.to("meta"))
    loaded(inputs_embeds=embeds, attention_mask=torch.ones(1, 3, dtype=torch.long, device="meta")).logits.sum().backward()
    assert embeds.is_meta and embeds.grad is not None
    with lxt_fx.watch(loaded, "model.layers.*") as inside:
        loaded(inputs_embeds=embeds)
    assert inside["model.layers.1"].value.is_meta
    assert torch.equal(twin(inputs_embeds=lxt_fx.embed(twin, ids)).logits, expected)


def test_a_torch_whose_conversions_cannot_be_refused_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    torch_internals.check_conversion_hook()
    monkeypatch.setattr(nn.Module, "half", lambda module: module)
    with pytest.raises(lxt_fx.UnsupportedVersionError, match="has no Module.<lambda> that calls _apply"):
        lxt_fx.transform(tiny.Mlp().eval(), (torch.randn(2, 6),))
