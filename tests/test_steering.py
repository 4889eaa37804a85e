"""`steer`: what is changed inside a model is what was asked for, in its graph and in itself, and nothing is left behind."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import tiny
import torch
from golden_cases import relative
from shared_captures import each_model
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
)

import lxt_fx
from lxt_fx import edits
from lxt_fx.base.errors import CallError, InputError, UnknownNameError
from lxt_fx.base.torch_internals import hooks_of

pytestmark = pytest.mark.usefixtures("captures_in_files")

EXACT = 1e-9
"""float64, relative to the largest entry. Measured: up to 4e-15; 2e-7 in explicit form where Llama casts its norms."""

KINDS = ("llama", "gpt2", "bert", "vit", "whisper")
DRAW = torch.Generator().manual_seed(1)
IDS = torch.randint(3, 60, (2, 6), generator=DRAW)
PICTURES = torch.randn(2, 1, 8, 8, generator=DRAW, dtype=torch.float64)
SOUNDS = torch.randn(2, 8, 20, generator=DRAW, dtype=torch.float64)
DIRECTION = torch.randn(32, generator=DRAW, dtype=torch.float64)

INPUTS: Mapping[str, Mapping[str, Tensor]] = {
    "llama": {"input_ids": IDS},
    "gpt2": {"input_ids": IDS},
    "bert": {"input_ids": IDS},
    "vit": {"pixel_values": PICTURES},
    "whisper": {"input_features": SOUNDS, "decoder_input_ids": IDS},
}

SEVERAL = {
    "mlp.0.neurons": [edits.scale(0.5, units=[1, 3]), edits.add(0.3, units=[0, 1])],
    "residual.1": edits.add(DIRECTION),
    "attention.1.heads": edits.scale(0, units=[2]),
    "mlp.1.output": edits.clamp(0.7, units=[5]),
    "residual.0": edits.scale(1.5),
}
"""One edit of each kind."""

_MADE: dict[str, tuple[nn.Module, lxt_fx.Explained]] = {}


def made(name: str) -> tuple[nn.Module, lxt_fx.Explained]:
    """The tiny model in float64, and what `transform` makes of it; for reading only."""
    if name not in _MADE:
        model = tiny.MODELS[name]().double()
        _MADE[name] = model, lxt_fx.transform(model)
    return _MADE[name]


def logits(module: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        found: Tensor = module(**INPUTS[name]).logits
    return found


def relevance(explained: lxt_fx.Explained, name: str) -> Tensor:
    output, leaves = explained.with_leaves(**INPUTS[name])
    chosen, explicit = output.logits[..., 1], explained.record.form == "explicit"
    chosen.backward(chosen.detach() if explicit else torch.ones_like(chosen))
    found = [(leaf, leaf.grad) for leaf in leaves.values() if leaf.grad is not None]
    return torch.cat([(grad if explicit else leaf.detach() * grad).flatten() for leaf, grad in found])


@contextmanager
def patched(module: nn.Module, change: Callable[[Tensor], Tensor], *, entering: bool) -> Iterator[None]:
    """A hook as a person writes one."""
    if entering:
        handle = module.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:]))
    else:
        handle = module.register_forward_hook(lambda module, args, output: change(output))
    with handle:
        yield


def off(*units: int) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., list(units)] = 0
        return x

    return change


# --- the graph and the model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", each_model(KINDS))
@pytest.mark.parametrize("positions", [None, [0, 2], slice(1, -1), torch.tensor([1, 0, 1, 1, 0, 0]).bool()])
def test_the_steered_graph_answers_as_the_model_steered_by_hooks_and_its_ledger_closes(name: str, positions: Any) -> None:
    model, explained = made(name)
    if isinstance(positions, Tensor) and name == "vit":
        positions = positions[:5]
    plain = logits(model, name)
    with lxt_fx.steer(explained, SEVERAL, positions=positions):
        in_graph = logits(explained, name)
        ledger = lxt_fx.audit(explained, INPUTS[name], 1)
    with lxt_fx.steer(model, SEVERAL, positions=positions, explained=explained):
        in_model = logits(model, name)
    assert relative(in_graph, in_model) < EXACT
    assert (in_graph - plain).abs().max() > 1e-3
    ledger.check()
    assert torch.equal(logits(model, name), plain) and relative(logits(explained, name), plain) < EXACT


def test_a_steered_llama_is_one_that_a_person_patched() -> None:
    model, explained = made("llama")
    layer = model.get_submodule("model.layers.0")

    def one_head(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 16:24] = 0  # the third of four heads of eight
        return x

    def other_head(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 16:24] = DIRECTION[:8]
        return x

    cases: list[tuple[dict[str, Any], nn.Module, Callable[[Tensor], Tensor], bool]] = [
        ({"mlp.0.neurons": edits.scale(0, units=[3, 7])}, layer.mlp.down_proj, off(3, 7), True),
        ({"attention.0.heads": edits.scale(0, units=[2])}, layer.self_attn.o_proj, one_head, True),
        ({"attention.0.heads": edits.ablate_mean(DIRECTION[None, :8], [2])}, layer.self_attn.o_proj, other_head, True),
        ({"residual.1": edits.add(2 * DIRECTION)}, layer, lambda x: x + 2 * DIRECTION, False),
        ({"residual.1": edits.ablate_mean(DIRECTION)}, layer, lambda x: DIRECTION.expand_as(x), False),
        ({"model.layers.0.mlp": edits.clamp(0.5)}, layer.mlp, lambda x: torch.full_like(x, 0.5), False),
    ]
    for edit, module, change, entering in cases:
        with patched(module, change, entering=entering):
            expected = logits(model, "llama")
        for steered, settings in ((model, {"explained": explained}), (explained, {})):
            with lxt_fx.steer(steered, edit, **settings):
                assert relative(logits(steered, "llama"), expected) < EXACT, (edit, type(steered))


@pytest.mark.parametrize("name", each_model(("llama", "gpt2")))
def test_relevance_of_a_neuron_switched_off_is_that_of_a_model_without_its_weights(name: str) -> None:
    model, explained = made(name)
    without = copy.deepcopy(model)
    with torch.no_grad():
        if name == "llama":
            without.get_submodule("model.layers.0.mlp.down_proj").weight[:, [3, 7]] = 0
        else:
            without.get_submodule("transformer.h.0.mlp.c_proj").weight[[3, 7]] = 0
    wanted = relevance(lxt_fx.transform(without), name)
    before = relevance(explained, name)
    with lxt_fx.steer(explained, {"mlp.0.neurons": edits.scale(0, units=[3, 7])}):
        found = relevance(explained, name)
    assert relative(found, wanted) < EXACT
    assert relative(before, wanted) > 1e-3
    assert torch.equal(relevance(explained, name), before)


@pytest.mark.parametrize("name", each_model(("llama", "bert")))
def test_both_forms_agree_on_a_steered_module(name: str) -> None:
    model, explained = made(name)
    explicit = lxt_fx.transform(model, form="explicit", epsilon=0.0)
    with lxt_fx.steer(explained, SEVERAL), lxt_fx.steer(explicit, SEVERAL):
        assert relative(relevance(explicit, name), relevance(explained, name)) < (1e-6 if name == "llama" else EXACT)


def test_a_watched_place_has_the_changed_value_and_the_fused_graph_gives_the_same_relevance() -> None:
    _, explained = made("llama")
    with lxt_fx.steer(explained, {"mlp.0.neurons": edits.clamp(0.5, units=[3]), "residual.0": edits.scale(2.0)}):
        fused = relevance(explained, "llama")
        with lxt_fx.watch(explained, "mlp.*.neurons", "residual.0") as seen:
            assert relative(relevance(explained, "llama"), fused) < EXACT
    assert (seen["mlp.0.neurons"].value[..., 3] == 0.5).all() and seen["mlp.0.neurons"].relevance[..., 3].abs().max() > 0
    assert relative(seen["residual.0"].relevance.flatten(), fused) < EXACT  # a scale passes all relevance on
    assert set(seen) == {"mlp.0.neurons", "mlp.1.neurons", "residual.0"}


def test_the_ledger_names_what_an_edit_adds() -> None:
    _, explained = made("llama")
    with lxt_fx.steer(explained, {"residual.1": [edits.scale(2.0), edits.add(DIRECTION)]}):
        ledger = lxt_fx.audit(explained, INPUTS["llama"], 1)
        with lxt_fx.watch(explained, "residual.1") as seen:
            explained.with_leaves(**INPUTS["llama"])[0].logits[:, -1, 1].sum().backward()
        rules = explained._prepared((), INPUTS["llama"])[0].record.stages["lowered"].rules
    place, inside = lxt_fx.places(explained)["residual.1"].node, seen["residual.1"]
    gradient = inside.value.grad
    assert gradient is not None
    added = [entry for entry in ledger.entries if entry.name == "computed by %steered_residual_1_shift"]
    assert len(added) == 1 and relative(added[0].amount, (gradient * DIRECTION).sum((1, 2))) < EXACT
    assert rules[place].name == "sum" and "scale" in {rules[name].name for name in rules if name.startswith("mul")}


def test_explain_inside_the_block_explains_the_steered_model() -> None:
    _, explained = made("llama")
    edit = {"mlp.0.neurons": edits.scale(0, units=list(range(24)))}
    plain = lxt_fx.relevance_of(explained, INPUTS["llama"], [3, 4])
    with lxt_fx.steer(explained, edit):
        found = lxt_fx.relevance_of(explained, INPUTS["llama"], [3, 4])
        output, leaves = explained.with_leaves(**INPUTS["llama"])
        output.logits[:, -1, 4].sum().backward()
    leaf = leaves["inputs_embeds"]
    assert relative(found[1], (leaf * leaf.grad).sum(-1)) < EXACT
    assert relative(found, plain) > 1e-3


def test_blocks_nest_and_a_list_of_edits_is_the_same() -> None:
    model, explained = made("llama")
    first, then = edits.scale(0, units=[1]), edits.add(1.0, units=[1, 2])
    for module, settings in ((model, {"explained": explained}), (model, {}), (explained, {})):
        with lxt_fx.steer(module, {"mlp.0.neurons": [first, then]}, **settings):
            wanted = logits(module, "llama")
        with lxt_fx.steer(module, {"mlp.0.neurons": first}, **settings):
            with lxt_fx.steer(module, {"mlp.0.neurons": then}):
                assert relative(logits(module, "llama"), wanted) < EXACT
            with lxt_fx.steer(module, {"mlp.1.neurons": edits.scale(0)}):  # proved while the outer hooks are there
                logits(module, "llama")


def test_relevance_after_a_first_call_in_inference_mode() -> None:
    _, explained = made("llama")
    with lxt_fx.steer(explained, SEVERAL):
        wanted = relevance(explained, "llama")
    with lxt_fx.steer(explained, SEVERAL):
        with torch.inference_mode():
            explained(**INPUTS["llama"])
        assert relative(relevance(explained, "llama"), wanted) < EXACT


def test_an_input_that_is_held_before_the_other_inputs_is_steered() -> None:
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 24, "num_layers": 1, "num_heads": 4}
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(T5Config(**sizes)).double().eval()
    explained = lxt_fx.transform(model)
    call = {"input_ids": IDS, "decoder_input_ids": IDS}
    edit = {"encoder.residual.0": edits.add(0.4, units=[1]), "residual.0": edits.scale(2.0)}
    with lxt_fx.steer(model, edit, explained=explained), lxt_fx.steer(explained, edit), torch.no_grad():
        assert relative(explained(**call).logits, model(**call).logits) < EXACT


def test_units_by_place_are_edits_by_place() -> None:
    found = edits.scale(0).of({"mlp.0.neurons": [1, 3], "attention.1.heads": torch.tensor([2])})
    assert {place: (edit.kind, edit.amount, edit.units) for place, edit in found.items()} == {
        "mlp.0.neurons": ("scale", 0, (1, 3)),
        "attention.1.heads": ("scale", 0, (2,)),
    }
    _, explained = made("llama")
    with lxt_fx.steer(explained, found):
        wanted = logits(explained, "llama")
    with lxt_fx.steer(explained, edits.scale(0).of({"mlp.0.neurons": [-47, 3], "attention.1.heads": 2})):
        assert torch.equal(logits(explained, "llama"), wanted)


def test_units_of_a_latent_result_are_switched_off_and_latent_sees_the_steered_model() -> None:
    _, explained = made("llama")
    text = {"input_ids": IDS[:1]}
    found = lxt_fx.latent(explained, text, 5, ["mlp.*.neurons"])
    with lxt_fx.steer(explained, edits.scale(0).of(found.top(3))):
        inside = lxt_fx.latent(explained, text, 5, ["mlp.*.neurons"])
        with lxt_fx.watch(explained, "mlp.*.neurons") as seen:
            explained.with_leaves(**text)[0].logits[0, -1, 5].backward()
    for place, units in found.top(3).items():
        assert (seen[place].value[..., units] == 0).all() and inside[place].relevance[..., units].abs().max() == 0
    for place, watched in seen.items():
        assert relative(inside[place].relevance.flatten(), watched.relevance.flatten()) < EXACT


def test_further_graphs_are_steered_too() -> None:
    _, explained = made("llama")
    edit = {"mlp.0.neurons": edits.scale(0, units=[3])}
    call = {**INPUTS["llama"], "position_ids": torch.arange(6)[None] + 3, "output_hidden_states": True}
    plain = explained(**call).logits
    neurons = lxt_fx.places(explained)["mlp.0.neurons"].node
    with lxt_fx.steer(explained, edit):
        steered = explained(**call).logits
        leaves = explained.with_leaves(**call)[0].logits
    model = made("llama")[0]
    with lxt_fx.steer(model, edit, explained=explained), torch.no_grad():
        wanted = model(**call).logits
    assert relative(steered, wanted) < EXACT and relative(leaves, wanted) < EXACT and relative(plain, wanted) > 1e-4
    with (
        lxt_fx.steer(explained, {f"%{neurons}": edits.scale(0)}),
        pytest.raises(CallError, match="may be another value; name the place"),
    ):
        explained(**call)


def test_a_plain_net_is_steered_on_an_example() -> None:
    net, x = tiny.Mlp(), torch.randn(2, 6)
    with lxt_fx.steer(net, {"first": edits.scale(0)}, inputs=(x,)):
        assert torch.allclose(net(x), net.second.bias.expand(2, 3))
    with pytest.raises(InputError, match="give an example"), lxt_fx.steer(net, {"first": edits.scale(0)}):
        pass


def test_recomputed_and_compiled_modules_are_steered() -> None:
    model, explained = made("llama")
    with lxt_fx.steer(explained, SEVERAL):
        wanted = relevance(explained, "llama")
    recomputed = lxt_fx.transform(model, checkpoint="layers")
    with lxt_fx.steer(recomputed, SEVERAL):
        assert relative(relevance(recomputed, "llama"), wanted) < EXACT
        twin = recomputed._prepared((), INPUTS["llama"])[0]
    assert twin.segments is not None
    recomputed._kinds = object()  # `compile()` would take seconds; only the twin runs here
    with lxt_fx.steer(recomputed, SEVERAL):
        assert relative(relevance(recomputed, "llama"), wanted) < EXACT


def test_a_module_that_computes_some_positions_is_steered_at_all_of_them_or_refuses() -> None:
    model, explained = made("llama")
    last = lxt_fx.transform(model, positions="last")
    with lxt_fx.steer(explained, SEVERAL), lxt_fx.steer(last, SEVERAL):
        assert relative(logits(last, "llama"), logits(explained, "llama")[:, -1:]) < EXACT
    with pytest.raises(InputError, match="computes the positions"), lxt_fx.steer(last, SEVERAL, positions=[0]):
        pass


# --- generate -------------------------------------------------------------------------------------------------------------


def generated(model: Any, inputs: Mapping[str, Tensor], cache: bool) -> tuple[Tensor, Tensor]:
    found = model.generate(
        **inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False, use_cache=cache, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip
    return found.sequences, torch.stack(found.scores).double()


MASK = torch.tensor([[0, 1, 1, 0, 1, 0, 1, 0, 1, 1], [1, 0, 1, 0, 0, 1, 0, 1, 1, 0]]).bool()


@pytest.mark.filterwarnings("ignore")  # of generate, about its settings
@pytest.mark.parametrize("name", each_model(("llama", "gpt2", "whisper")))
@pytest.mark.parametrize("positions", [None, [1, 7], slice(5, None), MASK], ids=["all", "two", "slice", "mask"])
def test_generate_gives_the_same_with_and_without_a_cache(name: str, positions: Any) -> None:
    model, explained = made(name)
    padding = torch.ones_like(IDS)
    padding[0, :2] = 0  # on the left
    inputs: dict[str, Tensor] = {"input_ids": IDS, "attention_mask": padding}
    edit: dict[str, Any] = {"residual.1": edits.add(DIRECTION), "attention.1.heads": edits.scale(0, units=[2])}
    if name == "whisper":
        inputs = {"input_features": SOUNDS, "decoder_input_ids": IDS}
        edit |= {"encoder.residual.1": edits.add(DIRECTION), "cross_attention.0.keys": edits.add(0.4, units=[1])}
    plain = generated(model, inputs, True)[1]
    with lxt_fx.steer(model, edit, positions=positions, explained=explained):
        with_cache, without = generated(model, inputs, True), generated(model, inputs, False)
    assert torch.equal(with_cache[0], without[0])
    seen = torch.isfinite(without[1])
    assert relative(with_cache[1][seen], without[1][seen]) < 1e-5
    assert relative(plain[seen], without[1][seen]) > 1e-3
    assert torch.equal(generated(model, inputs, True)[1], plain)


@pytest.mark.filterwarnings("ignore")  # of generate, about its settings
def test_positions_of_a_picture_do_not_go_on_where_a_cache_ends() -> None:
    """`generate` runs the vision tower by itself, and a chat goes on with another picture and the cache of the first."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = CLIPVisionConfig(**sizes, image_size=8, patch_size=4)
    text = LlamaConfig(**sizes, vocab_size=64)
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=63, vision_feature_layer=-1)
    torch.manual_seed(0)
    model, picture = LlavaForConditionalGeneration(config).eval(), torch.randn(1, 3, 8, 8)
    ids = torch.tensor([[5, 63, 63, 63, 63, 6]])
    inputs = {"input_ids": ids, "pixel_values": picture, "attention_mask": torch.ones_like(ids)}
    explained = lxt_fx.transform(model, kwargs=inputs)
    edit = {"pixel_values.residual.1": edits.add(3.0)}

    def at_two(x: Any) -> Any:
        h = (x[0] if isinstance(x, tuple) else x).clone()
        h[:, [1, 3]] += 3.0
        return (h, *x[1:]) if isinstance(x, tuple) else h

    def answers() -> Tensor:
        first = model(**inputs, use_cache=True)
        again = model(input_ids=ids, pixel_values=picture, past_key_values=first.past_key_values).logits
        scores = generated(model, inputs, True)[1].float().transpose(0, 1).nan_to_num(neginf=0)  # of the end, forbidden
        return torch.cat([first.logits, again, scores], dim=1).detach()

    with lxt_fx.steer(model, edit, positions=[1, 3], explained=explained, inputs=inputs):
        steered = answers()
    layer = model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith("encoder.layers.0")))
    with patched(layer, at_two, entering=False):
        assert relative(steered, answers()) < 1e-5
    assert relative(steered, answers()) > 1e-3


