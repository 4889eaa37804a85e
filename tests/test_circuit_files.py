"""Files of circuits: MIB, circuit-tracer and Neuronpedia, GraphML; and the scores by token that they are made of."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import networkx as nx
import pytest
import torch
from test_circuits import HAND, TARGET, close, embeds, explained_of, ids, model_of, number, scored, written
from torch import Tensor

import lxt_fx
from lxt_fx.base.errors import InputError
from lxt_fx.explorer.circuit_data import circuit_data
from lxt_fx.inside.circuits.mib import expected_edges, mib_name, our_name
from lxt_fx.inside.circuits.part_names import part_named
from lxt_fx.inside.circuits.scores_result import joined

TEXT = {"type": "string"}
COUNT = {"type": "integer"}
GRAPH: dict[str, Any] = {
    "type": "object",
    "required": ["metadata", "qParams", "nodes", "links"],
    "properties": {
        "metadata": {
            "type": "object",
            "required": ["slug", "scan", "prompt_tokens", "prompt", "transcoder_list"],
            "properties": {
                "slug": TEXT, "scan": TEXT, "prompt": TEXT, "schema_version": COUNT,
                "prompt_tokens": {"type": "array", "items": TEXT}, "transcoder_list": {"type": "array", "items": TEXT},
                "info": {
                    "type": "object",
                    "properties": {
                        "description": TEXT,
                        "generator": {"type": "object", "properties": {"name": TEXT, "version": TEXT}},
                    },
                },
                "generation_settings": {"type": "object"}, "pruning_settings": {"type": "object"},
            },
        },
        "qParams": {
            "type": "object",
            "required": ["pinnedIds", "supernodes", "linkType", "clickedId", "sg_pos"],
            "properties": {
                "pinnedIds": {"type": "array", "items": TEXT}, "linkType": TEXT, "clickedId": TEXT, "sg_pos": TEXT,
                "supernodes": {"type": "array", "items": {"type": "array", "items": TEXT}},
            },
        },
        "nodes": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"],
                "properties": {
                    "node_id": TEXT, "feature": COUNT, "layer": TEXT, "ctx_idx": COUNT, "feature_type": TEXT,
                    "jsNodeId": TEXT, "clerp": TEXT, "run_idx": COUNT, "reverse_ctx_idx": COUNT,
                    "is_target_logit": {"type": "boolean"}, "influence": {"type": ["number", "null"]},
                    "activation": {"type": ["number", "null"]},
                },
            },
        },
        "links": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["source", "target", "weight"],
                "properties": {"source": TEXT, "target": TEXT, "weight": {"type": "number"}},
            },
        },
    },
}  # fmt: skip
"""What circuit-tracer's models of a file and Neuronpedia's graph-schema.json both take."""

MIB: dict[str, Any] = {
    "type": "object",
    "required": ["cfg", "nodes", "edges"],
    "properties": {
        "cfg": {
            "type": "object",
            "required": ["n_layers", "n_heads", "parallel_attn_mlp", "d_model"],
            "properties": {"n_layers": COUNT, "n_heads": COUNT, "d_model": COUNT, "parallel_attn_mlp": {"type": "boolean"}},
        },
        "nodes": {
            "type": "object",
            "patternProperties": {r"^(input|logits|m\d+|a\d+\.h\d+)$": {"type": "object", "required": ["in_graph"]}},
            "additionalProperties": False,
        },
        "edges": {
            "type": "object",
            "patternProperties": {
                r"^(input|m\d+|a\d+\.h\d+)->(logits|m\d+|a\d+\.h\d+<[qkv]>)$": {
                    "type": "object",
                    "required": ["score", "in_graph"],
                    "properties": {"score": {"type": "number"}, "in_graph": {"type": "boolean"}},
                }
            },
            "additionalProperties": False,
        },
    },
}
"""What EAP-IG's Graph.to_json writes and Graph.from_json reads."""


