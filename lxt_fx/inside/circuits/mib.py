"""Circuits as files of MIB (Mueller et al. 2025), whose format is that of EAP-IG (Hanna et al. 2024).

A file has `cfg` (`n_layers`, `n_heads`, `parallel_attn_mlp`, `d_model`), `nodes` (`input`, `a0.h1`, `m0`, `logits`) and
`edges` (`input->a0.h1<q>`, `a0.h1->m0`, `m0->logits`). A head reads by `<q>`, `<k>` and `<v>`, each head of queries for
itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import networkx as nx

from lxt_fx.base.errors import InputError
from lxt_fx.base.saved_json import Saved, read_json
from lxt_fx.inside.circuits.circuit import By, checked_by, count_of, edges_of, made_circuit
from lxt_fx.inside.circuits.edge_scores import EdgeScores
from lxt_fx.inside.circuits.network import EMBEDDING, LOGITS
from lxt_fx.inside.circuits.part_names import BRANCHES, layers_and_heads, part_named

FUNCTION = "read_mib_circuit"

_THEIRS = re.compile(r"a(?P<layer>\d+)\.h(?P<head>\d+)(?:<(?P<reads>[qkv])>)?|m(?P<mlp>\d+)|input|logits")


def mib_name(name: str) -> str | None:
    """The name of a writer or reader in MIB; None for what it has not: features of dictionaries, other mixers."""
    part = part_named(name)
    if part.kind == "head":
        return f"a{part.layer}.h{part.unit}" + (f"<{part.branch}>" if part.branch else "")
    return {"embedding": "input", "logits": LOGITS, "mlp": f"m{part.layer}"}.get(part.kind)


def our_name(name: str, reads: bool) -> str | None:
    """The name of a writer, or of what `reads`, that MIB calls so; None for what is neither."""
    found = _THEIRS.fullmatch(name)
    if found is None or name == ("input" if reads else LOGITS):
        return None
    if name in ("input", LOGITS):
        return EMBEDDING if name == "input" else LOGITS
    if found["mlp"] is not None:
        return f"mlp.{found['mlp']}.{'input' if reads else 'output'}"
    if (found["reads"] is not None) != reads:
        return None
    kind = {short: word for word, short in BRANCHES.items()}.get(found["reads"], "heads")
    return f"attention.{found['layer']}.{kind}:{found['head']}"


def mib_graph(scores: EdgeScores, circuit: nx.DiGraph) -> dict[str, Any]:
    """The file of scores, in the mean over pairs, with a circuit of them. Raises InputError for a network that MIB's graphs
    cannot have: other parts than heads and MLPs, layers that differ, keys that heads share as one reader."""
    writers, readers = ([_named(name) for name in names] for names in (scores.writers, scores.readers))
    mean = scores.edges.mean(0)
    found = {
        f"{writers[writer]}->{readers[reader]}": float(mean[writer, reader])
        for writer, reader in scores.is_edge.nonzero().tolist()
    }
    config = _config(scores)
    if found.keys() != set(expected_edges(config)):
        raise InputError(
            "to_mib: MIB's graphs have the same heads and one MLP in each layer, each head with its own <q>, <k> and <v>, "
            f"and this network has not: {_differing(found, config)}"
            + ("" if scores.facts.per_head else "; call lxt_fx.circuit_scores(..., per_head=True)")
        )
    kept = {f"{_named(writer)}->{_named(reader)}" for writer, reader in edges_of(circuit)}
    nodes = scores.nodes.mean(0).tolist()
    used = {_named(name) for edge in edges_of(circuit) for name in edge}
    by_name = {
        name: {"in_graph": name == "input" or name in used, "score": score}
        for name, score in zip(writers, nodes, strict=True)
    }
    return {
        "cfg": config,
        "nodes": {**by_name, LOGITS: {"in_graph": True}},
        "edges": {name: {"score": score, "in_graph": name in kept} for name, score in found.items()},
    }


def expected_edges(config: Mapping[str, Any]) -> Iterator[str]:
    """The names of all edges of a graph with this `cfg`."""
    before = ["input"]
    for layer in range(config["n_layers"]):
        heads = [f"a{layer}.h{head}" for head in range(config["n_heads"])]
        yield from (f"{one}->{head}<{short}>" for one in before for head in heads for short in "qkv")
        seen = before if config["parallel_attn_mlp"] else [*before, *heads]
        yield from (f"{one}->m{layer}" for one in seen)
        before = [*before, *heads, f"m{layer}"]
    yield from (f"{one}->{LOGITS}" for one in before)


def _named(name: str) -> str:
    found = mib_name(name)
    if found is None:
        raise InputError(f"to_mib: MIB has names for heads, MLPs, the embedding and the logits, and none for {name}")
    return found


def _config(scores: EdgeScores) -> dict[str, Any]:
    """The `cfg` that fits best; whether it fits is checked by the edges."""
    writers, readers = scores.writers, scores.readers
    layers, heads = layers_and_heads(writers)
    first, mlp = "attention.0.heads:0", "mlp.0.input"
    known = first in writers and mlp in readers
    return {
        "n_layers": layers,
        "n_heads": heads,
        "parallel_attn_mlp": known and not bool(scores.is_edge[writers.index(first), readers.index(mlp)]),
        "d_model": scores.facts.hidden,
    }


def _differing(found: Mapping[str, float], config: Mapping[str, Any]) -> str:
    expected = set(expected_edges(config))
    more, less = sorted(found.keys() - expected), sorted(expected - found.keys())
    said = [f"it has {more[0]} and {len(more) - 1} more such edges"] if more else []
    said += [f"it lacks {less[0]} and {len(less) - 1} more"] if less else []
    return ", ".join(said)


def read_mib_circuit(path: str | Path, size: int | float | None = None, by: By = "absolute") -> nx.DiGraph:
    """The circuit in a JSON file of MIB or of EAP-IG, as `circuit_faithfulness` takes it.

        graph = lxt_fx.read_mib_circuit("ioi_qwen.json")
        lxt_fx.circuit_faithfulness(model, clean, corrupted, target, graph, processor=tokenizer).faithfulness

    Its edges are those that are `in_graph`, with both of their nodes; with `size` instead the ones with the largest scores,
    so many or this share of all, as `CircuitScores.circuit` takes them `by` size. Edges that lie on no path from the
    embedding to the logits are left out. Each head of queries has readers of its own (`per_head`). The files are those that
    EAP-IG wrote in 2024 and 2025 (`in_graph` of a node as a bool or in an object).

    Raises InputError for a file that is none of them, for one that keeps single neurons, and for a size that there is not.
    """
    checked_by(by, FUNCTION)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{FUNCTION}: {path} cannot be read: {error}") from error
    saved = read_json(text, f"{FUNCTION}: {Path(path).name}")
    kept = _kept_nodes(saved.item("nodes"))
    edges = list(_edges(saved.item("edges")))
    feeds = sorted(feed for reader in {reader for _, reader, *_ in edges} for feed in _made(reader))
    if size is None:
        chosen = [edge[:3] for edge in edges if edge[3] and {_node(edge[0]), _node(edge[1])} <= kept]
    else:
        ranked = sorted(edges, key=lambda edge: -(abs(edge[2]) if by == "absolute" else edge[2]))
        chosen = [edge[:3] for edge in ranked[: count_of(size, len(edges), FUNCTION)]]
    return made_circuit(chosen, feeds, per_head=True)


def _kept_nodes(nodes: Saved) -> set[str]:
    kept = {LOGITS}
    for name, node in nodes.entries().items():
        if isinstance(node.value, dict) and node.maybe("neurons") is not None:
            node.fail("keeps single neurons, and circuits here are of edges; write the graph without neurons")
        is_kept = node.item("in_graph") if isinstance(node.value, dict) else node
        kept |= {name} if is_kept.flag() else set()
    return kept


def _edges(edges: Saved) -> Iterator[tuple[str, str, float, bool]]:
    """Writer, reader, score and whether it is in the circuit, of each edge."""
    if not isinstance(edges.value, dict):
        edges.fail("must be an object of edges by name")
    for name, value in edges.value.items():  # more than other files may have: those of an 8B model are 1.6 million
        edge = Saved(value, edges.source, edges, name)
        parent, arrow, child = name.partition("->")
        writer, reader = our_name(parent, reads=False), our_name(child, reads=True)
        if not arrow or writer is None or reader is None:
            edge.fail('is no edge of MIB; these are called "input->a0.h1<q>", "a0.h1->m0" or "m0->logits"')
        score, kept = edge.item("score"), edge.maybe("in_graph")
        if not math.isfinite(score.number()):
            score.fail(f"is {score.value}, which is no finite number")
        yield writer, reader, score.number(), kept is not None and kept.flag()


def _made(reader: str) -> Iterator[tuple[str, str]]:
    """What is computed of a reader."""
    part = part_named(reader)
    if part.kind != "logits":
        yield reader, f"mlp.{part.layer}.output" if part.kind == "mlp" else f"attention.{part.layer}.heads:{part.unit}"


def _node(name: str) -> str:
    """The node of MIB that a writer or reader belongs to."""
    return (mib_name(name) or "").partition("<")[0]
