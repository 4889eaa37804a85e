"""What people call a model with, and what they wrap around it: an explained module gives the model's own numbers."""

from __future__ import annotations

import copy
import dataclasses
import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from torch import Tensor, nn

import lxt_fx
from lxt_fx import CallError, CaptureError, Explained, InputError
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.capture.opened_model import opened
from tests import tiny

EMBEDS = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0))


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def same(explained: Explained, expected: Tensor, *args: Any, **kwargs: Any) -> bool:
    """Whether a call gives this output, and a gradient reaches the leaf."""
    output = explained(*args, **kwargs)
    return bool(torch.allclose(getattr(output, "logits", output), expected, rtol=1e-5, atol=1e-6))


# Wrappers

WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": nn.DataParallel,
    "torch.compile": torch.compile,  # type: ignore[dict-item]
    "both": lambda model: nn.DataParallel(torch.compile(model)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_is_opened(wrapper: str) -> None:
    model = tiny.llama(layers=1)
    explained = lxt_fx.transform(WRAPPERS[wrapper](model))
    assert explained.record.model_class == "LlamaForCausalLM"
    assert explained.get_parameter("model.layers.0.mlp.up_proj.weight") is model.model.layers[0].mlp.up_proj.weight
    embeds = model.get_input_embeddings()(torch.tensor([[5, 9, 17]])).detach()
    assert same(explained, model(inputs_embeds=embeds).logits, inputs_embeds=embeds)


def test_every_function_that_takes_a_model_opens_it() -> None:
    model = tiny.llama(layers=1)
    wrapped, ids = nn.DataParallel(model), torch.tensor([[5, 9, 17]])
    inputs = {"input_ids": ids}
    assert lxt_fx.certificate(wrapped).model_class == "LlamaForCausalLM"
    assert lxt_fx.audit(wrapped, inputs, 3).model_class == "LlamaForCausalLM"
    relevance = lxt_fx.relevance_of(wrapped, inputs, [3])
    assert torch.equal(relevance, lxt_fx.relevance_of(model, inputs, [3]))
    assert lxt_fx.answer_relevance(wrapped, None, [5, 9], [7]).model_class == "LlamaForCausalLM"
    curves = [lxt_fx.perturbation_curves(each, inputs, relevance[0], 3).area for each in (wrapped, model)]
    assert torch.equal(*curves)
    pixels = seeded(3, 16, 16)
    shown = [lxt_fx.explain_image(each, pixels, 1).relevance for each in (nn.DataParallel(Classifier()), Classifier())]
    assert torch.equal(*shown)


def test_modules_that_are_compiled_inside_of_the_model_are_captured_as_plain_ones() -> None:
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    model, x = copy.deepcopy(plain), seeded(3, 4)
    model[0] = torch.compile(model[0])  # type: ignore[assignment]
    model[2].compile()
    wrapped, call = model[0], model[2]._compiled_call_impl
    for dynamic in (True, False):
        explained = lxt_fx.transform(model, (x,), dynamic=dynamic)
        assert same(explained, plain(x), x) and explained.get_parameter("0.weight") is not None
    assert model[0] is wrapped and model[2]._compiled_call_impl is call


class BaseTuner(nn.Module):
    """Named as the class of PEFT whose forward calls the model with the adapters inside, and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


class AddsMore(BaseTuner):
    """Named by its own forward, which does more."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * self.model(*args, **kwargs)


class PeftModel(nn.Module):
    """In the form of PEFT's class of this name."""

    def __init__(self, base_model: nn.Module, **settings: Any) -> None:
        super().__init__()
        self.base_model = base_model
        self.peft_config = {"default": type("Config", (), settings)}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.base_model(*args, **kwargs)


PeftModel.__module__ = "peft.peft_model"


def test_an_adapter_inside_the_base_model_is_opened_and_what_computes_more_is_captured_whole() -> None:
    base, x = tiny.Mlp().eval(), seeded(3, 6)
    assert opened(PeftModel(BaseTuner(base)), "transform") is base
    for around in (
        PeftModel(AddsMore(base)),
        PeftModel(BaseTuner(base), is_prompt_learning=True),
        PeftModel(BaseTuner(base), alora_invocation_tokens=[3]),
    ):
        assert opened(around, "transform") is around
        explained = lxt_fx.transform(around, (x,))
        assert explained.record.model_class == "PeftModel" and same(explained, around(x), x)


def test_real_adapters_and_virtual_tokens_give_the_numbers_of_the_peft_model() -> None:
    peft = pytest.importorskip("peft")
    ids = torch.tensor([[5, 9, 17], [4, 8, 15]])
    lora = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    for config, captured in (
        (lora, "LlamaForCausalLM"),
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PeftModelForCausalLM"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3), "PeftModelForCausalLM"),
    ):
        model = peft.get_peft_model(tiny.llama(layers=1), config).eval()
        explained = lxt_fx.transform(model)
        embeds = model.get_input_embeddings()(ids).detach()
        assert explained.record.model_class == captured
        assert same(explained, model(input_ids=ids).logits, inputs_embeds=embeds)


class AlignDevicesHook:
    """In the form of accelerate's hook: it loads the weights of a module for a call."""

    offload = True

    def __init__(self, module: nn.Module) -> None:
        self.weights_map = {name: p.detach().clone() for name, p in module.named_parameters(recurse=False)}


def offloaded(model: nn.Module) -> nn.Module:
    """The model as accelerate leaves it: weights on the meta device, and a forward that loads them."""

    def loading(module: nn.Module, *args: Any) -> Any:
        weights, own = module._hf_hook.weights_map, copy.copy(module)
        del own.forward
        return torch.func.functional_call(own, weights, args) if weights else module._old_forward(*args)

    for module in model.modules():
        if names := list(dict(module.named_parameters(recurse=False))):
            module._hf_hook, module._old_forward = AlignDevicesHook(module), module.forward
            for name in names:
                setattr(module, name, nn.Parameter(getattr(module, name).to("meta")))
            module.forward = functools.partial(loading, module)
    return model


def test_weights_that_a_hook_loads_are_read_for_each_use_and_the_model_stays_as_it_was() -> None:
    plain, x = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)).eval(), seeded(3, 4)
    model = offloaded(copy.deepcopy(plain))
    model[2]._hf_hook.weights_map = model[0]._hf_hook.weights_map
    plain[2].weight = plain[0].weight
    explained = lxt_fx.transform(model, (x,))
    assert same(explained, plain(x), x)
    assert all(parameter.is_meta for parameter in explained.parameters())
    assert model[0].weight.is_meta and "_hf_hook" in vars(model[0]) and isinstance(model[0].forward, functools.partial)
    model[0]._hf_hook.weights_map = {}
    with pytest.raises(InputError, match="0.weight is on the meta device, and no hook of accelerate has a weight"):
        lxt_fx.transform(model, (x,))


