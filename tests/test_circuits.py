"""Circuits: scores of edges, nodes and neurons, true activation patching, and faithfulness, against decoders by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import networkx as nx
import pytest
import tiny
import torch
from circuit_references import Terms, exact, hand_gpt2, hand_llama, scaled, whole
from shared_captures import explained as shared
from test_answers import Words
from torch import Tensor, nn
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXJapaneseConfig,
    GPTNeoXJapaneseForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

import lxt_fx
from lxt_fx.attribution import many_targets
from lxt_fx.attribution.target import Target
from lxt_fx.base.errors import CallError, ForwardMismatchError, InputError, NonFiniteError, UnknownNameError
from lxt_fx.inside.circuits.circuit import area, made_circuit
from lxt_fx.inside.circuits.contributions import Contributions
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.pairs import pairs_of

pytestmark = pytest.mark.usefixtures("captures_in_files")

HAND = {"llama": hand_llama, "gpt2": hand_gpt2, "scaled": hand_llama}
TARGET = (3, 4)
EXACT = 1e-10
"""float64, absolute, of scores up to 1. Measured: 4e-16 for sums, 1e-13 against the models by hand."""


@cache
def model_of(name: str) -> Any:
    if name == "scaled":
        return exact(scaled(tiny.llama()))
    return exact(mamba() if name == "mamba" else getattr(tiny, name)())


def mamba() -> Any:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)).eval()


@cache
def explained_of(name: str, rules: str = "gradient") -> Any:
    return lxt_fx.transform(model_of(name), rules=rules)


@cache
def ids(pairs: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Clean and corrupted texts of 7 tokens, of which the third and the fourth differ."""
    generator = torch.Generator().manual_seed(1)
    clean = torch.randint(5, 60, (pairs, 7), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 2:4] = torch.randint(5, 60, (pairs, 2), generator=generator)
    return {"input_ids": clean}, {"input_ids": corrupted}


def scored(name: str, rules: str = "gradient", **options: Any) -> Any:
    return lxt_fx.circuit_scores(explained_of(name, rules), *ids(), TARGET, **options)


def embeds(name: str, side: int) -> Tensor:
    return model_of(name).get_input_embeddings()(ids()[side]["input_ids"]).detach()


def number(logits: Tensor) -> Tensor:
    """The explained number of each pair."""
    return logits[:, -1, TARGET[0]] - logits[:, -1, TARGET[1]]


def written(name: str, side: int) -> dict[str, Tensor]:
    return {key: value.detach() for key, value in HAND[name](model_of(name), embeds(name, side))[1].items()}


def read_by(name: str, side: int) -> dict[str, dict[str, Tensor]]:
    """By reader, what it reads of each writer."""
    found: dict[str, dict[str, Tensor]] = {}

    def note(reader: str, terms: Terms) -> Tensor:
        found[reader] = {writer: value.detach() for writer, value in terms.items()}
        return whole(reader, terms)

    HAND[name](model_of(name), embeds(name, side), note)
    return found


def gradients_by_hand(name: str, at: Tensor) -> dict[str, Tensor]:
    """The gradient at the input of each reader alone, from the forward by hand at these embeddings."""
    shifts: dict[str, Tensor] = {}

    def reads(reader: str, terms: Terms) -> Tensor:
        shifts[reader] = torch.zeros_like(at, requires_grad=True)
        return whole(reader, terms) + shifts[reader]

    value = number(HAND[name](model_of(name), at, reads)[0]).sum()
    return dict(zip(shifts, torch.autograd.grad(value, list(shifts.values())), strict=True))


def edges_by_hand(name: str, at: Tensor) -> dict[tuple[str, str], Tensor]:
    """All scores of edges [pairs], by their definition."""
    clean, corrupted, found = read_by(name, 0), read_by(name, 1), {}
    for reader, gradient in gradients_by_hand(name, at).items():
        for writer, value in clean[reader].items():
            found[writer, reader] = ((value - corrupted[reader][writer]) * gradient).sum((1, 2))
    return found


def close(found: Tensor, expected: Tensor, tolerance: float = EXACT) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


# the models by hand are the models


@pytest.mark.parametrize("name", HAND)
def test_the_forward_by_hand_is_that_of_the_model(name: str) -> None:
    close(HAND[name](model_of(name), embeds(name, 0))[0], model_of(name)(**ids()[0]).logits)


# scores


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize("at", ["corrupted", "clean"])
def test_scores_of_edges_are_those_by_hand(name: str, at: str) -> None:
    found, expected = scored(name, at=at), edges_by_hand(name, embeds(name, at == "corrupted"))
    assert int(found.is_edge.sum()) == len(expected)
    for (writer, reader), score in expected.items():
        close(found.edge(writer, reader), score)
    assert float(found.edges.abs().max()) > 0.01
    assert not found.edges[:, ~found.is_edge].any() and not found.edges.requires_grad


