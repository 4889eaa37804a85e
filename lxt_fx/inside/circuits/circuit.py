"""A circuit: the edges of a network that are kept, as a directed graph from the embedding to the logits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, get_args

import networkx as nx
import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inside.circuits.network import EMBEDDING, LOGITS

By = Literal["absolute", "signed"]

SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""The shares of all edges that MIB keeps (Mueller et al. 2025)."""


PER_HEAD = "per_head"
"""The attribute of a circuit that says whether its heads have readers of keys and values of their own."""


def made_circuit(
    edges: Iterable[tuple[str, str, float]], feeds: Iterable[tuple[str, str]], per_head: bool = False
) -> nx.DiGraph:
    """The circuit of these edges (writer, reader, score), without what lies on no path from the embedding to the logits.

    Its nodes are writers and readers, by their names. An edge from a writer to a reader has its `score`; one from a reader
    to the writer that is computed of it (queries of a head and the head) has none, and is not counted as an edge of the
    circuit. Its attribute `per_head` says how it names readers of keys and values.
    """
    graph: nx.DiGraph = nx.DiGraph(**{PER_HEAD: per_head})
    graph.add_nodes_from((EMBEDDING, LOGITS))
    for writer, reader, score in edges:
        graph.add_edge(writer, reader, score=score)
    graph.add_edges_from(feeds)
    reached = nx.descendants(graph, EMBEDDING) | {EMBEDDING}
    used = nx.ancestors(graph, LOGITS) | {LOGITS}
    graph.remove_nodes_from([node for node in graph if node not in reached & used and node not in (EMBEDDING, LOGITS)])
    return graph


def edges_of(circuit: nx.DiGraph) -> list[tuple[str, str]]:
    """The edges of a circuit from a writer to a reader."""
    return [(writer, reader) for writer, reader, score in circuit.edges(data="score") if score is not None]


def kept_edges(
    circuit: nx.DiGraph, writers: Mapping[str, int], readers: Mapping[str, int], edges: Tensor, function: str
) -> Tensor:
    """Which edges of a network a circuit keeps, [writers, readers] bool. Raises InputError for one that it has not."""
    kept = torch.zeros_like(edges)
    for writer, reader in edges_of(circuit):
        known = writer in writers and reader in readers
        if not known or not edges[writers[writer], readers[reader]]:
            raise InputError(
                f"{function}: the circuit has the edge {writer} -> {reader}, and this network has not; circuits are those "
                "that CircuitScores.circuit makes, of a model with the same layers and heads"
            )
        kept[writers[writer], readers[reader]] = True
    return kept


def largest(scores: Tensor, edges: Tensor, count: int, by: By) -> list[tuple[int, int]]:
    """The (writer, reader) of the edges with the largest scores [writers, readers], the largest first."""
    ranked = scores.abs() if by == "absolute" else scores
    where = edges.nonzero()
    order = torch.sort(ranked[edges], descending=True, stable=True).indices[:count]
    found: list[tuple[int, int]] = [(int(writer), int(reader)) for writer, reader in where[order].tolist()]
    return found


def checked_by(by: str, function: str) -> None:
    """Raises InputError for an order of edges that there is not."""
    if by not in get_args(By):
        raise InputError(f"{function}: by must be one of {', '.join(get_args(By))}, got {by!r}")


def count_of(size: int | float, edges: int, function: str) -> int:
    """A size of a circuit as a number of edges: a whole number, or a share of all. Raises InputError for neither."""
    whole = isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= edges
    share = isinstance(size, float) and 0 <= size <= 1
    if not whole and not share:
        raise InputError(
            f"{function}: a circuit has a number of edges (0 to {edges}, an int) or a share of them (0.0 to 1.0, a float), "
            f"got {size!r}"
        )
    return int(size) if whole else int(size * edges)


def area(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The integral over the sizes, by trapezoids, as MIB computes it: from the smallest size to the largest."""
    pairs = list(zip(sizes, values, strict=True))
    return sum((b - a) * (x + y) / 2 for (a, x), (b, y) in zip(pairs, pairs[1:], strict=False))