# Signatures


class Passes(transformers.LlamaForCausalLM):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


class Adds(transformers.LlamaForCausalLM):
    def forward(self, input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        return super().forward(input_ids, **kwargs)


@pytest.mark.parametrize("cls", [Passes, Adds])
def test_a_forward_that_passes_its_inputs_on_has_the_names_of_its_base(cls: type[nn.Module]) -> None:
    model = tiny.llama(layers=1)
    model.__class__ = cls
    explained = lxt_fx.transform(model)
    assert explained.record.inputs == lxt_fx.transform(tiny.llama(layers=1)).record.inputs
    assert same(explained, model(inputs_embeds=EMBEDS).logits, inputs_embeds=EMBEDS)


def test_inputs_of_a_starred_forward_are_given_by_position() -> None:
    class Starred(nn.Module):
        def forward(self, x: Tensor, *rest: Any) -> Tensor:
            y, factor = rest
            return x.relu() * factor + y

    x, y = seeded(3, 4), seeded(3, 4) + 1
    explained = lxt_fx.transform(Starred(), (x, y, 2.0))
    assert explained.record.inputs == ("x", "rest_0") and explained.record.specialised == ()
    assert same(explained, Starred()(x[:2], y[:2], 2.0), x[:2], y[:2], 2.0)
    with pytest.warns(UserWarning, match="called with rest_1=3.0, and was captured with rest_1=2.0"):
        assert same(explained, Starred()(x, y, 3.0), x, y, 3.0)
    with pytest.raises(CallError, match="the call leaves out rest_1, .* itself fails"), pytest.warns(UserWarning):
        explained(x, y)
    with pytest.raises(InputError, match="x of Starred is given by position and by name|multiple values"):
        lxt_fx.transform(Starred(), (x, y), {"x": x})
    area = lxt_fx.perturbation_curves(Starred(), (x, y, 2.0), x, lambda out: out.sum(-1), leaf="x").area
    assert bool(area.isfinite().all())


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, **more: Tensor) -> Tensor:
        return self.linear(x) * more["scale"] if "scale" in more else self.linear(x)