@pytest.mark.parametrize("name", HAND)
def test_a_score_is_the_derivative_of_the_forward_in_which_one_edge_is_patched(name: str) -> None:
    """(m(e) - m(-e)) / 2e, with the clean run in which one reader reads what one writer adds moved a little."""
    found, clean, corrupted = scored(name), read_by(name, 0), read_by(name, 1)
    for writer, reader, _ in found.top(12):
        numbers, delta = [], clean[reader][writer] - corrupted[reader][writer]
        for step in (1e-4, -1e-4):

            def reads(one: str, terms: Terms, step: float = step) -> Tensor:
                moved = step * delta if one == reader else 0.0  # noqa: B023
                return whole(one, terms) + moved

            numbers.append(number(HAND[name](model_of(name), embeds(name, 0), reads)[0]))
        close(found.edge(writer, reader), (numbers[0] - numbers[1]) / 2e-4, 1e-6)


@pytest.mark.parametrize("name", HAND)
def test_the_scores_into_a_reader_are_what_the_whole_stream_gives(name: str) -> None:
    """sum over u of s(u -> v) = (stream clean - stream corrupted) . g_v."""
    found, clean, corrupted = scored(name), read_by(name, 0), read_by(name, 1)
    for reader, gradient in gradients_by_hand(name, embeds(name, 0)).items():
        index = found.readers.index(reader)
        sees = [name for name, reads in zip(found.writers, found.is_edge[:, index], strict=True) if reads]
        stream = sum(clean[reader][each] - corrupted[reader][each] for each in sees)
        close(found.edges[:, :, index].sum(1), (stream * gradient).sum((1, 2)))


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize("rules", ["gradient", "attnlrp", "cp_lrp", "relp", "gim"])
def test_the_edges_of_a_writer_add_up_to_its_node(name: str, rules: str) -> None:
    found = scored(name, rules)
    close(found.nodes, found.edges.sum(2))
    assert float(found.nodes.abs().max()) > 0.01


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize("steps", [1, 3])
def test_integrated_gradients_are_the_mean_over_steps_to_the_clean_embeddings(name: str, steps: int) -> None:
    found, total = scored(name, at=steps), 0.0
    for step in range(1, steps + 1):
        at = embeds(name, 1) + step / steps * (embeds(name, 0) - embeds(name, 1))
        total = total + gradients_by_hand(name, at)["mlp.1.input"] / steps
    clean, corrupted = (read_by(name, side)["mlp.1.input"] for side in (0, 1))
    for writer in ("embedding", "mlp.0.output"):
        close(found.edge(writer, "mlp.1.input"), ((clean[writer] - corrupted[writer]) * total).sum((1, 2)))


def test_a_score_of_a_neuron_is_its_difference_times_its_gradient() -> None:
    found, model = scored("llama"), model_of("llama")
    inside: list[Tensor] = []
    handle = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, args: inside.append(args[0]))
    try:
        value = number(model(**ids()[0]).logits).sum()
        model(**ids()[1])
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(value, inside[0])
    close(found.neurons["mlp.1.neurons"], ((inside[0] - inside[1]) * gradient).sum(1).detach())


@pytest.mark.parametrize("rules", ["gradient", "attnlrp"])
def test_a_batch_of_pairs_is_as_single_pairs(rules: str) -> None:
    together, (clean, corrupted) = scored("llama", rules), ids()
    for index in range(3):
        one = slice(index, index + 1)
        alone = lxt_fx.circuit_scores(
            explained_of("llama", rules),
            {"input_ids": clean["input_ids"][one]},
            {"input_ids": corrupted["input_ids"][one]},
            TARGET,
        )
        close(alone.edges[0], together.edges[index])
        close(alone.neurons["mlp.0.neurons"][0], together.neurons["mlp.0.neurons"][index])


@pytest.mark.parametrize("batch", [1, 2])
def test_pairs_in_batches_are_as_all_at_once(batch: int) -> None:
    """Of lists and of tensors by name, each with one target for all or one for each."""
    by_name, targets = ids(), [(3, 4), (5, 4), (3, 6)]
    lists = tuple(each["input_ids"].tolist() for each in by_name)
    circuits = scored("llama").circuits((0.5, 1.0))
    for given, target in ((by_name, TARGET), (lists, targets), (by_name, targets)):
        for function, more in (
            (lxt_fx.circuit_scores, ()),
            (lxt_fx.activation_patching, ()),
            (lxt_fx.circuit_faithfulness, (circuits,)),
        ):
            whole = function(explained_of("llama"), *given, target, *more)
            parts = function(explained_of("llama"), *given, target, *more, batch=batch)
            for field in ("edges", "nodes", "effects", "values", "clean", "corrupted"):
                if isinstance(getattr(whole, field, None), Tensor):
                    close(getattr(parts, field), getattr(whole, field))
            if function is lxt_fx.circuit_scores:
                assert parts.neurons.keys() == whole.neurons.keys()
                for name, each in whole.neurons.items():
                    close(parts.neurons[name], each)


def test_batches_of_pairs_that_are_none_are_refused() -> None:
    clean, corrupted = (each["input_ids"].tolist() for each in ids())
    for given, batch, target, said in (
        ((clean, corrupted), 0, TARGET, "batch must be a whole number of at least 1, or None, got 0"),
        ((clean[0], corrupted[0]), 2, TARGET, "batch=2 takes lists of pairs apart"),
        ((clean, corrupted[:2]), 2, TARGET, "give clean and corrupted inputs as lists of as many"),
        ((clean, corrupted), 2, [TARGET] * 2, "2 targets for 3 pairs"),
    ):
        with pytest.raises(InputError, match=f"^circuit_scores: .*{said}"):
            lxt_fx.circuit_scores(explained_of("llama"), *given, target, batch=batch)