@cache
def by_token(name: str = "llama", rules: str = "gradient") -> Any:
    return scored(name, rules, by_token=True)


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# readers of each head, and scores by token


@pytest.mark.parametrize("rules", ["gradient", "attnlrp", "cp_lrp"])
def test_heads_that_share_keys_have_readers_whose_scores_add_up_to_the_shared_one(rules: str) -> None:
    found, shared = scored("llama", rules, per_head=True), scored("llama", rules)
    assert len(found.readers) == 2 * (3 * 4 + 1) + 1 and len(shared.readers) == 2 * (4 + 2 * 2 + 1) + 1
    for kind in ("keys", "values"):
        for head in (0, 1):
            each = [found.edge("embedding", f"attention.1.{kind}:{2 * head + one}") for one in (0, 1)]
            close(each[0] + each[1], shared.edge("embedding", f"attention.1.{kind}:{head}"))
    assert not torch.allclose(*(found.edge("embedding", f"attention.1.values:{one}") for one in (0, 1)))


def test_a_circuit_of_readers_of_each_head_is_run_with_them() -> None:
    found = scored("llama", per_head=True)
    curve = lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), TARGET, found.circuits([0.0, 0.3, 1.0]))
    close(curve.values[0], curve.corrupted)
    assert torch.equal(curve.values[2], curve.clean) and curve.edges[2] == int(found.is_edge.sum())
    with pytest.raises(InputError, match="some circuits have readers of keys and values for each head"):
        both = {0.1: found.circuit(0.1), 0.2: scored("llama").circuit(0.2)}
        lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), TARGET, both)


@pytest.mark.parametrize("name", HAND)
@pytest.mark.parametrize("rules", ["gradient", "attnlrp", "cp_lrp", "gim"])
def test_scores_by_token_add_up_to_those_of_edges(name: str, rules: str) -> None:
    found = by_token(name, rules)
    close(found.by_token.sum((1, 2)), found.edges)
    assert torch.equal(found.edges, scored(name, rules, per_head=True).edges)


def test_pairs_that_run_apart_have_the_scores_by_token_of_all_at_once() -> None:
    found, whole = scored("llama", by_token=True, batch=2), by_token()
    close(found.by_token, whole.by_token)
    assert found.facts == whole.facts and len(found.facts.texts) == 3


def test_scores_by_token_of_texts_of_several_lengths_stand_in_one_value() -> None:
    short = [{"input_ids": side["input_ids"][:1, :5]} for side in ids()]
    one = lxt_fx.circuit_scores(explained_of("llama"), *short, TARGET, by_token=True)
    both = joined([one, by_token()])
    close(both.by_token[:1, :5, :5], one.by_token)
    close(both.by_token[1:], by_token().by_token)
    assert not both.by_token[0, 5:].any() and not both.by_token[0, :, 5:].any()
    assert both.links(3, pair=0) == one.links(3) and len(both.facts.texts[0].clean) == 5


def test_steps_by_token_add_up_too() -> None:
    found = scored("llama", at=3, by_token=True)
    close(found.by_token.sum((1, 2)), found.edges)


def test_only_keys_and_values_reach_other_tokens_and_none_before_them() -> None:
    found = by_token("llama")
    kinds = [part_named(name).branch for name in found.readers]
    moved = torch.tensor([kind in ("k", "v") for kind in kinds])
    read_at, written_at = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    assert not found.by_token[:, read_at > written_at].any()
    assert not found.by_token[:, read_at != written_at][..., ~moved].any()
    assert found.by_token[:, read_at < written_at][..., moved].abs().max() > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # whose terms stay as they were written