def test_inputs_that_go_into_kwargs_have_free_sizes() -> None:
    model, x, scale = Scaled().eval(), seeded(2, 5, 4), seeded(2, 5, 1)
    explained = lxt_fx.transform(model, (x,), {"scale": scale})
    assert explained.record.sizes == {"x": (None, None, 4), "scale": (None, None, 1)} and not explained.record.specialised
    assert same(explained, model(x[:1, :3], scale=scale[:1, :3]), x[:1, :3], scale=scale[:1, :3])


class Ordered(nn.Module):
    def forward(self, x: Tensor, factor: float = 1.0, y: Tensor | None = None) -> Tensor:
        return x.relu() * factor + (0 if y is None else y)


def test_positional_inputs_of_a_call_have_the_order_of_the_example(tmp_path: Any) -> None:
    x, y = seeded(2, 3), seeded(2, 3) + 1
    explained = lxt_fx.transform(Ordered(), (x, 2.0, y))
    lxt_fx.save(explained, tmp_path / "ordered")
    again = lxt_fx.transform(explained, (x, 2.0, y), rules="gradient")
    for module in (explained, lxt_fx.load(tmp_path / "ordered"), again):
        assert same(module, Ordered()(y, 2.0, x), y, 2.0, x)
        if module.record.table is None:
            with pytest.raises(CallError, match="factor=2.0 is baked into the graph"):
                module(y, 3.0, x)
            continue
        with pytest.warns(UserWarning, match="called with factor=3.0, and was captured with factor=2.0"):
            assert same(module, Ordered()(y, 3.0, x), y, 3.0, x)


def test_an_input_by_position_is_what_the_model_takes_there_also_if_the_example_has_it_not() -> None:
    """A mask that was taken for the positions of the example gave another answer without a word."""
    model, ids = tiny.llama(layers=1), torch.tensor([[0, 5, 9, 17], [5, 9, 17, 23]])
    mask, places = (ids != 0).long(), torch.arange(4).expand(2, -1)
    for example in ({"input_ids": ids, "position_ids": places}, {"input_ids": ids}):
        explained = lxt_fx.transform(model, kwargs=example)
        assert same(explained, model(ids, mask).logits, ids, mask)
    assert not torch.allclose(model(ids, mask).logits, model(ids, position_ids=mask).logits, atol=1e-3)
    with pytest.raises(CallError, match=r"with 12 inputs by position, and it takes \d+ \(input_ids, attention_mask"):
        explained(*[ids] * 12)


def test_a_setting_that_the_example_had_not_is_captured_when_a_call_has_it() -> None:
    model, ids = tiny.llama(layers=1), torch.tensor([[5, 9, 17, 23]])
    explained = lxt_fx.transform(model)
    for settings in ({"output_hidden_states": True}, {"return_dict": False}, {"logits_to_keep": 2}, {"logits_to_keep": 3}):
        want, got = model(ids, use_cache=False, **settings), explained(ids, **settings)
        assert type(got) is type(want)
        found, expected = (pytree.tree_leaves(each if isinstance(each, tuple) else dict(each)) for each in (got, want))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert explained(ids).hidden_states is None and same(explained, model(ids).logits, ids)
    with pytest.raises(CallError, match="no input output_hidden_state;"):
        explained(ids, output_hidden_state=True)


def test_a_call_may_refuse_the_outputs_that_the_config_asks_for() -> None:
    model, ids = tiny.llama(layers=1), torch.tensor([[5, 9, 17, 23]])
    model.config.output_hidden_states = True
    explained = lxt_fx.transform(model)
    for asked in (True, False):
        got, want = explained(ids, output_hidden_states=asked), model(ids, output_hidden_states=asked)
        assert (got.hidden_states is None) is (want.hidden_states is None) is not asked
        torch.testing.assert_close(got.logits, want.logits)
    model.config.output_hidden_states = False
    explained = lxt_fx.transform(model)
    assert explained(ids, output_hidden_states=False, output_attentions=False).hidden_states is None
    assert not explained._other_calls.graphs  # type: ignore[union-attr]