def test_embeddings_may_be_given_instead_of_ids() -> None:
    model = explained_of("llama")
    given = [{"inputs_embeds": embeds("llama", side)} for side in (0, 1)]
    close(lxt_fx.circuit_scores(model, *given, TARGET).edges, scored("llama").edges)


def test_each_pair_may_have_a_target_of_its_own() -> None:
    found = lxt_fx.circuit_scores(explained_of("llama"), *ids(), [TARGET, (5, 6), 7])
    close(found.edges[0], scored("llama").edges[0])
    assert not torch.allclose(found.edges[1], scored("llama").edges[1])


def test_bfloat16_runs_and_is_near_float64() -> None:
    model = lxt_fx.transform(tiny.llama().bfloat16(), rules="attnlrp")
    found = lxt_fx.circuit_scores(model, *ids(), TARGET)
    assert found.edges.dtype is torch.float32 and bool(found.edges.isfinite().all())
    expected = scored("llama", "attnlrp").edges.float()
    assert float((found.edges - expected).norm() / expected.norm()) < 0.1  # measured: 0.03
    assert lxt_fx.circuit_faithfulness(model, *ids(), TARGET, found.circuit(1.0)).faithfulness[0] == 1


# cost


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The forwards and backwards of the whole network inside the block."""
    seen: list[str] = []
    forward, run, back = many_targets.forward_run, GraphRun.all, many_targets.Run.gradients

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: (seen.append(name), function(*args, **kwargs))[1]

    with monkeypatch.context() as patch:
        patch.setattr("lxt_fx.inside.circuits.branch_gradients.forward_run", noted("forward", forward))
        patch.setattr(GraphRun, "all", noted("forward", run))
        patch.setattr(many_targets.Run, "gradients", noted("backward", back))
        yield seen


@pytest.mark.parametrize("at, backwards", [("corrupted", 1), ("clean", 1), (3, 3)])
def test_all_scores_take_two_forwards_and_one_with_a_backward_for_each_step(
    monkeypatch: pytest.MonkeyPatch, at: Any, backwards: int
) -> None:
    model = explained_of("llama")
    with counted(monkeypatch) as seen:
        lxt_fx.circuit_scores(model, *ids(), TARGET, at=at)
    assert (seen.count("forward"), seen.count("backward")) == (2 + backwards, backwards)


# writers


@pytest.mark.parametrize("name, tolerance", [("llama", 1e-13), ("gpt2", 1e-13), ("gemma3", 1e-5)])
def test_heads_add_up_to_what_their_attention_adds(name: str, tolerance: float) -> None:
    """Up to the bias; in Gemma behind a norm, which computes in float32."""
    pairs = pairs_of(explained_of(name), None, *ids(), TARGET, "circuit_scores")
    run = pairs.run("clean")
    parts = Contributions(run, pairs.network, "circuit_scores")
    by_heads = [writer for writer in pairs.network.writers if writer.axis is not None]
    assert [writer.place for writer in by_heads] == ["attention.0.heads", "attention.1.heads"]
    for index, writer in enumerate(by_heads):
        bias = model_of(name).transformer.h[index].attn.c_proj.bias if name == "gpt2" else torch.zeros(32).double()
        close(parts.added(writer).sum(0) + bias, run.values[writer.write.added], tolerance)


@pytest.mark.parametrize("name", HAND)
def test_each_head_adds_what_its_part_of_the_projection_makes_of_it(name: str) -> None:
    pairs = pairs_of(explained_of(name), None, *ids(), TARGET, "circuit_scores")
    found = Contributions(pairs.run("clean"), pairs.network, "circuit_scores")
    for writer in pairs.network.writers:
        for unit, added in zip(writer.names, found.added(writer), strict=True):
            close(found.seen(added, pairs.network.readers[-1].scales), written(name, 0)[unit], 1e-12)


def test_heads_are_computed_of_the_readers_that_make_them() -> None:
    """Four heads of queries share two of keys and values, neighbours one."""
    expected = {
        (f"attention.{layer}.queries:{head}", f"attention.{layer}.heads:{head}") for layer in (0, 1) for head in range(4)
    }
    for kind in ("keys", "values"):
        expected |= {
            (f"attention.{layer}.{kind}:{head // 2}", f"attention.{layer}.heads:{head}")
            for layer in (0, 1)
            for head in range(4)
        }
    expected |= {(f"mlp.{layer}.input", f"mlp.{layer}.output") for layer in (0, 1)}
    assert set(scored("llama").feeds) == expected and len(scored("llama").feeds) == len(expected)


def test_parallel_attention_and_mlp_are_ordered_by_the_graph() -> None:
    config = GPTNeoXConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, rotary_pct=0.5
    )
    torch.manual_seed(0)
    found = lxt_fx.circuit_scores(
        lxt_fx.transform(GPTNeoXForCausalLM(config).eval().double(), rules="gradient"), *ids(), TARGET
    )
    edge = {(w, r) for at, w in enumerate(found.writers) for to, r in enumerate(found.readers) if found.is_edge[at, to]}
    assert ("attention.0.heads:1", "mlp.0.input") not in edge and ("mlp.0.output", "attention.0.queries:1") not in edge
    assert {
        ("attention.0.heads:1", "mlp.1.input"),
        ("mlp.0.output", "attention.1.keys:3"),
        ("embedding", "mlp.0.input"),
    } <= edge
    assert len(edge) == 13 + 13 * 6 + 11  # of both layers, and into the logits
    close(found.nodes, found.edges.sum(2), 1e-9)


def test_norms_behind_attention_and_mlp_are_part_of_what_is_written() -> None:
    found = scored("gemma3")
    close(found.nodes, found.edges.sum(2), 1e-6)
    curve = lxt_fx.circuit_faithfulness(
        explained_of("gemma3"), *ids(), TARGET, {0.0: found.circuit(0), 1.0: found.circuit(1.0)}
    )
    close(curve.values[0], curve.corrupted, 1e-6)
    assert torch.equal(curve.values[1], curve.clean)


def test_a_stream_with_examples_and_tokens_in_one_axis_is_followed() -> None:
    sizes = {"vocab_size": 64, "hidden_size": 32, "ffn_dim": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = OPTConfig(**sizes, word_embed_proj_dim=32, max_position_embeddings=64)
    torch.manual_seed(0)
    model = lxt_fx.transform(OPTForCausalLM(config).eval().double(), rules="gradient")
    found = lxt_fx.circuit_scores(model, *ids(), TARGET)
    close(found.nodes, found.edges.sum(2))
    curve = lxt_fx.circuit_faithfulness(model, *ids(), TARGET, {0.0: found.circuit(0), 1.0: found.circuit(1.0)})
    close(curve.values, torch.stack([curve.corrupted, curve.clean]))


# dictionaries


def dictionary(**options: Any) -> lxt_fx.Dictionary:
    generator = torch.Generator().manual_seed(2)
    directions = nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1).double()
    biases = {
        "b_enc": torch.randn(64, generator=generator).double(),
        "b_dec": torch.randn(32, generator=generator).double(),
    }
    return lxt_fx.Dictionary(directions.T.contiguous(), directions, kind="relu", **{**biases, **options})


@cache
def spliced_at(place: str, rules: str = "gradient", name: str = "llama") -> Any:
    return lxt_fx.splice(explained_of(name, rules), place, dictionary())


PLACES = ("residual.0", "residual.1", "residual.2", "mlp.0.output", "attention.1.output")


@pytest.mark.parametrize(
    "name, rules", [("llama", "gradient"), ("llama", "attnlrp"), ("scaled", "gradient"), ("scaled", "cp_lrp")]
)
@pytest.mark.parametrize("place", PLACES)
def test_features_are_writers_in_the_place_of_what_they_explain(place: str, name: str, rules: str) -> None:
    model = spliced_at(place, rules, name)
    found, plain = lxt_fx.circuit_scores(model, *ids(), TARGET), scored(name, rules)
    assert f"{place}.features:63" in found.writers and f"{place}.error" in found.writers
    assert f"{place}.features.input" in found.readers
    close(found.nodes, found.edges.sum(2))
    behind = found.is_edge[found.writers.index(f"{place}.features:63")]
    after = [reader for reader, reads in zip(found.readers, behind, strict=True) if reads]
    for reader in after:  # what the whole stream gives is the same
        now, before = (each.edges[:, :, each.readers.index(reader)].sum(1) for each in (found, plain))
        close(now, before)
    assert after[-1] == "logits"
    curve = lxt_fx.circuit_faithfulness(model, *ids(), TARGET, {0.0: found.circuit(0), 1.0: found.circuit(1.0)})
    close(curve.values, torch.stack([curve.corrupted, curve.clean]))


@pytest.mark.parametrize("name", ["llama", "scaled"])
def test_a_score_of_a_feature_is_what_it_adds_times_the_gradient_of_the_reader(name: str) -> None:
    model = spliced_at("residual.1", name=name)
    found, made = lxt_fx.circuit_scores(model, *ids(), TARGET), dictionary()
    stream = [whole("", read_by(name, side)["attention.1.values:1"]) for side in (0, 1)]
    features = made.encode(stream[0]) - made.encode(stream[1])
    gradient = gradients_by_hand(name, embeds(name, 0))["attention.1.values:1"]
    for unit in (0, 17, 63):
        expected = (features[..., unit, None] * made.tensors["W_dec"][unit] * gradient).sum((1, 2))
        close(found.edge(f"residual.1.features:{unit}", "attention.1.values:1"), expected)
    assert float(features.abs().max()) > 0.1


def test_edges_of_single_features_are_patched() -> None:
    """All edges but those from some features into one reader, by hand."""
    model, made = spliced_at("residual.1"), dictionary()
    found = lxt_fx.circuit_scores(model, *ids(), TARGET)
    graph, gone = found.circuit(1.0), list(range(0, 64, 3))
    graph.remove_edges_from([(f"residual.1.features:{unit}", "mlp.1.input") for unit in gone])

    def reads(reader: str, terms: Terms) -> Tensor:
        if reader != "mlp.1.input":
            return whole(reader, terms)
        both = [sum(x for key, x in found.items() if ".1." not in key) for found in (terms, written("llama", 1))]
        lost = (made.encode(both[0]) - made.encode(both[1]))[..., gone] @ made.tensors["W_dec"][gone]
        return whole(reader, terms) - lost

    expected = number(hand_llama(model_of("llama"), embeds("llama", 0), reads)[0]).detach()
    curve = lxt_fx.circuit_faithfulness(model, *ids(), TARGET, graph)
    close(curve.values[0], expected)
    assert not torch.allclose(expected, curve.clean)


def test_dictionaries_whose_features_do_not_add_up_are_refused() -> None:
    model = explained_of("llama")
    with pytest.raises(ForwardMismatchError, match="do not add up"):  # b_dec is scaled by the size of the value
        lxt_fx.circuit_scores(lxt_fx.splice(model, "residual.1", dictionary(rescale=True)), *ids(), TARGET)
    with pytest.raises(InputError, match="neither in the residual stream"):
        lxt_fx.circuit_scores(lxt_fx.splice(model, "attention.0.heads", dictionary()), *ids(), TARGET)


# circuits


def test_a_circuit_has_the_largest_edges_that_lie_on_a_path() -> None:
    found = scored("llama")
    for by in ("absolute", "signed"):
        graph = found.circuit(25, by)
        kept = {(writer, reader) for writer, reader, score in graph.edges(data="score") if score is not None}
        assert kept and kept <= {(writer, reader) for writer, reader, _ in found.top(25, by)}
        for node in graph:
            assert nx.has_path(graph, "embedding", node) and nx.has_path(graph, node, "logits")
    everything = found.circuit(1.0)
    assert sum(score is not None for *_, score in everything.edges(data="score")) == int(found.is_edge.sum())
    signed = [score for *_, score in found.top(25, "signed")]
    assert signed == sorted(signed, reverse=True) and signed != [score for *_, score in found.top(25)]


def test_what_lies_on_no_path_is_dropped() -> None:
    feeds = [("q", "head"), ("in", "out")]
    edges = [("embedding", "q", 1.0), ("head", "logits", 1.0), ("embedding", "in", 2.0), ("elsewhere", "logits", 3.0)]
    assert set(made_circuit(edges, feeds)) == {"embedding", "q", "head", "logits"}
    assert set(made_circuit(edges[:1], feeds)) == {"embedding", "logits"}


@pytest.mark.parametrize("name", HAND)
def test_with_all_edges_it_is_the_clean_run_and_with_none_the_corrupted_one(name: str) -> None:
    found = scored(name)
    curve = lxt_fx.circuit_faithfulness(
        explained_of(name), *ids(), TARGET, {0.0: found.circuit(0), 1.0: found.circuit(1.0)}
    )
    assert torch.equal(curve.values[1], curve.clean)
    close(curve.values[0], curve.corrupted, 1e-13)
    close(curve.clean, number(model_of(name)(**ids()[0]).logits).detach())
    close(curve.corrupted, number(model_of(name)(**ids()[1]).logits).detach())
    assert curve.edges == (0, int(found.is_edge.sum()))


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize("size", [0.2, 0.5, 0.8])
def test_what_a_circuit_makes_is_what_the_forward_by_hand_makes(name: str, size: float) -> None:
    found, corrupted = scored(name), read_by(name, 1)
    graph = found.circuit(size)

    def reads(reader: str, terms: Terms) -> Tensor:
        kept = [terms[writer] if graph.has_edge(writer, reader) else corrupted[reader][writer] for writer in terms]
        return sum(kept)  # type: ignore[return-value]

    expected = number(HAND[name](model_of(name), embeds(name, 0), reads)[0]).detach()
    curve = lxt_fx.circuit_faithfulness(explained_of(name), *ids(), TARGET, graph)
    close(curve.values[0], expected)
    assert not torch.allclose(expected, curve.clean) and not torch.allclose(expected, curve.corrupted)
    mean = curve.corrupted.mean()
    close(curve.faithfulness[0], (expected.mean() - mean) / (curve.clean.mean() - mean))


def test_cpr_and_cmd_are_areas_by_trapezoids() -> None:
    values = torch.tensor([[1.0, 3.0], [4.0, 6.0], [3.0, 3.0]])
    curve = lxt_fx.CircuitFaithfulness(
        (0.1, 0.2, 1.0), (1, 2, 9), values, torch.tensor([3.0, 3.0]), torch.tensor([0.0, 2.0])
    )
    close(curve.faithfulness, torch.tensor([0.5, 2.0, 1.0]))
    assert curve.cpr == pytest.approx(0.1 * 1.25 + 0.8 * 1.5)
    assert curve.cmd == pytest.approx(0.1 * 0.75 + 0.8 * 0.5)
    assert area([0.0, 1.0], [2.0, 2.0]) == 2.0


def test_the_sizes_are_those_of_mib() -> None:
    assert tuple(scored("llama").circuits()) == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)


# true activation patching


def by_hooks(name: str, module: nn.Module, side: int, change: Callable[[Tensor, Tensor], Tensor], entering: bool) -> Tensor:
    """The number of a run with what enters or leaves a module changed to what it is in the other run."""
    model, seen = model_of(name), list[Tensor]()

    def hook(_: nn.Module, args: Any, output: Any = None) -> Any:
        value = args[0] if entering else output
        if not seen:
            seen.append(value)
            return None
        found = change(value, seen[0])
        return (found,) if entering else found

    handle = module.register_forward_pre_hook(hook) if entering else module.register_forward_hook(hook)
    try:
        model(**ids()[1 - side])
        return number(model(**ids()[side]).logits).detach()
    finally:
        handle.remove()


def columns(start: int, stop: int) -> Callable[[Tensor, Tensor], Tensor]:
    def change(value: Tensor, other: Tensor) -> Tensor:
        return torch.cat([value[..., :start], other[..., start:stop], value[..., stop:]], -1)

    return change


@pytest.mark.parametrize("at, side, sign", [("corrupted", 1, 1), ("clean", 0, -1)])
@pytest.mark.parametrize("name", HAND)
def test_patched_parts_are_those_that_hooks_patch(name: str, at: Any, side: int, sign: int) -> None:
    model = model_of(name)
    layer = model.transformer.h[0] if name == "gpt2" else model.model.layers[0]
    out, down = (layer.attn.c_proj, layer.mlp.c_proj) if name == "gpt2" else (layer.self_attn.o_proj, layer.mlp.down_proj)
    units: dict[str, Any] = {"attention.0.heads": None, "mlp.0.output": None, "mlp.0.neurons": [5, 7]}
    found = lxt_fx.activation_patching(explained_of(name), *ids(), TARGET, units, at=at)
    expected = {
        f"attention.0.heads:{head}": by_hooks(name, out, side, columns(8 * head, 8 * head + 8), True) for head in range(4)
    }
    expected["mlp.0.output"] = by_hooks(name, layer.mlp, side, lambda value, other: other, False)
    expected |= {f"mlp.0.neurons:{unit}": by_hooks(name, down, side, columns(unit, unit + 1), True) for unit in (5, 7)}
    assert found.parts == tuple(expected)
    base = number(model(**ids()[side]).logits).detach()
    close(found.effects, sign * (torch.stack(list(expected.values()), 1) - base[:, None]))


def test_patched_side_by_side_is_patched_one_by_one() -> None:
    one, several = (lxt_fx.activation_patching(explained_of("gpt2"), *ids(), TARGET, copies=copies) for copies in (1, 3))
    assert len(one.parts) == 10 and "attention.1.heads:3" in one.parts and "mlp.1.output" in one.parts
    close(several.effects, one.effects, 1e-13)


def test_a_model_without_attention_has_the_outputs_of_its_mixers_patched() -> None:
    explained = lxt_fx.transform(model_of("mamba"), kwargs=ids()[0])
    found = lxt_fx.activation_patching(explained, *ids(), TARGET)
    assert found.parts == ("mixer.0.output", "mixer.1.output")
    base = number(model_of("mamba")(**ids()[0]).logits).detach()
    for at, layer in enumerate(model_of("mamba").backbone.layers):
        moved = by_hooks("mamba", layer.mixer, 0, lambda value, other: other, False)
        close(found.effects[:, at], base - moved)


def test_scores_of_nodes_are_near_the_effects_of_small_differences() -> None:
    """Where clean and corrupted embeddings are near one another, to first order."""
    first, second = embeds("llama", 0), embeds("llama", 1)
    given = [{"inputs_embeds": first}, {"inputs_embeds": first + 1e-5 * (second - first)}]
    model = explained_of("llama")
    scores, effects = lxt_fx.circuit_scores(model, *given, TARGET), lxt_fx.activation_patching(model, *given, TARGET)
    close(torch.stack([scores.node(part) for part in effects.parts], 1), effects.effects, 1e-9)
    assert float(effects.effects.abs().max()) > 1e-7


# what is refused


def test_pairs_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="same number of tokens"):
        lxt_fx.circuit_scores(explained_of("llama"), ids()[0], {"input_ids": ids()[1]["input_ids"][:, :5]}, TARGET)


def test_pairs_with_different_padding_are_refused() -> None:
    masks = torch.ones(2, 3, 7, dtype=torch.long)
    masks[1, 0, 0] = 0
    given = [{**one, "attention_mask": mask} for one, mask in zip(ids(), masks, strict=True)]
    with pytest.raises(InputError, match="differ in attention_mask"):
        lxt_fx.circuit_scores(explained_of("llama"), *given, TARGET)


def test_what_cannot_be_a_target_of_a_pair_is_refused() -> None:
    with pytest.raises(InputError, match="needs one number"):
        lxt_fx.circuit_scores(explained_of("llama"), *ids(), None)
    with pytest.raises(InputError, match="are several"):
        lxt_fx.circuit_scores(explained_of("llama"), *ids(), [[3, 4], [3, 4], [3, 4]])


@pytest.mark.parametrize(
    "target", [Target(), Target(minus=3), Target.at(-2), (None, 3), [3, None, 4], [3, Target.at(-2), 4], [[None]] * 3]
)
def test_a_target_that_is_the_largest_logit_is_another_one_in_each_run_and_is_refused(target: Any) -> None:
    """The largest logit of the clean run is not that of the corrupted one, so their difference is no difference."""
    for function in (lxt_fx.circuit_scores, lxt_fx.activation_patching):
        with pytest.raises(InputError, match="needs one number that is read in both runs"):
            function(explained_of("llama"), *ids(), target)


def test_a_name_of_several_tokens_is_one_number_of_each_pair() -> None:
    """What the call computes beside it, the log-probability of its first token, is no number of a pair."""
    name, texts = "7 8", [[" ".join(map(str, row)) for row in side["input_ids"].tolist()] for side in ids()]

    def by_hand(output: Any) -> Tensor:
        first, second = (output.logits[:, at].log_softmax(-1) for at in (-2, -1))
        found: Tensor = first[:, 7] + second[:, 8]
        return found

    longer = [{"input_ids": torch.cat([side["input_ids"], torch.tensor([[7]] * 3)], 1)} for side in ids()]
    for function, more in (
        (lxt_fx.circuit_scores, ()),
        (lxt_fx.activation_patching, ()),
        (lxt_fx.circuit_faithfulness, ({0.5: scored("llama").circuit(0.5), 1.0: scored("llama").circuit(1.0)},)),
    ):
        found = function(explained_of("llama"), *texts, name, *more, processor=Words())
        other = function(explained_of("llama"), *longer, by_hand, *more)
        for field in ("edges", "clean", "corrupted", "effects", "values"):
            if isinstance(getattr(found, field, None), Tensor):
                close(getattr(found, field), getattr(other, field))


@pytest.mark.parametrize("inside", ["autocast", "inference", "no_grad"])
def test_the_callers_modes_change_nothing(inside: str) -> None:
    single = lxt_fx.transform(tiny.llama(), rules="gradient")
    mode = {
        "autocast": torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode(),
        "no_grad": torch.no_grad(),
    }

    def found() -> list[Tensor]:
        scores = lxt_fx.circuit_scores(single, *ids(), TARGET)
        curve = lxt_fx.circuit_faithfulness(single, *ids(), TARGET, scores.circuits((0.5, 1.0)))
        return [scores.edges, curve.values, lxt_fx.activation_patching(single, *ids(), TARGET).effects]

    plain = found()
    with mode[inside]:
        assert all(map(torch.equal, found(), plain))


def test_numbers_that_are_not_finite_are_errors() -> None:
    def broken(output: Any) -> Tensor:
        found: Tensor = output.logits[:, -1, 3] * torch.tensor([1.0, torch.nan, 1.0])
        return found

    def in_the_clean_run(output: Any) -> Tensor:
        found: Tensor = output.logits[:, -1, 3] / (number(output.logits).detach() != clean)
        return found

    clean = scored("llama").clean
    whole = {0.5: scored("llama").circuit(0.5), 1.0: scored("llama").circuit(1.0)}
    for target, run in ((broken, "clean"), (in_the_clean_run, "clean")):
        for function, more in (
            (lxt_fx.circuit_scores, ()), (lxt_fx.activation_patching, ()), (lxt_fx.circuit_faithfulness, (whole,)),
        ):  # fmt: skip
            with pytest.raises(NonFiniteError, match=f"^{function.__name__}: an explained number of the {run} run"):
                function(explained_of("llama"), *ids(), target, *more)


def test_a_number_that_is_not_finite_with_one_part_or_circuit_names_it() -> None:
    seen = torch.cat([scored("llama").clean, scored("llama").corrupted])

    def elsewhere(output: Any) -> Tensor:
        """The number in both runs, and NaN in every other one."""
        found = number(output.logits)
        known = (found[:, None] - seen).abs().amin(1) < EXACT
        return found.where(known, torch.nan)

    with pytest.raises(
        NonFiniteError, match="^activation_patching: the number is not finite with the corrupted value of atten"
    ):
        lxt_fx.activation_patching(explained_of("llama"), *ids(), elsewhere)
    with pytest.raises(NonFiniteError, match="^circuit_faithfulness: the number of the circuit of size 0.5 is not finite"):
        lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), elsewhere, scored("llama").circuits((1.0, 0.5)))


def test_the_area_does_not_depend_on_the_order_of_the_circuits() -> None:
    scores = scored("llama")
    found = [
        lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), TARGET, scores.circuits(sizes))
        for sizes in ((0.1, 0.5, 1.0), (1.0, 0.1, 0.5))
    ]
    assert found[0].sizes == found[1].sizes == (0.1, 0.5, 1.0) and torch.equal(found[0].values, found[1].values)
    assert found[0].cpr == found[1].cpr and found[0].cmd == found[1].cmd > 0


def test_one_circuit_has_no_area() -> None:
    found = lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), TARGET, scored("llama").circuit(0.5))
    assert repr(found) == f"CircuitFaithfulness(1 circuit, faithfulness {float(found.faithfulness[0]):.3f})"
    for area_of in (lambda: found.cpr, lambda: found.cmd):
        with pytest.raises(InputError, match="^circuit_faithfulness: an area needs circuits of two sizes at least"):
            area_of()


@pytest.mark.parametrize("size", [10, -0.1, True, "0.1", float("nan")])
def test_circuits_are_named_by_shares(size: Any) -> None:
    graph = scored("llama").circuit(0.5)
    with pytest.raises(InputError, match="named by the share of all edges .*, from 0.0 to 1.0, got"):
        lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), TARGET, {size: graph, 1.0: graph})
    with pytest.raises(InputError, match="there is no circuit; CircuitScores.circuits makes some"):
        lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), TARGET, {})


def test_more_clean_than_corrupted_inputs_are_no_pairs() -> None:
    clean, corrupted = ids()
    with pytest.raises(InputError, match="3 clean and 2 corrupted inputs are no pairs; give as many"):
        lxt_fx.circuit_scores(explained_of("llama"), clean, {"input_ids": corrupted["input_ids"][:2]}, TARGET)


@pytest.mark.parametrize("at", ["between", 0, -1, True, 0.5])
def test_a_place_of_the_gradient_that_there_is_not_is_refused(at: Any) -> None:
    with pytest.raises(InputError, match="number of steps"):
        scored("llama", at=at)


def test_explicit_form_and_steered_modules_are_refused() -> None:
    with pytest.raises(InputError, match="explicit form"):
        lxt_fx.circuit_scores(shared("llama", form="explicit"), *ids(), TARGET)
    model = explained_of("llama")
    with lxt_fx.steer(model, {"mlp.0.neurons": lxt_fx.edits.scale(0)}), pytest.raises(CallError, match="steered"):
        lxt_fx.circuit_scores(model, *ids(), TARGET)


def test_a_stream_that_is_no_plain_sum_is_refused_and_says_where() -> None:
    with pytest.raises(InputError, match=r"BertForSequenceClassification .* than a constant factor, such as a norm"):
        lxt_fx.circuit_scores(shared("bert"), *ids(), lambda out: out.logits[:, 0])


@pytest.mark.parametrize(
    "scale, said",
    [
        ((torch.arange(32) != 3).double(), "whose product is 0 or not finite"),
        (torch.full((1, 7, 1), 0.5).double(), "something else than a constant factor"),
    ],
    ids=["zero", "by token"],
)
def test_a_stream_that_is_multiplied_with_no_factor_is_refused(scale: Tensor, said: str) -> None:
    model = exact(scaled(tiny.llama()))
    model.model.layers[0].scale = nn.Parameter(scale)
    with pytest.raises(InputError, match=said):
        lxt_fx.circuit_scores(lxt_fx.transform(model, rules="gradient"), *ids(), TARGET)


def test_a_bias_that_is_only_shaped_like_the_stream_reads_nothing_of_it() -> None:
    """The last attention of this model has a bias that is expanded as the stream (expand_as)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_multiple_size": 2, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = GPTNeoXJapaneseForCausalLM(GPTNeoXJapaneseConfig(vocab_size=97, **sizes)).double().eval()
    found = lxt_fx.circuit_scores(lxt_fx.transform(model, rules="gradient"), *ids(), TARGET)
    assert found.is_edge[found.writers.index("attention.0.heads:1"), found.readers.index("attention.1.values:3")]
    close(found.nodes, found.edges.sum(2))


