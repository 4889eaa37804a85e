"""The relevance flow graph balances at every node, and merging, splitting and pruning leave what they must."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import networkx as nx
import pytest
import torch
from shared_captures import each_model, explained, one_worker

import lxt_fx
from lxt_fx.ledger import flow_graph as flow

IDS = torch.tensor([[5, 9, 17, 23, 11]])


@cache
def ledger_of(name: str, attention: str = "sdpa", table: str = "attnlrp") -> lxt_fx.Ledger:
    return lxt_fx.audit(explained(name, torch.float64, attention, rules=table), {"input_ids": IDS})


def balance(graph: nx.DiGraph, node: str) -> float:
    """What reached the node, less what it absorbed and what it passed on."""
    facts = graph.nodes[node]
    return float(facts["relevance"] - facts["leak"] - sum(r for _, _, r in graph.in_edges(node, data="relevance")))


@pytest.mark.parametrize("name", each_model(["llama", "bert"]))
def test_every_node_passes_on_what_it_does_not_absorb(name: str) -> None:
    ledger = ledger_of(name)
    graph = ledger.flow_graph()
    leaf = graph.nodes["inputs_embeds"]
    assert leaf["op"] == "placeholder" and abs(leaf["relevance"] - float(ledger.relevance)) <= 1e-9
    assert graph.nodes["target"]["relevance"] == float(ledger.value)
    for node in graph:
        if node != "inputs_embeds":
            assert abs(balance(graph, node)) <= 1e-6, node  # norms compute in float32
        if node != "target":
            leaving = sum(relevance for _, _, relevance in graph.out_edges(node, data="relevance"))
            assert abs(leaving - graph.nodes[node]["relevance"]) <= 1e-6, node
    assert nx.is_directed_acyclic_graph(graph)
    assert {"op", "rule", "module", "layer", "line"} <= graph.nodes["sdpa"].keys()


@one_worker("llama")
@pytest.mark.parametrize("modules", [(), ("model.layers.*.mlp", "model.layers.*.self_attn")])
def test_a_graph_of_modules_has_all_crossing_edges(modules: tuple[str, ...]) -> None:
    ledger = ledger_of("llama")
    merged = flow.by_module(ledger.flow_graph(), *modules)
    if modules:
        wanted = {f"model.layers.{layer}.{part}" for layer in (0, 1) for part in ("mlp", "self_attn")}
        assert wanted | {"model.layers.0", "model.layers.1", "target", "inputs_embeds"} <= set(merged)
    total = sum(facts["leak"] for _, facts in merged.nodes(data=True))
    assert abs(total - float(ledger.leaks)) <= 1e-9
    for node in merged:
        if node != "inputs_embeds":
            assert abs(balance(merged, node)) <= 1e-6, node


@one_worker("llama")
def test_a_graph_of_layers_is_a_chain() -> None:
    merged = flow.by_layer(ledger_of("llama").flow_graph())
    order = list(nx.topological_sort(merged))
    assert [node for node in order if node.startswith("model.layers")] == ["model.layers.0", "model.layers.1"]
    assert order[0] == "inputs_embeds" and order[-1] == "target"


@one_worker("llama")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("table", ["attnlrp", "cp_lrp"])
def test_heads_split_an_attention_without_remainder(attention: str, table: str) -> None:
    graph = ledger_of("llama", attention, table).flow_graph()
    split = flow.by_head(graph)
    attentions = [node for node, heads in graph.nodes(data="heads") if heads]
    assert len(attentions) == 2
    for node in attentions:
        heads = [f"{node}[{head}]" for head in range(4)]
        assert node not in split and set(heads) <= set(split)
        for name in ("relevance", "leak"):
            assert abs(sum(split.nodes[head][name] for head in heads) - graph.nodes[node][name]) <= 1e-9
        for head in heads:
            assert abs(balance(split, head)) <= 1e-9, head
        edges = sum(relevance for head in heads for _, _, relevance in split.out_edges(head, data="relevance"))
        assert abs(edges - graph.nodes[node]["relevance"]) <= 1e-9


@one_worker("llama")
def test_pruning_leaves_strong_edges_that_lead_to_the_target() -> None:
    graph = ledger_of("llama").flow_graph()
    least = 0.2 * graph.nodes["target"]["relevance"]
    pruned = flow.prune(graph, 0.2)
    assert 0 < pruned.number_of_edges() < graph.number_of_edges()
    assert all(abs(relevance) >= least for _, _, relevance in pruned.edges(data="relevance"))
    assert nx.ancestors(pruned, "target") | {"target"} == set(pruned)
    assert flow.prune(graph, 0.0).number_of_edges() == graph.number_of_edges()
    with pytest.raises(lxt_fx.InputError, match="between 0 and 1"):
        flow.prune(graph, 20)


@one_worker("llama")
def test_graphs_are_written_as_graphml_and_json(tmp_path: Path) -> None:
    graph = ledger_of("llama").flow_graph()
    flow.write_graph(graph, tmp_path / "flow.graphml")
    flow.write_graph(graph, tmp_path / "flow.json")
    for found in (
        nx.read_graphml(tmp_path / "flow.graphml"),
        nx.node_link_graph(json.loads((tmp_path / "flow.json").read_text()), edges="edges"),
    ):
        assert set(found.edges) == set(graph.edges)
        for start, end, relevance in found.edges(data="relevance"):
            assert abs(relevance - graph.edges[start, end]["relevance"]) <= 1e-12
        assert found.nodes["sdpa"]["module"] == "model.layers.0.self_attn"
    with pytest.raises(lxt_fx.InputError, match=r"\.graphml or \.json"):
        flow.write_graph(graph, tmp_path / "flow.png")


@one_worker("llama")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_landing_adds_up_to_what_attention_gave(attention: str) -> None:
    ledger = ledger_of("llama", attention)
    landings = [ledger.landing(position) for position in range(5)]
    tokens = ledger.sources[0].by_token()[0]
    layers = [arrival.layer for arrival in landings[0].arrivals]
    assert layers == ["model.layers.1", "model.layers.0"]
    for index, layer in enumerate(layers):
        own = [landing.arrivals[index] for landing in landings]
        for part, argument in (("by_value", "value"), ("by_key", "key"), ("by_query", "query")):
            given = sum(getattr(arrival, part) for arrival in own)
            places = [(node, name) for node, name in ledger.positions if ledger.places[node].layer == layer]
            found = [float(ledger.positions[place].sum()) for place in places if place[1] == argument]
            assert found and abs(given - sum(found)) <= 1e-9
        assert abs(sum(arrival.of_token for arrival in own) - own[0].of_all) <= 1e-9
    for position, landing in enumerate(landings):
        assert abs(landing.at_input - float(tokens[position])) <= 1e-12
    assert abs(sum(landing.share for landing in landings) - 1) <= 1e-9
    assert "model.layers.1" in str(landings[0]) and ledger.landing(-1).position == 4
    with pytest.raises(lxt_fx.InputError, match="which has 5 tokens"):
        ledger.landing(5)


@one_worker("vit")
def test_the_landing_of_an_image_has_layers_and_no_input() -> None:
    shown = str(lxt_fx.audit(explained("vit"), torch.randn(1, 1, 8, 8)).landing(0))
    assert "vit.layers.1" in shown and "nan" not in shown and "input" not in shown


@one_worker("llama")
def test_the_landing_of_fused_and_written_out_attention_is_the_same() -> None:
    for position in range(5):
        fused, written = (ledger_of("llama", attention).landing(position) for attention in ("sdpa", "eager"))
        for one, other in zip(fused.arrivals, written.arrivals, strict=True):
            for part in ("of_token", "by_value", "by_key", "by_query"):
                assert abs(getattr(one, part) - getattr(other, part)) <= 1e-6, (position, part)