def test_each_example_has_its_own_row_of_a_mask() -> None:
    model, explained = made("llama")
    edit = {"residual.1": edits.add(DIRECTION)}
    with lxt_fx.steer(model, edit, positions=MASK, explained=explained):
        together = logits(model, "llama")
    for row in range(2):
        with lxt_fx.steer(explained, edit, positions=MASK[row]), torch.no_grad():
            assert relative(explained(input_ids=IDS[row : row + 1]).logits, together[row : row + 1]) < EXACT


def test_a_generated_text_is_steered_as_the_whole_text_is() -> None:
    """The step that says the last token is the explained module on all tokens before it."""
    model, explained = made("llama")
    edit = {"residual.1": edits.add(DIRECTION)}
    with lxt_fx.steer(model, edit, positions=slice(5, None), explained=explained):
        ids, scores = generated(model, {"input_ids": IDS}, True)
    with lxt_fx.steer(explained, edit, positions=slice(5, None)), torch.no_grad():
        whole = explained(input_ids=ids[:, :-1]).logits[:, -1]
    seen = torch.isfinite(scores[-1])  # generate() forbids the end of the text
    assert relative(scores[-1][seen], whole[seen]) < 1e-5


def test_the_end_of_a_text_that_grows_is_no_position() -> None:
    model, explained = made("llama")
    for positions in ("last", [-2], slice(-1, None)):
        with (
            lxt_fx.steer(model, {"residual.1": edits.add(DIRECTION)}, positions=positions, explained=explained),
            pytest.raises(CallError, match="count from the start"),
        ):
            generated(model, {"input_ids": IDS}, True)
    with lxt_fx.steer(model, {"residual.1": edits.add(DIRECTION)}, positions="last", explained=explained):
        in_model = logits(model, "llama")
    with lxt_fx.steer(explained, {"residual.1": edits.add(DIRECTION)}, positions="last"):
        assert relative(logits(explained, "llama"), in_model) < EXACT


