"""Scores of the edges, nodes and neurons of a network, for pairs of inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import torch
from torch import Tensor
from torch.nn.functional import pad

from lxt_fx.attribution.places import nearest
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.frames import pandas_for
from lxt_fx.base.json_file import write_json
from lxt_fx.base.public_door import public
from lxt_fx.inside.circuits.circuit import SIZES, By, checked_by, count_of, largest, made_circuit
from lxt_fx.inside.circuits.circuit_tracer import circuit_tracer_graph
from lxt_fx.inside.circuits.facts import ScoresFacts
from lxt_fx.inside.circuits.graphml import with_attributes
from lxt_fx.inside.circuits.links import Link, strongest_links
from lxt_fx.inside.circuits.mib import mib_graph
from lxt_fx.inside.circuits.network import index_of
from lxt_fx.views.listed import Listed

if TYPE_CHECKING:
    from pandas import DataFrame
    from rich.console import RenderableType

SHOWN = 10
"""So many edges are printed."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CircuitScores(Listed):
    """Scores on the CPU, at least float32, with an axis of pairs first. Each says how much the explained number rises, to
    first order, when the corrupted value gives way to the clean one.

    `edges` [pairs, writers, readers] are those from `writers` to `readers`, whose names are standard places with the head:
    `attention.3.heads:5`, `mlp.3.output`, `embedding`; `attention.3.queries:5`, `mlp.3.input`, `logits`. `is_edge`
    [writers, readers] says which pairs are an edge; the scores of the others are 0. `nodes` [pairs, writers] are those of
    the writers themselves. `neurons` has [pairs, neurons] for each place `mlp.i.neurons`. `clean` and `corrupted` [pairs]
    are the explained numbers of both runs. `feeds` are the pairs of a reader and the writer that is computed of it.
    `facts` say what the scores were found on. `by_token` [pairs, tokens, tokens, writers, readers], if it was asked for,
    has the scores by where an edge is written and read, and by where what is made of it is written; they add up to `edges`.
    """

    edges: Tensor
    nodes: Tensor
    neurons: Mapping[str, Tensor]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    is_edge: Tensor
    feeds: tuple[tuple[str, str], ...]
    clean: Tensor
    corrupted: Tensor
    said: str
    facts: ScoresFacts
    by_token: Tensor | None = None

    def edge(self, writer: str, reader: str) -> Tensor:
        """The score of one edge, [pairs]. Raises UnknownNameError for names that there are not, and InputError where the
        reader does not read what the writer wrote."""
        at = _index(self.writers, writer), _index(self.readers, reader)
        if not self.is_edge[at]:
            raise InputError(f"circuit_scores: {reader} is computed before {writer} writes, so there is no such edge")
        return self.edges[:, at[0], at[1]]

    def node(self, writer: str) -> Tensor:
        """The score of one writer, [pairs]. Raises UnknownNameError for a name that there is not."""
        return self.nodes[:, _index(self.writers, writer)]

    def top(self, count: int = SHOWN, by: By = "absolute") -> list[tuple[str, str, float]]:
        """The edges with the largest scores in the mean over pairs, as (writer, reader, score)."""
        checked_by(by, "top")
        mean = self.edges.mean(0)
        found = largest(mean, self.is_edge, count_of(count, int(self.is_edge.sum()), "top"), by)
        return [(self.writers[writer], self.readers[reader], float(mean[writer, reader])) for writer, reader in found]

    def circuit(self, size: int | float, by: By = "absolute") -> nx.DiGraph:
        """The circuit of the edges with the largest scores in the mean over pairs: `size` of them, or this share of all,
        less those that lie on no path from the embedding to the logits.

        Its nodes are the names of writers and readers. Each edge of the circuit has its `score`; those from a reader to
        what is computed of it have none. `by="absolute"` takes the edges that matter in either way (for CMD), `"signed"`
        those that speak for the answer (for CPR). Raises InputError for a size that there is not.
        """
        checked_by(by, "circuit")
        count = count_of(size, int(self.is_edge.sum()), "circuit")
        return made_circuit(self.top(count, by), self.feeds, self.facts.per_head)

    def circuits(self, sizes: Sequence[int | float] = SIZES, by: By = "absolute") -> dict[float, nx.DiGraph]:
        """The circuits of several sizes, by the share of all edges: by default those of MIB, 0.1 % to 100 %."""
        total = int(self.is_edge.sum())
        return {size if isinstance(size, float) else size / total: self.circuit(size, by) for size in sizes}

    def links(self, count: int = SHOWN, pair: int = 0, by: By = "absolute") -> list[Link]:
        """The edges by token with the largest scores for one pair, as (writer, token, reader, token, score): the token
        that both stand at, and the one that what is made of the reader is written at. Raises InputError for scores that
        were not kept by token (`circuit_scores(..., by_token=True)`), and for a pair that there is not."""
        checked_by(by, "links")
        return strongest_links(self, pair, count, by)

    def to_html(self, path: str | Path) -> None:
        """Writes one self-contained page (`lxt_fx.explore`) with the circuit: the strongest edges as a picture of layers
        and tokens, or of layers and heads for scores that are sums over tokens."""
        public("explore")(self, path=path)

    def to_circuit_tracer(
        self,
        path: str | Path,
        *,
        pair: int = 0,
        size: int | float = 2000,
        slug: str = "circuit",
        pinned: Iterable[str] = (),
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Writes JSON that the viewer of circuit-tracer shows, and Neuronpedia takes as a graph: parts at tokens, and the
        `size` strongest links between them, so many or this share of those that are not 0. `pinned` nodes and the `names`
        of nodes are kept, both by `part@token`, such as `attention.0.heads:1@3`.

        Raises InputError for scores that were not kept by token, for features of dictionaries, for embeddings in place of
        tokens, and for a pair or a node that there is not.
        """
        write_json(circuit_tracer_graph(self, pair, size, slug, tuple(pinned), names or {}), path)

    def to_mib(self, path: str | Path, size: int | float = 1.0, by: By = "absolute") -> None:
        """Writes JSON of MIB's circuit track and of EAP-IG: the mean scores of all edges and nodes, and which of them the
        circuit of this `size` keeps. `lxt_fx.read_mib_circuit` reads such files.

        Raises InputError for a network that MIB's graphs cannot have, and where heads that share keys and values share a
        reader: MIB has one for each head, as `circuit_scores(..., per_head=True)` finds them.
        """
        write_json(mib_graph(self, self.circuit(size, by)), path)

    def to_graphml(self, path: str | Path, size: int | float, by: By = "absolute") -> None:
        """Writes the circuit of this size as GraphML, which Gephi, yEd and networkx open: nodes with `kind`, `layer`,
        `unit`, `branch`, `reads` and (of writers) `score`, edges with `score`."""
        nx.write_graphml(with_attributes(self.circuit(size, by), self), path)

    def to_dataframe(self) -> DataFrame:
        """A line for each edge and pair: `pair`, `writer`, `reader`, `score`. Raises InputError without pandas."""
        pandas = pandas_for()
        where = self.is_edge.nonzero().tolist()
        parts = [
            pandas.DataFrame(
                {
                    "pair": pair,
                    "writer": [self.writers[writer] for writer, _ in where],
                    "reader": [self.readers[reader] for _, reader in where],
                    "score": edges[self.is_edge].tolist(),
                }
            )
            for pair, edges in enumerate(self.edges)
        ]
        found: DataFrame = pandas.concat(parts, ignore_index=True)
        return found

    def __repr__(self) -> str:
        return f"CircuitScores({len(self.edges)} pairs, {int(self.is_edge.sum())} edges, {self.said})"

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table("writer", "reader", "score")
        table.columns[2].justify = "right"
        for writer, reader, score in self.top(min(SHOWN, int(self.is_edge.sum()))):
            table.add_row(Text(writer), Text(reader), f"{score:+.4f}")
        means = f"clean {float(self.clean.mean()):.4g}, corrupted {float(self.corrupted.mean()):.4g}"
        return Group(Text(f"{self!r}: {means}"), table)


def joined(found: Sequence[CircuitScores]) -> CircuitScores:
    """The scores of several batches of pairs of one network, one after another."""
    first = found[0]
    return replace(
        first,
        edges=torch.cat([one.edges for one in found]),
        nodes=torch.cat([one.nodes for one in found]),
        neurons={name: torch.cat([one.neurons[name] for one in found]) for name in first.neurons},
        clean=torch.cat([one.clean for one in found]),
        corrupted=torch.cat([one.corrupted for one in found]),
        facts=replace(first.facts, texts=tuple(text for one in found for text in one.facts.texts)),
        by_token=_joined_by_token([one.by_token for one in found if one.by_token is not None]),
    )


def _joined_by_token(found: Sequence[Tensor]) -> Tensor | None:
    """The scores by token of several batches; behind the tokens of a shorter one stand zeros."""
    if not found:
        return None
    longest = max(each.shape[1] for each in found)
    more = (longest - each.shape[1] for each in found)
    return torch.cat([pad(each, (0, 0, 0, 0, 0, less, 0, less)) for each, less in zip(found, more, strict=True)])


def _index(names: Sequence[str], name: str) -> int:
    index = index_of(names)
    if name not in index:
        raise UnknownNameError(f"circuit_scores: there is no {name!r}; {nearest(name, names)}")
    return index[name]
