"""TransformerLens's names: values and axes against hooks on the model itself, and against TransformerLens where it is
installed (it brings wandb and datasets, so it is in no requirement of ours)."""

from __future__ import annotations

from typing import Any

import peers
import pytest
import shared_captures
import tiny
import tiny_text
import torch
from golden_cases import relative
from torch import Tensor, nn

import lxt_fx
from lxt_fx.bridges import transformer_lens as lens

IDS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])


def inputs_of(model: nn.Module, paths: dict[str, str]) -> dict[str, Tensor]:
    """What the modules at these paths are given, [batch, pos, d]."""
    found: dict[str, Tensor] = {}

    def save(name: str) -> Any:
        return lambda module, args: found.__setitem__(name, args[0].detach())

    handles = [model.get_submodule(path).register_forward_pre_hook(save(name)) for name, path in paths.items()]
    with torch.no_grad():
        model(IDS)
    for handle in handles:
        handle.remove()
    return found


def test_the_names_of_llama_are_the_values_that_its_modules_see() -> None:
    model = tiny.llama("eager")
    layer = "model.layers.1"
    paths = {"z": f"{layer}.self_attn.o_proj", "post": f"{layer}.mlp.down_proj", "pre": f"{layer}.input_layernorm"}
    seen = inputs_of(model, paths)
    with torch.no_grad():
        out = model(IDS, output_attentions=True)
    explained = lxt_fx.transform(model)
    other = ("attn.hook_q", "attn.hook_k", "hook_normalized_resid_post")
    names = [f"blocks.1.{name}" for name in lens.HOOKS if name not in other]
    with lens.watch(explained, "blocks.*.hook_resid_pre", *names, "hook_unembed") as cache:
        explained.with_leaves(IDS)[0].logits[:, -1, 7].sum().backward()
    shapes = {name: list(each.value.shape) for name, each in cache.items()}
    assert shapes["blocks.1.attn.hook_z"] == [2, 5, 4, 8] == shapes["blocks.1.attn.hook_rot_q"]
    assert shapes["blocks.1.attn.hook_pattern"] == [2, 4, 5, 5] and shapes["hook_unembed"] == [2, 5, 64]
    for name, expected in (
        ("blocks.1.hook_resid_pre", seen["pre"]),
        ("blocks.1.attn.hook_z", seen["z"].view(2, 5, 4, 8)),
        ("blocks.1.attn.hook_pattern", out.attentions[1]),
        ("blocks.1.mlp.hook_post", seen["post"]),
        ("hook_unembed", out.logits),
    ):
        assert relative(cache[name].value.detach(), expected) < 1e-5, name
    with lxt_fx.watch(explained, "attention.1.heads") as inside:
        explained.with_leaves(IDS)[0].logits[:, -1, 7].sum().backward()
    assert torch.equal(cache["blocks.1.attn.hook_z"].relevance, inside["attention.1.heads"].relevance.transpose(1, 2))


def test_where_a_name_does_not_correspond_the_error_says_what_does() -> None:
    llama, bert = lxt_fx.transform(tiny.llama()), lxt_fx.transform(tiny.bert("eager"))
    gemma = lxt_fx.transform(tiny.gemma3())
    for explained, name, said in (
        (llama, "blocks.0.attn.hook_q", "after a rotation, a norm or a scale: try attn.hook_rot_q"),
        (llama, "blocks.0.attn.hook_pattern", "does not have; load the model with attn_implementation='eager'"),
        (llama, "blocks.0.hook_normalized_resid_post", "here the stream is a sum, without a norm"),
        (llama, "blocks.0.hook_resid_mid", "hook_resid_pre plus hook_attn_out"),
        (llama, "blocks.9.hook_resid_pre", "would be residual.9, which LlamaForCausalLM does not have"),
        (llama, "hook_embed", "it is the leaf of a call"),
        (llama, "blocks.0.attn.hook_nothing", "is no place here; the nearest are blocks.0.attn.hook"),
        (llama, "blocks.1.hook_z", "the nearest are .*blocks.1.attn.hook_z"),
        (llama, "blocks.0.attn.q.hook_out", "watch the module that gives it, by its path"),
        (llama, "blocks.0.attn.o.hook_in", "attn.hook_z before attn.o"),
        (llama, "embed.hook_out", "it is the leaf of a call"),
        (llama, "ln_final.hook_normalized", "by its path .as model.norm."),
        (bert, "blocks.0.hook_resid_post", "here a norm stands behind the sum.*hook_normalized_resid_post"),
        (bert, "blocks.0.attn.hook_rot_k", "no rotated value: try attn.hook_q or attn.hook_k"),
        (gemma, "blocks.0.hook_attn_out", "between the projection and the residual stream"),
        (gemma, "blocks.0.hook_mlp_out", "between the projection and the residual stream"),
    ):
        with pytest.raises((lxt_fx.InputError, lxt_fx.UnknownNameError), match=said):
            lens.place(explained, name)
    assert lens.place(bert, "blocks.0.hook_normalized_resid_post") == "residual.1"
    assert lens.place(gemma, "blocks.0.attn.hook_out") == "attention.0.output"
    assert lens.place(bert, "blocks.1.attn.hook_q") == "attention.1.queries"


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "got no name; give names one after the other: 'blocks.*.attn.hook_z'"),
        ((["blocks.1.attn.hook_z"],), "is no name; give names one after the other"),
        ((("z", 1),), "'z', 1. is no name; give names one after the other"),
        ((lambda name: name.endswith("hook_z"),), "is no name; give names one after the other"),
        (("blocks.*.*",), "stands for more than the number of a block"),
        (("*",), "stands for more than the number of a block"),
    ],
)
def test_a_filter_as_run_with_cache_takes_it_is_refused(names: tuple[Any, ...], said: str) -> None:
    with pytest.raises(lxt_fx.InputError, match=said), lens.watch(shared_captures.explained("llama"), *names):
        pass


@peers.needs("transformer_lens")
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_values_and_axes_are_those_of_transformer_lens(family: str) -> None:
    from transformer_lens.model_bridge import TransformerBridge

    model = getattr(tiny, family)("eager")
    model.config.architectures = [type(model).__name__]
    known = {"gpt2": "gpt2", "llama": "llama-7b-hf"}[family]
    explained = lxt_fx.transform(getattr(tiny, family)("eager"))
    bridge = TransformerBridge.boot_transformers(
        known, hf_model=model, tokenizer=tiny_text.byte_tokenizer(), device="cpu", dtype=torch.float32
    )
    _, theirs = bridge.run_with_cache(IDS)
    ours = [name for name in theirs if name == "hook_unembed" or name.removeprefix("blocks.1.") in lens.HOOKS]
    ours = [name for name in ours if family == "gpt2" or name not in ("blocks.1.attn.hook_q", "blocks.1.attn.hook_k")]
    assert len(ours) == {"gpt2": 13, "llama": 13}[family], ours
    with lens.watch(explained, *ours) as cache:
        explained(IDS)
    for name in ours:
        expected = theirs[name]
        groups = cache[name].value.shape[2] // expected.shape[2] if expected.dim() == 4 and name[-1] in "kv" else 1
        assert relative(cache[name].value.detach(), expected.repeat_interleave(groups, 2)) < 1e-5, name