# --- no trace -------------------------------------------------------------------------------------------------------------


def state(model: nn.Module) -> dict[str, Any]:
    """All that a block must leave as it was."""
    parts, tensors = list(model.named_modules()), (*model.named_parameters(), *model.named_buffers())
    return {
        "tensors": {name: (id(x), x.clone(), x.requires_grad, x.grad) for name, x in tensors},
        "hooks": {path: hooks_of(part) for path, part in parts},
        "classes": {path: type(part) for path, part in parts},
        "attributes": {path: sorted(vars(part)) for path, part in parts},
        "modes": [part.training for _, part in parts],
        "random": torch.get_rng_state(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def is_same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("on", ["model", "explained"])
@pytest.mark.parametrize("enabled", [True, False])
def test_a_block_leaves_no_trace_also_if_it_raises(on: str, enabled: bool) -> None:
    model, explained = made("llama")
    steered, settings = (model, {"explained": explained}) if on == "model" else (explained, {})
    before = state(model), state(explained), explained.graph.python_code("self").src
    with torch.set_grad_enabled(enabled):
        with (
            pytest.raises(ZeroDivisionError),
            lxt_fx.steer(steered, SEVERAL, positions=slice(1, None), **settings),
        ):
            logits(steered, "llama")
            raise ZeroDivisionError
        assert torch.is_grad_enabled() is enabled and not explained._steers
    assert is_same((state(model), state(explained), explained.graph.python_code("self").src), before)
    with pytest.raises((IndexError, CallError)), lxt_fx.steer(steered, SEVERAL, positions=[1], **settings):
        steered(input_ids=torch.full((1, 3), 99))  # the call itself raises
    assert is_same((state(model), state(explained), explained.graph.python_code("self").src), before)
    with pytest.raises(UnknownNameError), lxt_fx.steer(steered, {"nothing": edits.scale(0)}, **settings):
        pass
    assert is_same((state(model), state(explained), explained.graph.python_code("self").src), before)


def test_nothing_keeps_a_steered_model_alive() -> None:
    model = tiny.Mlp()
    explained = lxt_fx.transform(model, (torch.randn(2, 6),))
    with lxt_fx.steer(model, {"first": edits.scale(0)}, explained=explained, inputs=(torch.randn(2, 6),)):
        model(torch.randn(2, 6))
    with lxt_fx.steer(explained, {"first": edits.scale(0)}):
        explained(torch.randn(2, 6))
        twin = weakref.ref(explained._prepared((torch.randn(2, 6),), {})[0])
    gone = weakref.ref(model), weakref.ref(explained)
    del model, explained
    gc.collect()
    assert twin() is None and [each() for each in gone] == [None, None]


def test_an_explained_module_is_steered_in_its_thread_and_a_model_in_all() -> None:
    model, explained = made("llama")
    edit = {"mlp.0.neurons": edits.scale(0, units=[3])}

    def elsewhere(module: nn.Module) -> Tensor:
        found: list[Tensor] = []
        thread = threading.Thread(target=lambda: found.append(logits(module, "llama")))
        thread.start()
        thread.join()
        return found[0]

    plain = logits(model, "llama")
    with lxt_fx.steer(explained, edit):
        steered = logits(explained, "llama")
        assert relative(elsewhere(explained), plain) < EXACT
    with lxt_fx.steer(model, edit, explained=explained):
        assert relative(elsewhere(model), steered) < EXACT


# --- refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        ({"mlp.9.neurons": edits.scale(0)}, UnknownNameError, "the nearest are mlp.1.neurons, mlp.0.neurons"),
        ({"mlp.0.neurons": edits.scale(0, units=[48])}, InputError, "mlp.0.neurons has no unit 48; it has 48 .0 to 47."),
        ({"attention.0.heads": edits.scale(0, units=[4])}, InputError, "attention.0.heads has no unit 4"),
        (
            {"residual.0": edits.add(torch.zeros(31).double())},
            InputError,
            r"tensor \[31\], and at residual.0 .*tensor \[32\]",
        ),
        ({"residual.0": edits.add(torch.zeros(2).double(), units=[1])}, InputError, r"changes 1 hidden.*tensor \[1\]"),
        (
            {"residual.0": edits.add(torch.zeros(32))},
            InputError,
            r"torch.float32 on cpu, and residual.0 is of torch.float64",
        ),
        ({"residual.0": edits.add(torch.zeros(32, device="meta").double())}, InputError, "on meta, and"),
        ({"residual.0": 0}, InputError, "must be an edit of lxt_fx.edits"),
        ({}, InputError, "there are no edits"),
        ([1], InputError, "a dict from places to edits"),
    ],
)
def test_an_edit_that_does_not_fit_is_refused_before_anything_runs(
    edit: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, explained = made("llama")
    monkeypatch.setattr(type(model), "forward", None)
    for module, settings in ((model, {"explained": explained}), (explained, {})):
        with pytest.raises(error, match=message), lxt_fx.steer(module, edit, **settings):
            pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: edits.scale(float("nan")), "no finite number"),
        (lambda: edits.add(torch.tensor([1.0, float("nan")])), "1 of 2 numbers are NaN"),
        (lambda: edits.add(torch.ones(3).long()), "floating-point"),
        (lambda: edits.scale("a"), "a number or a tensor"),
        (lambda: edits.Edit("zero", 1.0), "kind must be one of scale, add, clamp, ablate_mean, got 'zero'"),
        (lambda: edits.Edit("scale", float("inf")), "no finite number"),
        (lambda: edits.Edit("scale", 2.0, (1.5,)), "must be whole numbers"),
        (lambda: edits.scale(0, units=[1.5]), "must be whole numbers"),
        (lambda: edits.scale(0, units=[]), "is empty"),
        (lambda: edits.scale(0, units="3"), "an index or a list of them"),
        (lambda: edits.scale(0, units=torch.tensor([True])), "a mask becomes indices"),
        (lambda: edits.ablate_mean(0.0), "takes the mean of each unit as a tensor"),
        (lambda: edits.scale(0, units=[1]).of({}), "has units of its own"),
        (lambda: edits.scale(0).of([1]), "a mapping from places to units"),
    ],
)
def test_an_edit_that_is_none_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    "make", [lambda *given: edits.Edit("add", *given), edits.add, lambda v, units: edits.add(v).of({"a": units})["a"]]
)
def test_an_edit_holds_its_units_and_a_copy_of_its_amount_however_it_is_made(make: Callable[..., Any]) -> None:
    vector = torch.ones(2, requires_grad=True)
    for units in ([3, 17], (3, 17), torch.tensor([3, 17])):
        edit = make(vector, units)
        assert edit.units == (3, 17) and edit.kind == "add"
        assert not edit.amount.requires_grad and edit.amount.data_ptr() != vector.data_ptr()
    assert make(1.0, 3).units == (3,) and edits.add(vector).units is None