def test_a_mask_for_each_query_and_what_generation_gives_are_taken() -> None:
    """A mask [batch, 1, tokens, tokens], of bool or added to the scores; positions in a cache; a cache."""
    model = tiny.llama(layers=1)
    explained = lxt_fx.transform(model)
    for length in (6, 4):
        ids = torch.arange(5, 5 + 2 * length).view(2, length)
        seen = torch.ones(2, 1, length, length).tril().bool()
        seen[..., 1] &= torch.eye(length, dtype=torch.bool)[1]
        added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
        for further in ({"attention_mask": seen}, {"attention_mask": added}, {"cache_position": torch.arange(length)}):
            output, leaves = explained.with_leaves(ids, **further)
            torch.testing.assert_close(output.logits, model(ids, **further).logits, rtol=1e-5, atol=1e-6)
            assert list(leaves) == ["inputs_embeds"]
        cached = explained(ids, use_cache=True)
        assert cached.past_key_values is None and torch.equal(cached.logits, explained(ids).logits)
    assert not torch.allclose(model(ids, attention_mask=seen).logits, model(ids).logits, atol=1e-3)
    with pytest.raises(CallError, match="valid only if"):
        explained(ids, attention_mask=seen[..., :3])


TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = TOWER | {"vocab_size": 64, "max_position_embeddings": 16}
IMAGE = TOWER | {"image_size": 16, "patch_size": 8}


def _clip() -> nn.Module:
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=TEXT, vision_config=IMAGE, projection_dim=8))


def _vqa() -> nn.Module:
    return transformers.ViltForQuestionAnswering(transformers.ViltConfig(**TEXT, image_size=16, patch_size=8))