def test_a_score_by_token_is_what_flows_back_from_one_token_of_a_head(name: str) -> None:
    """From the forward by hand: the gradient of a head at one token, and from there alone to what its keys read."""
    found, clean, corrupted = by_token(name), written(name, 0), written(name, 1)
    shifts: dict[str, Tensor] = {}

    def reads(reader: str, terms: Any) -> Tensor:
        shifts[reader] = torch.zeros_like(embeds(name, 0), requires_grad=True)
        return sum(terms.values()) + shifts[reader]

    logits, terms = HAND[name](model_of(name), embeds(name, 0), reads)
    shared = 1 if name == "gpt2" else 2
    for head in (0, 3):
        part = f"attention.0.heads:{head}"
        (reaching,) = torch.autograd.grad(number(logits).sum(), terms[part], retain_graph=True)
        for token in (3, 6):
            seed = torch.zeros_like(reaching)
            seed[:, token] = reaching[:, token]
            for kind in ("keys", "values"):
                shift = shifts[f"attention.0.{kind}:{head // shared}"]
                (gradient,) = torch.autograd.grad(terms[part], shift, seed, retain_graph=True)
                expected = ((clean["embedding"] - corrupted["embedding"]) * gradient).sum(-1)
                reader = found.readers.index(f"attention.0.{kind}:{head}")
                close(found.by_token[:, :, token, found.writers.index("embedding"), reader], expected)


def test_the_strongest_links_are_named_by_parts_and_tokens() -> None:
    found = by_token()
    links = found.links(40, pair=1)
    sizes = [abs(link[4]) for link in links]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] > 0
    writer, at, reader, to, score = links[7]
    assert score == found.by_token[1, at, to, found.writers.index(writer), found.readers.index(reader)]
    assert sizes[0] == found.by_token[1].abs().max()
    assert max(link[4] for link in found.links(3, by="signed")) == found.by_token[0].max()


def test_what_has_no_scores_by_token_says_so() -> None:
    with pytest.raises(InputError, match="by_token=True"):
        scored("llama").links()
    with pytest.raises(InputError, match="there is no pair 3"):
        by_token().links(pair=3)
    generator = torch.Generator().manual_seed(2)
    directions = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1).double()
    spliced = lxt_fx.splice(explained_of("llama"), "residual.1", lxt_fx.Dictionary(directions.T.contiguous(), directions))
    with pytest.raises(InputError, match="features.input is no attention, no MLP and no logits"):
        lxt_fx.circuit_scores(spliced, *ids(), TARGET, by_token=True)


# MIB


def test_names_of_mib_are_those_of_parts() -> None:
    pairs = {
        "embedding": "input", "attention.3.heads:5": "a3.h5", "mlp.3.output": "m3", "logits": "logits", "mlp.0.input": "m0",
        "attention.1.queries:5": "a1.h5<q>", "attention.1.keys:5": "a1.h5<k>", "attention.1.values:15": "a1.h15<v>",
    }  # fmt: skip
    for ours, theirs in pairs.items():
        assert mib_name(ours) == theirs
        assert our_name(theirs, reads=ours.endswith("input") or "<" in theirs or ours == "logits") == ours
    assert mib_name("residual.1.features:17") is None
    assert our_name("a1.h5", reads=True) is None and our_name("a1.h5<q>", reads=False) is None
    assert our_name("logits", reads=False) is None and our_name("input", reads=True) is None


def test_the_edges_of_a_graph_of_mib_are_counted_as_eap_ig_counts_them() -> None:
    """GPT-2 has 32,491 edges there."""
    config = {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False}
    assert len(set(expected_edges(config))) == 32491


def test_a_file_of_mib_has_every_score_and_the_circuit(tmp_path: Path) -> None:
    found = by_token()
    found.to_mib(tmp_path / "graph.json", 0.3)
    graph = read(tmp_path / "graph.json")
    jsonschema.validate(graph, MIB)
    assert graph["cfg"] == {"n_layers": 2, "n_heads": 4, "parallel_attn_mlp": False, "d_model": 32}
    assert len(graph["edges"]) == int(found.is_edge.sum()) and set(graph["edges"]) == set(expected_edges(graph["cfg"]))
    score = graph["edges"]["a0.h1->a1.h2<v>"]["score"]
    assert score == float(found.edge("attention.0.heads:1", "attention.1.values:2").mean())
    assert graph["nodes"]["m1"]["score"] == float(found.node("mlp.1.output").mean())
    kept = {name for name, edge in graph["edges"].items() if edge["in_graph"]}
    circuit = found.circuit(0.3)
    ours = [(mib_name(a), mib_name(b)) for a, b, score in circuit.edges(data="score") if score is not None]
    assert kept == {f"{writer}->{reader}" for writer, reader in ours}
    ends = {node.split("<")[0] for name in kept for node in name.split("->")}
    assert {name for name, node in graph["nodes"].items() if node["in_graph"]} == ends | {"input", "logits"}


