"""The relevance flow graph: which nodes, modules and heads carried the answer, as a networkx graph."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import networkx as nx

from lxt_fx.base.errors import InputError
from lxt_fx.ledger.books import Books

TARGET = "target"
"""The node that stands for the explained number."""


def flow_graph(ledger: Books) -> nx.DiGraph:
    """The graph of the nodes that carried relevance, with edges from operands to readers. All amounts are summed over
    examples.

    A node has `relevance` (what reached it), `leak` (what it absorbed), `op`, `rule`, `module`, `layer` and `line`; an
    attention also has `heads`, the relevance of each head. An edge has the `relevance` that flowed back along it. The edges
    out of a node sum to its relevance, and the edges into it to relevance - leak. The node `target` is the explained
    number; inputs have op `placeholder`.
    """
    graph = nx.DiGraph()
    leaks: dict[str, float] = {}
    for entry in ledger.entries:
        leaks[entry.place.node] = leaks.get(entry.place.node, 0.0) + float(entry.amount.sum())
    amounts = {name: float(amount.sum()) for name, amount in ledger.reaching.items()}
    amounts |= {source.name: float(source.amount.sum()) for source in ledger.sources}
    for name, amount in amounts.items():
        place = ledger.places[name]
        facts = {"op": place.op, "rule": place.rule, "module": place.module, "layer": place.layer, "line": place.line}
        graph.add_node(name, relevance=amount, leak=leaks.get(name, 0.0), **facts)
        if name in ledger.heads:
            graph.nodes[name]["heads"] = ledger.heads[name].sum(0).tolist()
    graph.add_node(TARGET, relevance=float(ledger.value.sum()), leak=leaks.get("output", 0.0), op="output")
    for edge, passed in ledger.passing.items():
        reader = TARGET if edge.consumer == "output" else edge.consumer
        heads = ledger.heads.get(edge)
        _add_edge(graph, edge.producer, reader, float(passed.sum()), None if heads is None else heads.sum(0).tolist())
    return graph


def _add_edge(graph: nx.DiGraph, start: str, end: str, relevance: float, heads: list[float] | None = None) -> None:
    """An edge; two between the same nodes, as in x * x, are one."""
    graph.add_edge(start, end)
    facts = graph.edges[start, end]
    facts["relevance"] = facts.get("relevance", 0.0) + relevance
    if heads is not None:
        facts["heads"] = [a + b for a, b in zip(facts.get("heads", [0.0] * len(heads)), heads, strict=True)]


def prune(graph: nx.DiGraph, share: float) -> nx.DiGraph:
    """The part of the graph whose edges each carry at least `share` (0 to 1) of the explained value, by absolute relevance,
    and lead to the target by such edges.

    Raises InputError for a share that is not in [0, 1].
    """
    if not 0 <= share <= 1:
        raise InputError(f"prune: share must lie between 0 and 1, got {share}")
    least = share * abs(graph.nodes[TARGET]["relevance"])
    strong = [(start, end) for start, end, relevance in graph.edges(data="relevance") if abs(relevance) >= least]
    pruned = graph.edge_subgraph(strong)
    if TARGET not in pruned:
        return nx.DiGraph(graph.subgraph({TARGET}))
    return nx.DiGraph(pruned.subgraph(nx.ancestors(pruned, TARGET) | {TARGET}))


def by_module(graph: nx.DiGraph, *modules: str) -> nx.DiGraph:
    """The graph with one node for each module, and the edges between modules.

    `modules` are module paths with `*` for one segment (`model.layers.*.mlp`). A node belongs to the longest path that it
    lies in, else to its layer. Without `modules` every node belongs to its innermost module. `relevance` is what reached
    the module from outside, `leak` all that its nodes absorbed.
    """

    def name(node: str) -> str:
        facts = graph.nodes[node]
        if node == TARGET or facts["op"] == "placeholder":
            return node
        if not modules:
            return str(facts["module"] or "(model)")
        found = [prefix for pattern in modules for prefix in _prefixes(facts["module"], pattern)]
        return max(found, key=len, default=facts["layer"] or "(model)")

    return _merged(graph, name)


def by_layer(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph with one node for each layer (`model.layers.3`), and for the parts before and after the layers."""
    return by_module(graph, "")