def _caption() -> nn.Module:
    text = TEXT | {"bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2, "is_decoder": True}
    return transformers.BlipForConditionalGeneration(transformers.BlipConfig(text_config=text, vision_config=IMAGE))


def _retrieval() -> nn.Module:  # its forward requires pixel_values
    config = transformers.BlipConfig(text_config=TEXT | {"sep_token_id": 2}, vision_config=IMAGE)
    return transformers.BlipForImageTextRetrieval(config)


def _choices() -> nn.Module:
    return transformers.BertForMultipleChoice(transformers.BertConfig(**TEXT))


@pytest.mark.parametrize("made", [_clip, _vqa, _caption, _retrieval, _choices])
def test_a_model_that_needs_more_than_its_main_input_is_captured_without_an_example(made: Callable[[], nn.Module]) -> None:
    model = made().eval()
    explained = lxt_fx.transform(model)
    ids = torch.tensor([[5, 9, 17], [5, 23, 9], [7, 5, 9]])
    inputs = {"input_ids": ids, "pixel_values": seeded(3, 3, 16, 16)}
    if made is _choices:
        inputs = {"input_ids": torch.stack([ids, ids.flip(1)])}
    if made is _vqa:  # its code counts the patches of each image, so a graph has the sizes of its example
        inputs = {name: value[:2].repeat(1, 3)[:, :7] if value.dim() == 2 else value[:2] for name, value in inputs.items()}
    output, leaves = explained.with_leaves(**inputs)
    torch.testing.assert_close(output[0], model(**inputs)[0], rtol=1e-4, atol=1e-5)
    assert leaves.keys() == {"inputs_embeds", *inputs} - {"input_ids"}


def test_a_number_is_part_of_what_a_graph_is_captured_for_and_graphs_of_numbers_are_bounded() -> None:
    x = seeded(2, 3)
    explained = lxt_fx.transform(Ordered(), (x,))
    for factor in (2.0, 2, *range(3, 20)):
        assert same(explained, Ordered()(x, factor), x, factor)
    assert len(explained._other_calls.graphs) == 16  # type: ignore[union-attr]
    compiled = torch.compile(explained, fullgraph=True, backend="eager")
    assert same(compiled, Ordered()(x, 19), x, 19)  # type: ignore[arg-type]


def test_another_thread_calls_the_model_as_before_while_it_is_captured() -> None:
    outputs: list[Tensor] = []

    class Waits(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            if y is not None and "forward" in vars(self) and not outputs:  # while it is captured
                thread = threading.Thread(target=lambda: outputs.append(self(x=torch.ones(1))))
                thread.start()
                thread.join()
            return x.relu() if y is None else x.relu() + y

    model = Waits()
    explained = lxt_fx.transform(model, (seeded(2, 3), seeded(2, 3)))
    assert torch.equal(outputs[0], torch.ones(1)) and explained.record.method.startswith("torch.export")


# Nested inputs


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x: Tensor, extra: Any = None) -> Tensor:
        out = self.linear(x)
        if extra and extra.get("b") is not None:
            out = out * extra["b"]
        return out * extra["c"] if extra and extra.get("c") else out


@pytest.mark.parametrize("extra", [{"a": None}, {"a": None, "b": torch.ones(2, 3) * 3}, {"b": torch.ones(2, 3), "c": 2}])
def test_a_dict_among_the_inputs_may_hold_none_and_numbers(extra: dict[str, Any]) -> None:
    model, x = Nested().eval(), seeded(2, 3)
    explained = lxt_fx.transform(model, (x, extra))
    assert explained.record.sizes["x"] == (None, 3) and same(explained, model(x, extra), x, extra=extra)


def test_the_keys_of_a_dict_may_come_in_any_order() -> None:
    class Differs(nn.Module):
        def forward(self, parts: list[dict[str, Tensor]]) -> Tensor:
            return parts[0]["a"].relu() - parts[0]["b"]

    a, b = seeded(2, 3), seeded(2, 3) + 1
    explained = lxt_fx.transform(Differs(), ([{"a": a, "b": b}],))
    for parts in ([{"a": b, "b": a}], [{"b": a, "a": b}]):
        assert same(explained, Differs()(parts), parts)
        bound = explained._prepared((parts,), {})[1]
        assert torch.equal(explained._run_by(torch.fx.Interpreter(explained), bound), Differs()(parts))


def test_other_numbers_sizes_and_parts_of_a_nested_input_are_refused(tmp_path: Any) -> None:
    model, x, b = Nested().eval(), seeded(2, 3), torch.ones(2, 3)
    explained = lxt_fx.transform(model, (x, {"b": b, "c": 2, "n": None}))
    lxt_fx.save(explained, tmp_path / "nested")
    for module in (explained, lxt_fx.load(tmp_path / "nested")):
        assert same(module, model(x[:1], {"b": b[:1], "c": 2}), x[:1], {"b": b[:1], "c": 2, "n": None})
        for other, said in (
            ({"b": b, "c": 3, "n": None}, "extra_c=2 is baked into the graph, and the call has 3"),
            ({"b": b, "c": 2, "n": b}, "extra_n is a tensor, unlike in the example"),
            ({"b": b[:, :1], "c": 2, "n": None}, r"extra_b has shape \[2, 1\], the graph was captured for \['any', 3\]"),
            ({"b": b, "c": 2}, "nested in another way"),
            ({"b": None, "c": 2, "n": None}, "extra_b is no tensor"),
        ):
            with pytest.raises(CallError, match=said):
                module(x, other)


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Tensor
    right: Tensor
    factor: float = 1.0


class TakesPair(nn.Module):
    def forward(self, pair: Pair, ids: dict[Any, Tensor] | None = None) -> Tensor:
        assert type(pair) is Pair
        out = pair.left.relu() * pair.factor + pair.right
        return out if ids is None else out * ids["a.b"] + ids[0]


def test_a_dataclass_and_odd_keys_among_the_inputs() -> None:
    pair, odd = Pair(seeded(2, 3), seeded(2, 3) + 1, 2.0), {"a.b": seeded(2, 3), 0: seeded(2, 3) + 2}
    explained = lxt_fx.transform(TakesPair(), (pair, odd))
    assert set(explained.record.leaves) == {"pair_left", "pair_right", "ids_a_b", "ids_0"}
    other = Pair(pair.left[:1], pair.right[:1] * 2, 2.0)
    ids = {key: value[:1] for key, value in odd.items()}
    assert same(explained, TakesPair()(other, ids), other, ids)
    with pytest.raises(CallError, match="nested in another way than in the example, or hold other values"):
        explained(dataclasses.replace(other, factor=3.0), ids)


# Outputs


class Fields(NamedTuple):
    logits: Tensor
    hidden: Tensor


class Plain:
    def __init__(self, logits: Tensor) -> None:
        self.logits, self.name, self.inner = logits, "plain", Pair(logits + 1, logits + 2)


class SlotsCache:
    """Any class of this name is taken for a cache."""

    __slots__ = ("keys",)

    def __init__(self, keys: Tensor) -> None:
        self.keys = keys


class Gives(nn.Module):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.make = nn.Linear(4, 3), make

    def forward(self, x: Tensor) -> Any:
        return self.make(self.linear(x))


@pytest.mark.parametrize(
    ("make", "read"),
    [
        (lambda y: Pair(y, y * 2, 0.5), lambda out: out.right * out.factor),
        (lambda y: Fields(y, y + 1), lambda out: out.logits),
        (Plain, lambda out: out.logits + out.inner.left),
        (lambda y: [{"out": Pair(y, y)}], lambda out: out[0]["out"].left),
        (lambda y: torch.distributions.Normal(y, y.exp()), lambda out: out.mean),
    ],
)
def test_the_output_has_the_class_that_the_model_gives_it(
    make: Callable[[Tensor], Any], read: Callable[[Any], Tensor]
) -> None:
    model, x = Gives(make).eval(), seeded(3, 4)
    for dynamic in (True, False):
        explained = lxt_fx.transform(model, (x,), dynamic=dynamic)
        leaf = x.clone().requires_grad_(True)
        found, expected = explained(leaf), model(x)
        assert type(found) is type(expected) and torch.allclose(read(found), read(expected), atol=1e-6)
        read(found).sum().backward()
        assert leaf.grad is not None and bool(leaf.grad.abs().sum() > 0)
    assert getattr(found, "name", "plain") == "plain"


def test_nested_inputs_and_an_output_of_ones_own_class_compile_as_one_graph() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, extra: dict[str, Any]) -> Pair:
            return Pair(x.relu() * extra["c"], extra["b"])

    x, extra = seeded(2, 3), {"b": seeded(2, 3), "c": 2, "n": None}
    explained = lxt_fx.transform(Both(), (x, extra))
    found = torch.compile(explained, fullgraph=True, backend="eager")(x, extra)
    assert type(found) is Pair and torch.equal(found.left, Both()(x, extra).left)