def test_a_number_beyond_the_dtype_of_a_place_is_refused() -> None:
    explained = lxt_fx.transform(tiny.Mlp().half(), (torch.randn(2, 6).half(),))
    with (
        pytest.raises(InputError, match=r"scale\(1e\+10\) is beyond what first can hold \(torch.float16, up to 65504\)"),
        lxt_fx.steer(explained, {"first": edits.scale(1e10)}),
    ):
        pass


@pytest.mark.parametrize(
    "positions", ["prompt", 1.5, [], [1.5], True, slice(0, 4, -1), torch.ones(6), MASK, slice("a", None)]
)
def test_positions_that_are_none_are_refused(positions: Any) -> None:
    with pytest.raises(InputError, match="positions|mask"), lxt_fx.steer(made("llama")[1], SEVERAL, positions=positions):
        pass


def test_a_call_without_the_positions_is_refused() -> None:
    model, explained = made("llama")
    for positions, message in (([9], "position 9 is to be changed"), (torch.ones(4).bool(), "which of 4 positions")):
        with lxt_fx.steer(explained, SEVERAL, positions=positions), pytest.raises(CallError, match=message):
            logits(explained, "llama")
    with (
        lxt_fx.steer(model, SEVERAL, positions=torch.ones(3, 6).bool(), explained=explained),
        pytest.raises(CallError, match="the mask has 3 examples, and this call has 2"),
    ):
        logits(model, "llama")
    with (
        pytest.warns(UserWarning, match="nothing was changed at residual.1"),
        lxt_fx.steer(model, {"residual.1": edits.add(1.0)}, positions=[9], explained=explained),
    ):
        logits(model, "llama")
    with lxt_fx.steer(model, SEVERAL, positions=[1], explained=explained):
        with pytest.raises(CallError, match="was called without LlamaForCausalLM itself"):
            model.get_submodule("model")(input_ids=IDS)
        logits(model, "llama")