def by_head(graph: nx.DiGraph) -> nx.DiGraph:
    """The graph with each attention split into one node per head (`%sdpa[3]`), each with its own edges.

    The heads of fused attentions and of `softmax @ v` are split; `relevance` is what the head's output received.
    """
    split = nx.DiGraph()
    for node, facts in graph.nodes(data=True):
        heads = facts.get("heads")
        plain = {key: value for key, value in facts.items() if key != "heads"}
        if not heads:
            split.add_node(node, **plain)
            continue
        for head, relevance in enumerate(heads):
            entering = sum(edge["heads"][head] for _, _, edge in graph.in_edges(node, data=True) if "heads" in edge)
            own = {"relevance": relevance, "leak": relevance - entering, "head": head}
            split.add_node(f"{node}[{head}]", **plain | own)
    for start, end, facts in graph.edges(data=True):
        for head_start, head_end, relevance in _head_edges(graph, start, end, facts):
            _add_edge(split, head_start, head_end, relevance)
    return split


def _head_edges(graph: nx.DiGraph, start: str, end: str, facts: dict[str, object]) -> Iterable[tuple[str, str, float]]:
    """The edge, once for each head at the end that has heads. The output of a head has relevance from one reader."""
    heads = graph.nodes[start].get("heads")
    if heads and graph.out_degree(start) == 1:
        return [(f"{start}[{head}]", end, relevance) for head, relevance in enumerate(heads)]
    if graph.nodes[end].get("heads") and isinstance(facts.get("heads"), list):
        found: list[float] = facts["heads"]  # type: ignore[assignment]
        return [(start, f"{end}[{head}]", relevance) for head, relevance in enumerate(found)]
    return [(start, end, float(facts["relevance"]))]  # type: ignore[arg-type]


def _prefixes(module: str, pattern: str) -> list[str]:
    """The module itself or a parent of it, where that matches the pattern."""
    parts, wanted = module.split("."), pattern.split(".")
    start = parts[: len(wanted)]
    fits = len(start) == len(wanted) and all(map(fnmatch.fnmatchcase, start, wanted))
    return [".".join(start)] if fits and pattern else []


def _merged(graph: nx.DiGraph, name: Callable[[str], str]) -> nx.DiGraph:
    merged = nx.DiGraph()
    for node, facts in graph.nodes(data=True):
        group = name(node)
        if group not in merged:
            merged.add_node(group, relevance=0.0, leak=0.0, nodes=0, layer=facts.get("layer", ""), op=facts["op"])
        merged.nodes[group]["leak"] += facts["leak"]
        merged.nodes[group]["nodes"] += 1
    for start, end, relevance in graph.edges(data="relevance"):
        if name(start) != name(end):
            _add_edge(merged, name(start), name(end), relevance)
    for group, facts in merged.nodes(data=True):
        leaving = sum(relevance for _, _, relevance in merged.out_edges(group, data="relevance"))
        facts["relevance"] = graph.nodes[TARGET]["relevance"] if group == TARGET else leaving
    return merged


def write_graph(graph: nx.DiGraph, path: str | Path) -> None:
    """Writes a flow graph as GraphML (`.graphml`) or as node-link JSON (`.json`), by the end of the name.

    Raises InputError for another ending.
    """
    path = Path(path)
    if path.suffix == ".graphml":
        nx.write_graphml(_flat(graph), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(nx.node_link_data(graph, edges="edges"), indent=1) + "\n", encoding="utf-8")
    else:
        raise InputError(f"write_graph: the name must end in .graphml or .json, got {path.name!r}")


def _flat(graph: nx.DiGraph) -> nx.DiGraph:
    """GraphML has no lists, so heads are written as one string."""
    flat = nx.DiGraph()
    for node, facts in graph.nodes(data=True):
        flat.add_node(node, **_plain(facts))
    for start, end, facts in graph.edges(data=True):
        flat.add_edge(start, end, **_plain(facts))
    return flat


def _plain(facts: dict[str, object]) -> dict[str, object]:
    return {k: " ".join(f"{x:.6g}" for x in v) if isinstance(v, list) else v for k, v in facts.items()}