def test_a_class_of_ones_own_cannot_be_saved_and_the_error_names_it(tmp_path: Any) -> None:
    explained = lxt_fx.transform(Gives(Plain).eval(), (seeded(3, 4),))
    with pytest.raises(InputError, match="save: .* class Plain"):
        lxt_fx.save(explained, tmp_path / "plain")


def test_an_output_that_refers_to_itself_is_refused_by_name() -> None:
    def looped(y: Tensor) -> Plain:
        made = Plain(y)
        made.inner = made  # type: ignore[assignment]
        return made

    with pytest.raises(CaptureError, match="of class Plain refers to itself"):
        lxt_fx.transform(Gives(looped).eval(), (seeded(3, 4),))


def test_caches_in_an_output_are_left_out() -> None:
    model, x = Gives(lambda y: (y, SlotsCache(y), y * 2)).eval(), seeded(3, 4)
    explained = lxt_fx.transform(model, (x,))
    first, cache, last = explained(x)
    assert torch.allclose(first, model(x)[0]) and cache is None and torch.allclose(last, model(x)[2])
    assert explained.record.specialised == ("the SlotsCache of the model's output is left out: it is None",)


def granite() -> Any:
    config = transformers.GraniteMoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, num_local_experts=2, num_experts_per_tok=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.GraniteMoeForCausalLM(config).eval()


def test_a_cache_that_only_the_config_asks_for_is_off_and_put_back() -> None:
    model = granite()
    seen = []
    handle = model.model.register_forward_hook(lambda module, args, output: seen.append(model.config.use_cache))
    explained = lxt_fx.transform(model)
    handle.remove()
    assert seen and not any(seen) and model.config.use_cache is True
    assert same(explained, model(inputs_embeds=EMBEDS).logits, inputs_embeds=EMBEDS)
    assert same(explained, model(inputs_embeds=EMBEDS).logits, inputs_embeds=EMBEDS, use_cache=False)
    with pytest.raises(InputError, match="itself fails"):
        lxt_fx.transform(model, kwargs={"inputs_embeds": EMBEDS[..., :3]})
    assert model.config.use_cache is True


