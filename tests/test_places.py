"""`places`: the standard names, against what the models themselves compute, by structure and in every form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from shared_captures import each_model, explained, one_worker, shared_model
from tiny import MODELS, SIZES, TEXT, Mlp
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import lxt_fx
from lxt_fx.compiler.explained import Explained

EXACT = 1e-9
"""float64, relative to the largest entry. Measured: 0."""

HEADS = ("batch", "heads", "tokens", "size")


def inputs_of(name: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    if name == "vit":
        return {"pixel_values": torch.randn(2, 1, 8, 8, generator=draw, dtype=torch.float64)}
    hidden = torch.randn(2, 6, 32, generator=draw, dtype=torch.float64)
    if name == "whisper":
        sound = torch.randn(2, 8, 20, generator=draw, dtype=torch.float64)
        return {"input_features": sound, "decoder_inputs_embeds": hidden}
    return {"inputs_embeds": hidden}


def values_of(module: Explained, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    with torch.no_grad(), lxt_fx.watch(module, *lxt_fx.places(module)) as inside:
        module(**inputs)
    return {name: seen.value for name, seen in inside.items()}


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).abs().max()) <= EXACT * float(b.abs().max())


def linear_calls(model: nn.Module, inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What each linear map of the model reads and gives."""
    found: list[tuple[Tensor, Tensor]] = []
    handles = [
        module.register_forward_hook(lambda module, read, given: found.append((read[0], given)))
        for module in model.modules()
        if type(module).__name__ in ("Linear", "Conv1D")
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("name", each_model(MODELS))
def test_the_residual_stream_is_the_hidden_states(name: str) -> None:
    """But for the last, which some models norm."""
    inputs = inputs_of(name)
    with torch.no_grad():
        output = MODELS[name]().double()(**inputs, output_hidden_states=True)  # it puts hooks on the model
    values = values_of(explained(name, torch.float64), inputs)
    both = {"": "decoder_hidden_states", "encoder.": "encoder_hidden_states"}
    lists = both if name == "whisper" else {"": "hidden_states"}
    for prefix, attribute in lists.items():
        states = output[attribute]
        stream = [place for place in values if place.startswith(f"{prefix}residual.")]
        assert len(stream) == len(states) == SIZES["num_hidden_layers"] + 1
        for layer, state in enumerate(states[:-1]):
            assert same(values[f"{prefix}residual.{layer}"], state), (prefix, layer)


@pytest.mark.parametrize("attention", ("sdpa", "eager"))
@pytest.mark.parametrize("name", each_model(MODELS))
def test_heads_and_neurons_are_what_the_models_linear_maps_read(name: str, attention: str) -> None:
    """And the outputs are what these give; the pattern times the values gives the heads."""
    inputs = inputs_of(name)
    calls = linear_calls(shared_model(name, torch.float64, attention), inputs)
    module = explained(name, torch.float64, attention)
    places, values = lxt_fx.places(module), values_of(module, inputs)
    pairs = [(place, place.rpartition(".")[0]) for place in values if place.endswith((".heads", ".neurons"))]
    assert len(pairs) == 2 * (5 if name == "whisper" else 2)
    for place, middle in pairs:
        read = values[place]
        if place.endswith(".heads"):
            assert places[place].axes == HEADS
            if attention == "eager":
                pattern, seen = values[f"{middle}.pattern"], values[f"{middle}.values"]
                assert same(pattern.to(seen) @ seen, read)  # some have a softmax in float32
            read = read.transpose(1, 2).flatten(2)
        given = values[f"{middle}.output"]
        fitting = [(a, b) for a, b in calls if a.numel() == read.numel() and b.numel() == given.numel()]
        assert any(same(read, a.view_as(read)) and same(given, b.view_as(given)) for a, b in fitting), place


@pytest.mark.parametrize("name", each_model(("llama", "gpt2")))
def test_a_layer_adds_what_its_attention_and_its_mlp_give(name: str) -> None:
    """And its queries, keys and values make its heads."""
    values = values_of(explained(name, torch.float64), inputs_of(name))
    read = [values[f"attention.0.{part}"] for part in ("queries", "keys", "values")]
    attended = nn.functional.scaled_dot_product_attention(*read, is_causal=True, enable_gqa=True)
    assert same(values["attention.0.heads"], attended)
    added = values["attention.0.output"] + values["mlp.0.output"]
    assert same(values["residual.1"], values["residual.0"] + added)


@pytest.mark.parametrize("name", each_model(("gpt2", "whisper")))
def test_both_forms_and_a_loaded_file_have_the_same_places(name: str, tmp_path: Path) -> None:
    module = explained(name)
    expected = {place: (found.shape, found.axes) for place, found in lxt_fx.places(module).items()}
    lxt_fx.save(module, tmp_path / "module.safetensors")
    for other in (explained(name, form="explicit"), lxt_fx.load(tmp_path / "module.safetensors")):
        assert {place: (found.shape, found.axes) for place, found in lxt_fx.places(other).items()} == expected


class Renamed(nn.Module):
    """A model that is the part of another."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.x0 = model

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        result: Tensor = self.x0(inputs_embeds=inputs_embeds, use_cache=False).logits
        return result


def scrambled(model: nn.Module) -> nn.Module:
    """The model whose norms and MLPs have each other's names, with code that reads them under these."""

    class Layer(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.mlp, self.norm, self.residual, self.embed = (
                layer.self_attn, layer.mlp, layer.input_layernorm, layer.post_attention_layernorm
            )  # fmt: skip

        def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
            mixed = self.mlp(hidden_states=self.residual(hidden_states), **kwargs)[0]
            hidden_states = hidden_states + mixed
            result: Tensor = hidden_states + self.norm(self.embed(hidden_states))
            return result

    inner = model.model
    inner.layers = nn.ModuleList(Layer(layer) for layer in inner.layers)
    return model


def test_names_of_modules_do_not_matter() -> None:
    example = torch.randn(2, 6, 32)
    plain = lxt_fx.transform(Renamed(MODELS["llama"]()), (example,))
    other = lxt_fx.transform(Renamed(scrambled(MODELS["llama"]())), (example,))
    expected = {name: place.node for name, place in lxt_fx.places(plain).items()}
    assert {name: place.node for name, place in lxt_fx.places(other).items()} == expected
    assert lxt_fx.places(other)["mlp.1.neurons"].module == "x0.model.layers.1.norm"


def test_a_name_that_is_a_module_and_a_standard_place_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.residual = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
            self.out = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.residual:
                x = x + layer(x)
            return self.out(x)

    module = lxt_fx.transform(Net(), (torch.randn(2, 8),))
    refused = pytest.raises(lxt_fx.InputError, match=r"residual\.1' is a standard place \(%add\) and a module")
    with refused, lxt_fx.watch(module, "residual.1"):
        pass


@one_worker("llama")
def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(lxt_fx.UnknownNameError, match="attention.0.keys"):
        lxt_fx.places(explained("llama"))["attention.0.key"]
    refused = pytest.raises(lxt_fx.UnknownNameError, match="mlp.0.neurons")
    with refused, lxt_fx.watch(explained("llama"), "mlp.0.neuron"):
        pass


@one_worker("gpt2")
def test_the_table_has_one_line_for_the_places_of_a_kind() -> None:
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as shown:
        console.print(lxt_fx.places(explained("gpt2")))
    text = shown.get()
    assert "mlp.0..1.neurons" in text and "batch tokens neurons" in text and "residual.0..2" in text
    assert sum("│" in line for line in text.splitlines()) == 9


def test_a_model_without_layers_has_none() -> None:
    module = lxt_fx.transform(Mlp(), (torch.randn(2, 6),))
    assert not [name for name in lxt_fx.places(module) if name != "logits"]


def test_the_weights_of_experts_and_their_neurons() -> None:
    """Softmax over all experts, of which two are chosen; the neurons of all chosen ones are one value."""
    torch.manual_seed(0)
    config = MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    model = MixtralForCausalLM(config).eval()
    inputs = {"inputs_embeds": torch.randn(2, 6, 32)}
    scores: list[Tensor] = []
    handle = model.model.layers[1].mlp.gate.register_forward_hook(
        lambda module, read, given: scores.append(nn.functional.linear(read[0].reshape(-1, 32), module.weight))
    )
    with torch.no_grad():
        model(**inputs)
    handle.remove()
    module = lxt_fx.transform(model, kwargs=inputs)
    places, values = lxt_fx.places(module), values_of(module, inputs)
    assert torch.allclose(values["experts.1.weights"], scores[0].softmax(-1), atol=1e-6)
    weights = places["experts.1.weights"]
    assert weights.axes == ("tokens", "experts") and [name for name, _ in weights.merged] == ["batch", "tokens"]
    assert places["mlp.1.neurons"].axes == ("entries", "neurons") and values["mlp.1.neurons"].shape == (24, 48)
    added = values["attention.1.output"] + values["mlp.1.output"]
    assert torch.allclose(values["residual.2"], values["residual.1"] + added, atol=1e-6)


def test_a_transformer_of_plain_torch() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=False)
    model = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval().double()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    states = [x]
    with torch.no_grad():
        for each in model.layers:
            states.append(each(states[-1]))
    module = lxt_fx.transform(model, (x,))
    with torch.no_grad(), lxt_fx.watch(module, "residual.*", "mlp.*.neurons") as inside:
        module(x)
    assert all(same(inside[f"residual.{layer}"].value, state) for layer, state in enumerate(states))
    assert inside["mlp.2.neurons"].value.shape == (2, 5, 24)


def test_a_mixer_without_attention() -> None:
    """An MLP-mixer: the block that works along the tokens is a mixer, the other an MLP."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.ModuleList(nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 5)) for _ in range(3))
            self.channels = nn.ModuleList(nn.Sequential(nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8)) for _ in range(3))
            self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(6))

        def forward(self, x: Tensor) -> Tensor:
            for index, (tokens, channels) in enumerate(zip(self.tokens, self.channels, strict=True)):
                x = x + tokens(self.norms[2 * index](x).transpose(1, 2)).transpose(1, 2)
                x = x + channels(self.norms[2 * index + 1](x))
            return x.mean(1)

    places = lxt_fx.places(lxt_fx.transform(Mixer(), (torch.randn(2, 5, 8),)))
    assert [name for name in places if name.startswith("residual")] == [f"residual.{layer}" for layer in range(4)]
    assert [name for name in places if name.endswith("neurons")] == [f"mlp.{layer}.neurons" for layer in range(3)]
    assert [name for name in places if name.startswith("mixer")] == [f"mixer.{layer}.output" for layer in range(3)]


@pytest.mark.parametrize("name", each_model(TEXT[:1]))
def test_places_where_only_some_positions_are_computed(name: str) -> None:
    """The last layer computes its MLP at the asked position only, under the same names."""
    module = explained(name, positions=[-1])
    assert set(lxt_fx.places(module)) == set(lxt_fx.places(explained(name)))


def test_a_layer_beside_a_neck_that_reads_the_layers_in_the_middle() -> None:
    """As in a depth model: the layers behind the first one that the neck reads are found too."""

    class Neck(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = LlamaConfig(**SIZES, num_key_value_heads=2)
            self.tower, self.first, self.second = LlamaForCausalLM(config).model, nn.Linear(32, 3), nn.Linear(32, 3)

        def forward(self, inputs_embeds: Tensor) -> Tensor:
            states = self.tower(inputs_embeds=inputs_embeds, output_hidden_states=True, use_cache=False).hidden_states
            return self.first(states[1]) + self.second(states[2])

    places = lxt_fx.places(lxt_fx.transform(Neck().eval(), (torch.randn(2, 5, 32),)))
    assert "residual.2" in places and "mlp.1.neurons" in places and "residual.3" not in places