def test_a_file_of_mib_is_read_as_the_circuit_that_it_keeps(tmp_path: Path) -> None:
    found = by_token()
    found.to_mib(tmp_path / "graph.json", 0.3)
    back, circuit = lxt_fx.read_mib_circuit(tmp_path / "graph.json"), found.circuit(0.3)
    assert nx.utils.graphs_equal(back, circuit)
    curves = [lxt_fx.circuit_faithfulness(explained_of("llama"), *ids(), TARGET, each) for each in (back, circuit)]
    assert torch.equal(curves[0].values, curves[1].values)
    for size, by in ((0.1, "signed"), (40, "signed"), (40, "absolute")):
        chosen = lxt_fx.read_mib_circuit(tmp_path / "graph.json", size, by=by)
        assert nx.utils.graphs_equal(chosen, found.circuit(size, by=by))
    assert not nx.utils.graphs_equal(found.circuit(40), found.circuit(40, by="signed"))


def test_a_file_of_mib_may_say_of_a_node_only_whether_it_is_kept(tmp_path: Path) -> None:
    by_token().to_mib(tmp_path / "graph.json")
    graph = read(tmp_path / "graph.json")
    graph["nodes"] = {name: name != "m0" for name in graph["nodes"]}
    (tmp_path / "old.json").write_text(json.dumps(graph), encoding="utf-8")
    found = lxt_fx.read_mib_circuit(tmp_path / "old.json")
    assert "mlp.0.output" not in found and "mlp.1.output" in found