def test_use_cache_false_is_accepted_by_a_forward_that_does_not_name_it() -> None:
    explained = lxt_fx.transform(tiny.Mlp().eval(), (seeded(3, 6),), {"use_cache": False})
    assert explained.record.inputs == ("x",)
    with pytest.raises(InputError, match="unexpected keyword argument 'use_cache'"):
        lxt_fx.transform(tiny.Mlp().eval(), (seeded(3, 6),), {"use_cache": True})


# One's own example


class ByExample(nn.Module):
    """Loops over its batch, as detectors do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.linear(example) for example in x])


@pytest.mark.parametrize("dynamic", [True, False, "recapture"])
@pytest.mark.parametrize("model", [ByExample(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())])
def test_the_example_that_a_module_was_made_from_is_accepted(model: nn.Module, dynamic: Any) -> None:
    x = seeded(1, 4)
    explained = lxt_fx.transform(model.eval(), (x,), dynamic=dynamic)
    assert same(explained, model(x), x)
    if isinstance(model, nn.Sequential) and dynamic is True:
        assert explained.record.sizes["input"][0] is None  # a batch that is free stays free
    if isinstance(model, ByExample) and dynamic is True:
        assert explained.record.specialised == ("dim 0 of x is fixed to 1 (a size of 1 is fixed by the example)",)
    if dynamic == "recapture":
        assert same(explained, model(seeded(3, 4)), seeded(3, 4))


def test_a_length_of_ids_that_is_fixed_is_said() -> None:
    class Lengths(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.linear = nn.Embedding(9, 4), nn.Linear(4, 2)

        def forward(self, ids: Tensor, x: Tensor) -> Tensor:
            steps = [self.linear(self.table(ids[:, step]) + x) for step in range(ids.shape[1])]
            return torch.stack(steps, 1)

    ids = torch.randint(0, 9, (2, 5), generator=torch.Generator().manual_seed(0))
    explained = lxt_fx.transform(Lengths().eval(), (ids, seeded(2, 4)))
    assert explained.record.specialised == ("dim 1 of ids is fixed to 5 (the model's code depends on it)",)


# Hooks, images


def test_the_models_own_hooks_see_its_own_arguments_and_output() -> None:
    class Both(nn.Module):
        def forward(self, x: Tensor, extra: dict[str, Tensor]) -> Plain:
            return Plain(x.relu() + extra["b"])

    model, x = Both(), seeded(3, 4)
    seen: list[Any] = []
    model.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, sorted(kwargs))), with_kwargs=True)
    model.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    before = dict(vars(model)), list(model._forward_hooks), list(model._forward_pre_hooks)
    lxt_fx.transform(model, (x, {"b": x + 1}))
    assert set(map(str, seen)) == {str(((), ["extra", "x"])), str(Plain)}
    assert (dict(vars(model)), list(model._forward_hooks), list(model._forward_pre_hooks)) == before


class Classifier(nn.Module):
    """An image classifier whose input has a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 3)

    def forward(self, img: Tensor, scale: float = 1.0) -> Tensor:
        return self.head(self.convolution(img).relu().mean((2, 3))) * scale


class Starred(Classifier):
    def forward(self, *args: Any) -> Tensor:  # type: ignore[override]
        return super().forward(args[0])


@pytest.mark.parametrize("made", [Classifier, Starred, lambda: lxt_fx.transform(Classifier(), (seeded(2, 3, 16, 16),))])
def test_an_image_goes_to_the_first_input_whatever_its_name(made: Callable[[], nn.Module]) -> None:
    pixels = seeded(3, 16, 16)
    found, logits = lxt_fx.explain_image(made(), pixels), Classifier()(pixels[None])[0]
    assert found.value == pytest.approx(float(logits.max()), rel=1e-5) and str(int(logits.argmax())) in found.explained
    leaf = pixels[None].clone().requires_grad_(True)
    lxt_fx.transform(Classifier(), (leaf,))(leaf)[0].max().backward()
    assert leaf.grad is not None
    assert torch.allclose(found.relevance, (leaf * leaf.grad)[0].sum(0), atol=1e-6)


def test_a_model_without_images_is_named() -> None:
    for model in (tiny.llama(layers=1), lxt_fx.transform(tiny.llama())):
        with pytest.raises(InputError, match="explain_image: LlamaForCausalLM takes no pixel_values"):
            lxt_fx.explain_image(model, seeded(3, 8, 8))