def test_a_value_that_no_module_takes_or_returns_is_refused_with_those_that_can() -> None:
    model, explained = made("llama")
    with (
        pytest.raises(
            InputError, match=r"no module of .* attention.0.queries .* these can: residual.\*, attention.\*.heads"
        ),
        lxt_fx.steer(model, {"attention.0.queries": edits.scale(0)}, explained=explained),
    ):
        pass
    with lxt_fx.steer(explained, {"attention.0.queries": edits.scale(0, units=[1])}):
        logits(explained, "llama")


class ReadTwice(nn.Module):
    """`first` returns a value that is also read inside of it, by what it returns besides."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = Inner(), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        one, other = self.first(x)
        return self.last(one * other)


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = torch.sin(x)
        return found, self.map(found)


def test_what_was_proved_of_one_model_is_not_proved_of_another_that_shares_its_parameters() -> None:
    model, explained = made("llama")
    edit = {"mlp.0.neurons": edits.scale(0)}
    with lxt_fx.steer(model, edit, explained=explained):
        logits(model, "llama")
    inner = model.get_submodule("model")
    with (
        pytest.raises(InputError, match="LlamaModel has no module model.layers.0.mlp.down_proj, and the LlamaForC"),
        lxt_fx.steer(inner, edit, explained=explained),
    ):
        pass


def test_hooks_that_change_a_value_before_steer_sees_it_are_named() -> None:
    model = tiny.Mlp()
    explained = lxt_fx.transform(model, (torch.randn(2, 6),))
    with (
        patched(model.first, lambda x: 2 * x, entering=False),
        pytest.raises(InputError, match="first has hooks that were there before the block"),
        lxt_fx.steer(model, {"first": edits.scale(0)}, explained=explained, inputs=(torch.randn(2, 6),)),
    ):
        pass


def test_a_value_with_readers_that_no_hook_reaches_is_refused() -> None:
    net, x = ReadTwice(), torch.randn(3, 4)
    explained = lxt_fx.transform(net, (x,))
    node = next(f"%{node.name}" for node in explained.graph.nodes if "sin" in str(node.target))
    with (
        pytest.raises(InputError, match="no module of ReadTwice"),
        lxt_fx.steer(net, {node: edits.scale(0)}, explained=explained, inputs=(x,)),
    ):
        pass
    with lxt_fx.steer(explained, {node: edits.scale(0)}):
        assert torch.allclose(explained(x), net.last.bias.expand(3, 2))


def test_a_steered_model_is_not_transformed_and_a_steered_module_not_put_under_another_table() -> None:
    model, explained = made("llama")
    with lxt_fx.steer(model, SEVERAL, explained=explained):
        logits(model, "llama")
        for make in (lambda: lxt_fx.transform(model), lambda: lxt_fx.relevance_of(model, INPUTS["llama"], [3])):
            with pytest.raises(InputError, match="the model is steered by hooks at model.layers"):
                make()
    with lxt_fx.steer(explained, SEVERAL):
        logits(explained, "llama")
        with pytest.raises(CallError, match="call transform before the block"):
            lxt_fx.transform(explained, kwargs=dict(INPUTS["llama"]), rules="cp_lrp")
        identity = torch.eye(32, dtype=torch.float64)
        with pytest.raises(CallError, match="call splice before the block"):
            lxt_fx.splice(explained, "residual.1", lxt_fx.Dictionary(identity, identity), kwargs=INPUTS["llama"])


def test_compiled_code_is_refused() -> None:
    model, explained = made("llama")
    with (
        pytest.raises(InputError, match="the model is compiled"),
        lxt_fx.steer(torch.compile(model), SEVERAL),
    ):
        pass
    net = tiny.Mlp()
    transformed = lxt_fx.transform(net, (torch.randn(2, 6),))
    compiled = torch.compile(transformed, backend="eager")
    plain = compiled(torch.ones(2, 6))
    with lxt_fx.steer(transformed, {"first": edits.scale(0)}):
        assert torch.allclose(transformed(torch.ones(2, 6)), net.second.bias.expand(2, 3))
        with pytest.raises(CallError, match="the module is steered"):
            compiled(torch.ones(2, 6))
    assert torch.equal(compiled(torch.ones(2, 6)), plain)


def test_a_loaded_module_and_an_explained_module_of_another_model_are_refused(tmp_path: Any) -> None:
    net, x = tiny.Mlp(), torch.randn(2, 6)
    explained = lxt_fx.transform(net, (x,))
    lxt_fx.save(explained, tmp_path / "net")
    with (
        pytest.raises(InputError, match="was loaded from a file"),
        lxt_fx.steer(lxt_fx.load(tmp_path / "net"), {"first": edits.scale(0)}),
    ):
        pass
    with (
        pytest.raises(InputError, match="they share no parameter"),
        lxt_fx.steer(tiny.Mlp(), {"first": edits.scale(0)}, explained=explained, inputs=(x,)),
    ):
        pass


def test_a_block_that_changes_nothing_says_so() -> None:
    model, explained = made("llama")
    with pytest.warns(UserWarning, match="no call of this explained module ran"), lxt_fx.steer(explained, SEVERAL):
        logits(model, "llama")
    with (
        pytest.warns(UserWarning, match="nothing was changed at mlp.0.neurons, residual.1"),
        lxt_fx.steer(model, SEVERAL, explained=explained),
    ):
        pass