def test_parallel_layers_are_said_to_mib(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    model = lxt_fx.transform(GPTNeoXForCausalLM(config).eval(), rules="gradient")
    lxt_fx.circuit_scores(model, *ids(), TARGET).to_mib(tmp_path / "graph.json")
    assert read(tmp_path / "graph.json")["cfg"]["parallel_attn_mlp"] is True


def test_shared_readers_are_no_graph_of_mib(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"it lacks .*<k>.*per_head=True"):
        scored("llama").to_mib(tmp_path / "graph.json")


@pytest.mark.parametrize(
    "change, why",
    [
        (lambda graph: graph["edges"].update({"m0->a1.h0": {"score": 0.0}}), "is no edge of MIB"),
        (lambda graph: graph["edges"].update({"m0->m1": {"score": float("nan")}}), "no finite number"),
        (lambda graph: graph["edges"].update({"m0->m1": {"in_graph": True}}), "has no 'score'"),
        (lambda graph: graph["nodes"]["m0"].update(neurons=[True]), "keeps single neurons"),
        (lambda graph: graph["nodes"].update(m0=3), "must be true or false"),
        (lambda graph: graph.pop("nodes"), "has no 'nodes'"),
    ],
)
def test_a_file_that_is_none_of_mib_is_refused(tmp_path: Path, change: Any, why: str) -> None:
    by_token().to_mib(tmp_path / "graph.json")
    graph = read(tmp_path / "graph.json")
    change(graph)
    (tmp_path / "wrong.json").write_text(json.dumps(graph), encoding="utf-8")
    with pytest.raises(InputError, match=why):
        lxt_fx.read_mib_circuit(tmp_path / "wrong.json")


# circuit-tracer and Neuronpedia


def test_a_file_of_circuit_tracer_has_the_links_between_parts_at_tokens(tmp_path: Path) -> None:
    found = by_token()
    found.to_circuit_tracer(tmp_path / "graph.json", pair=1, slug="mine", size=1.0)
    graph = read(tmp_path / "graph.json")
    jsonschema.validate(graph, GRAPH)
    nodes = {node["node_id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) and len({node["jsNodeId"] for node in graph["nodes"]}) > 7
    assert all({link["source"], link["target"]} <= nodes.keys() for link in graph["links"])
    assert len({(link["source"], link["target"]) for link in graph["links"]}) == len(graph["links"])
    tokens = ids()[0]["input_ids"][1].tolist()
    assert [f"E_{token}_{at}" in nodes for at, token in enumerate(tokens)] == [True] * 7
    assert graph["metadata"]["slug"] == "mine" and len(graph["metadata"]["prompt_tokens"]) == 7
    assert sum(link["weight"] for link in graph["links"]) == pytest.approx(float(found.edges[1].sum()), abs=1e-10)
    weight = {(link["source"], link["target"]): link["weight"] for link in graph["links"]}
    writer = found.writers.index("embedding")
    parts = [found.readers.index(f"attention.0.{kind}:3") for kind in ("queries", "keys", "values")]
    expected = found.by_token[1, 3, 3, writer, parts].sum()
    assert weight[f"E_{tokens[3]}_3", "0_3_3"] == pytest.approx(float(expected), abs=1e-12)
    (logits,) = (node for node in graph["nodes"] if node["feature_type"] == "logit")
    assert logits["ctx_idx"] == 6 and logits["layer"] == "3" and "(p=" in logits["clerp"]
    kinds = {node["node_id"]: node["feature_type"] for node in graph["nodes"]}
    assert kinds["1_4_6"] == "mlp" and kinds["1_3_6"] == "attention head"


def test_pins_and_names_of_nodes_stand_in_the_file(tmp_path: Path) -> None:
    by_token().to_circuit_tracer(
        tmp_path / "graph.json", size=5, pinned=["mlp.0.output@3"], names={"attention.0.heads:1@3": "mover"}
    )
    graph = read(tmp_path / "graph.json")
    jsonschema.validate(graph, GRAPH)
    assert len(graph["links"]) == 5 and graph["qParams"]["pinnedIds"] == ["0_4_3", "0_1_3"]
    assert next(node["clerp"] for node in graph["nodes"] if node["node_id"] == "0_1_3") == "mover"
    with pytest.raises(InputError, match="there is no node 'attention.0.heads:9@3'"):
        by_token().to_circuit_tracer(tmp_path / "no.json", pinned=["attention.0.heads:9@3"])


def test_a_file_of_circuit_tracer_needs_tokens(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="by_token=True"):
        scored("llama").to_circuit_tracer(tmp_path / "graph.json")
    given = [{"inputs_embeds": embeds("llama", side)} for side in (0, 1)]
    found = lxt_fx.circuit_scores(explained_of("llama"), *given, TARGET, by_token=True)
    with pytest.raises(InputError, match="embeddings were given"):
        found.to_circuit_tracer(tmp_path / "graph.json")


# networkx


def test_graphml_has_the_circuit_with_typed_attributes(tmp_path: Path) -> None:
    found = scored("llama")
    found.to_graphml(tmp_path / "circuit.graphml", 0.3)
    back, circuit = nx.read_graphml(tmp_path / "circuit.graphml"), found.circuit(0.3)
    assert set(back.nodes) == set(circuit.nodes) and set(back.edges) == set(circuit.edges)
    for writer, reader, score in circuit.edges(data="score"):
        assert back.edges[writer, reader].get("score") == score
    head = next(name for name in back if name.startswith("attention.1.heads:"))
    expected = {"kind": "head", "layer": 1, "unit": int(head[-1]), "reads": False, "score": float(found.node(head).mean())}
    assert back.nodes[head] == expected
    assert back.nodes["logits"] == {"kind": "logits", "reads": True} and back.graph["per_head"] is False


@pytest.mark.parametrize(
    "name, expected",
    [
        ("attention.3.heads:5", ("head", 3, 5, "", "3.5")),
        ("attention.3.keys:5", ("head", 3, 5, "k", "3.5")),
        ("mlp.12.input", ("mlp", 12, None, "", "m12")),
        ("embedding", ("embedding", None, None, "", "embedding")),
        ("residual.1.features:17", ("features", 1, 17, "", "f17")),
        ("mixer.2.output", ("other", 2, None, "", "2")),
    ],
)
def test_a_name_says_which_part_it_is(name: str, expected: tuple[Any, ...]) -> None:
    found = part_named(name)
    assert (found.kind, found.layer, found.unit, found.branch, found.short) == expected


# the page


def edges_on(circuit: Any) -> list[tuple[str, tuple[str, ...], str]]:
    """Writer, the parts that read it, and by what, of each edge on a page."""
    ids = [node["id"] for node in circuit["nodes"]]
    each = zip(circuit["source"], circuit["targets"], circuit["through"], strict=True)
    return [(ids[source], tuple(ids[target] for target in targets), by) for source, targets, by in each]


def test_a_page_has_the_edges_of_each_pair_by_token_the_strongest_first() -> None:
    found = by_token()
    pages = list(circuit_data(found))
    assert [page["title"] for page in pages] == [f"circuit of 3 minus 4, pair {pair}" for pair in range(3)]
    circuit = pages[1]["circuit"]
    links = found.links(10_000, pair=1)
    made = dict(found.feeds) | {"logits": "logits"}
    expected = [
        (f"{writer}@{at}", (f"{made[reader]}@{to}",), part_named(reader).branch) for writer, at, reader, to, _ in links
    ]
    assert edges_on(circuit) == expected and circuit["total"] == len(links)
    close(unpacked(circuit["weights"]), torch.tensor([link[4] for link in links], dtype=torch.float64), 1e-6)
    assert circuit["columns"] == list(found.facts.texts[1].clean) and circuit["instead"] != circuit["columns"]
    assert circuit["rows"] == ["embedding", "0", "1", "logits"]
    where = {node["id"]: (node["row"], node["column"], node["short"]) for node in circuit["nodes"]}
    assert where["attention.1.heads:2@6"] == (2, 6, "1.2") and where["embedding@3"] == (0, 3, "embedding")
    assert where["mlp.0.output@6"] == (1, 6, "m0") and where["logits@6"] == (3, 6, "logits")


def test_a_page_without_tokens_has_the_mean_over_pairs_by_part() -> None:
    found = scored("llama")
    (page,) = circuit_data(found)
    circuit, (writer, _, score) = page["circuit"], found.top(1)[0]
    assert (circuit["by"], circuit["columns"][-2:]) == ("part", ["head 3", "MLP"]) and "3 pairs" in page["title"]
    assert edges_on(circuit)[0][0] == writer and float(unpacked(circuit["weights"])[0]) == pytest.approx(score, rel=1e-6)
    shared = next(edge for edge in edges_on(circuit) if edge[2] == "k")
    assert len(shared[1]) == 2  # heads that share keys
    assert circuit["total"] == int((found.edges.mean(0) != 0).sum())


def test_a_page_has_the_strongest_edges_only_and_says_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lxt_fx.explorer.circuit_data.MOST_EDGES", 7)
    circuit = next(circuit_data(by_token()))["circuit"]
    assert len(circuit["source"]) == 7 and circuit["total"] == len(by_token().links(10_000))
    assert len(circuit["nodes"]) <= 14


def test_scores_are_written_as_a_page(tmp_path: Path) -> None:
    scored("llama").to_html(tmp_path / "circuit.html")
    page = (tmp_path / "circuit.html").read_text(encoding="utf-8")
    assert '"kind":"circuit"' in page and "CircuitScores(3 pairs" in page


def unpacked(packed: Any) -> Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(packed["data"])), dtype=torch.float32).double()