def test_names_sizes_and_orders_that_there_are_not_are_refused() -> None:
    found = scored("llama")
    with pytest.raises(UnknownNameError, match="nearest"):
        found.edge("attention.9.heads:0", "logits")
    with pytest.raises(UnknownNameError, match="nearest"):
        found.node("mlp.7.output")
    with pytest.raises(InputError, match="computed before"):
        found.edge("mlp.1.output", "mlp.0.input")
    for size in (-1, 1.5, 10**6, True):
        with pytest.raises(InputError, match="number of edges"):
            found.circuit(size)
    with pytest.raises(InputError, match="by must be"):
        found.top(3, "size")


def test_circuits_that_do_not_fit_are_refused() -> None:
    model, graph = explained_of("llama"), nx.DiGraph()
    graph.add_edge("mlp.1.output", "mlp.0.input", score=1.0)
    with pytest.raises(InputError, match="this network has not"):
        lxt_fx.circuit_faithfulness(model, *ids(), TARGET, graph)
    with pytest.raises(InputError, match=r"networkx\.DiGraph"):
        lxt_fx.circuit_faithfulness(model, *ids(), TARGET, [("embedding", "logits")])
    with pytest.raises(InputError, match="give pairs that differ"):
        lxt_fx.circuit_faithfulness(model, ids()[0], ids()[0], TARGET, scored("llama").circuit(0.5))


def test_parts_that_cannot_be_patched_are_refused() -> None:
    model = explained_of("llama")
    for units, why in (({"mlp.0.neurons": [99]}, "99"), ({"mlp.9.neurons": [1]}, "selects nothing"), ({}, "no part")):
        with pytest.raises((InputError, UnknownNameError), match=why):
            lxt_fx.activation_patching(model, *ids(), TARGET, units)
    with pytest.raises(InputError, match="copies must be"):
        lxt_fx.activation_patching(model, *ids(), TARGET, copies=0)
    with pytest.raises(InputError, match="at must be"):
        lxt_fx.activation_patching(model, *ids(), TARGET, at="between")


# what is returned


def test_scores_are_a_frame_and_a_table() -> None:
    found = scored("llama")
    frame = found.to_dataframe()
    assert list(frame.columns) == ["pair", "writer", "reader", "score"] and len(frame) == 3 * int(found.is_edge.sum())
    line = frame[(frame.pair == 1) & (frame.writer == "embedding") & (frame.reader == "logits")]
    assert line.score.item() == float(found.edge("embedding", "logits")[1])
    assert "attention." in str(found) and "3 pairs" in repr(found)