# Names, places and states of plain models


class Two(nn.Module):
    """Takes inputs whose names differ only by case, and an optional one between two others."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Embedding(9, 4), nn.Linear(4, 2)

    def forward(self, X: Tensor, x: Tensor, temperature: Any = None, Ids: Tensor | None = None) -> Tensor:
        y = torch.tanh(X - 2 * x)
        y = y if Ids is None else y + self.table(Ids)
        out: Tensor = self.last(y)
        return out if temperature is None else out / temperature


def test_inputs_may_be_called_alike_but_for_case() -> None:
    net, ids = Two().eval(), torch.tensor([1, 2, 3])
    explained = lxt_fx.transform(net, (seeded(3, 4), seeded(3, 4) + 1), {"Ids": ids})
    assert explained.record.leaves == ("X", "x", "Ids_embeds") and explained.record.specialised == ()
    called = {"X": seeded(2, 4), "x": seeded(2, 4) - 1, "Ids": ids[:2]}
    assert torch.allclose(explained(**called), net(**called))


def test_an_input_given_by_position_is_that_of_forward_also_where_the_example_left_some_out() -> None:
    net, ids, half = Two().eval(), torch.tensor([1, 2, 3]), torch.tensor(0.5)
    first, second = seeded(3, 4), seeded(3, 4) + 1
    explained = lxt_fx.transform(net, (first, second), {"Ids": ids})
    assert torch.allclose(explained(first, second, half, ids), net(first, second, half, ids))
    assert torch.allclose(explained(first, second, None, ids), net(first, second, None, ids))
    assert torch.allclose(explained(first, second, 0.5, ids), net(first, second, 0.5, ids))


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 2), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.linear(x) * self.calls
        return out


def test_a_model_that_counts_its_calls_is_refused_with_a_reason() -> None:
    with pytest.raises(InputError, match="Counting answers differently when it is called again with the same inputs"):
        lxt_fx.transform(Counting().eval(), (seeded(2, 4),))


def test_a_scripted_part_is_traced_and_a_scripted_model_is_refused() -> None:
    part: Any = torch.jit.trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), seeded(2, 4))  # type: ignore[no-untyped-call]
    net = nn.Sequential(part, nn.Linear(4, 2)).eval()
    explained = lxt_fx.transform(net, (seeded(2, 4),))
    assert torch.allclose(explained(seeded(2, 4) + 1), net(seeded(2, 4) + 1))
    with pytest.raises(InputError, match="is a TorchScript module"):
        lxt_fx.transform(part, (seeded(2, 4),))


class Branches(nn.Module):
    """Numbers inside a list and a dict, and further named inputs beside those through `**unused`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.last = nn.Linear(4, 2)

    def forward(self, xs: Any, scale: Tensor | None = None, **unused: Any) -> Tensor:
        out: Tensor = self.last(torch.tanh(xs[0]) + torch.tanh(xs[1]["more"]) ** 2)
        return out if scale is None else out * scale


def test_numbers_inside_a_nested_input_are_leaves_of_a_call() -> None:
    net = Branches().eval()
    first, second, unused = seeded(3, 4), seeded(3, 4) + 1, seeded(3)
    explained = lxt_fx.transform(net, ([first, {"more": second}],), {"other": unused}, rules="gradient")
    output, leaves = explained.with_leaves([first, {"more": second}], other=unused)
    output.sum().backward()
    own = [x.clone().requires_grad_() for x in (first, second)]
    net([own[0], {"more": own[1]}]).sum().backward()
    assert list(leaves) == ["xs_0", "xs_1_more"]
    for leaf, mine in zip(leaves.values(), own, strict=True):
        assert leaf.grad is not None and mine.grad is not None and torch.allclose(leaf.grad, mine.grad, atol=1e-6)
    read = lxt_fx.audit(explained, {"xs": [first, {"more": second}], "other": unused}, 0)
    assert [source.name for source in read.sources] == ["xs_0", "xs_1_more"]
    scale = torch.tensor([[2.0], [0.5], [1.0]])  # a further input, beside one that goes through **unused
    given = {"xs": [first, {"more": second}], "scale": scale, "other": unused}
    assert torch.allclose(explained(**given), net(**given))
