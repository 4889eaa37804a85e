"""A circuit as the page has it: parts of the network in layers, at tokens or by head, and the strongest edges between
them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

import torch
from torch import Tensor

from lxt_fx.explorer.plain import Payload, array, result, table
from lxt_fx.inside.circuits.links import largest_entries
from lxt_fx.inside.circuits.network import LOGITS
from lxt_fx.inside.circuits.part_names import PartName, layers_and_heads, made_of, part_named
from lxt_fx.inside.circuits.scores_result import CircuitScores

MOST_EDGES, LISTED = 4000, 20
"""The most edges of a page, the strongest ones; and how many of them are listed."""

Edge = tuple[int, int, int, int, float]
"""Tokens at which it is read and what is made of it is written (0 without tokens), indices of writer and reader, score."""


def circuit_data(found: CircuitScores) -> Iterator[Payload]:
    """One result for each pair whose scores were kept by token; else one of the mean over pairs."""
    if found.by_token is None:
        mean = found.edges.mean(0)
        yield _result(found, None, _edges(mean[None, None]), mean)
        return
    for pair, scores in enumerate(found.by_token):
        yield _result(found, pair, _edges(scores), scores)


def _edges(scores: Tensor) -> list[Edge]:
    """The strongest edges of scores [tokens, tokens, writers, readers]."""
    entries = largest_entries(scores, MOST_EDGES, "absolute")
    return [(at, to, writer, reader, float(scores[at, to, writer, reader])) for at, to, writer, reader in entries]


def _result(found: CircuitScores, pair: int | None, edges: Sequence[Edge], scores: Tensor) -> Payload:
    facts = found.facts
    text = facts.texts[pair or 0]
    circuit = _Nodes(found, by_token=pair is not None).circuit(edges)
    circuit["total"] = int((scores != 0).sum())
    if pair is not None:
        circuit |= {"columns": list(text.clean), "instead": list(text.corrupted)}
    label = text.label if pair is not None or len(facts.texts) == 1 else f"{len(facts.texts)} pairs"
    which = f", pair {pair}" if pair is not None and len(facts.texts) > 1 else ""
    sides = (("clean", found.clean), ("corrupted", found.corrupted))
    values = ", ".join(f"{(each.mean() if pair is None else each[pair]):.4g} {name}" for name, each in sides)
    explained = text.explained if pair is not None or len(facts.texts) == 1 else "the mean over pairs"
    circuit["said"] = f"{explained} ({values})"
    return result(
        "circuit", f"circuit of {label}{which}", model_class=facts.model_class,
        checkpoint=PurePath(facts.checkpoint).name or facts.checkpoint, rules=facts.rules, circuit=circuit,
        text=str(found), tables=[_table(found, text.clean if pair is not None else None, edges)],
    )  # fmt: skip


@dataclass(slots=True)
class _Nodes:
    """The nodes of a picture, by part and token."""

    found: CircuitScores
    by_token: bool
    nodes: dict[tuple[str, int], Payload] = field(default_factory=dict)
    index: dict[tuple[str, int], int] = field(default_factory=dict)
    layers: int = field(init=False)
    heads: int = field(init=False)

    def __post_init__(self) -> None:
        self.layers, self.heads = layers_and_heads(self.found.writers)

    def circuit(self, edges: Sequence[Edge]) -> Payload:
        """All of a picture but the names of its columns, if these are tokens."""
        made, found = made_of(self.found.feeds), self.found
        source, targets, through = [], list[list[int]](), []
        for at, to, writer, reader, _ in edges:
            name = found.readers[reader]
            source.append(self._node(found.writers[writer], at))
            targets.append([self._node(part, to) for part in made.get(name, (LOGITS,))])
            through.append(part_named(name).branch)
        return {
            "said": "",
            "by": "token" if self.by_token else "part",
            "columns": [*(f"head {head}" for head in range(self.heads)), "MLP"],
            "instead": None,
            "rows": self._rows(),
            "nodes": list(self.nodes.values()),
            "source": source,
            "targets": targets,
            "through": through,
            "weights": array(torch.tensor([edge[4] for edge in edges], dtype=torch.float64)),
            "total": 0,
            "state": None,
        }

    def _node(self, part: str, token: int) -> int:
        key = (part, token)
        if key not in self.nodes:
            said = part_named(part)
            self.index[key] = len(self.nodes)
            self.nodes[key] = {
                "id": f"{part}@{token}" if self.by_token else part,
                "name": _name(said, part),
                "short": said.short,
                "kind": said.kind,
                "row": self._row(said),
                "column": token if self.by_token else self._column(said),
            }
        return self.index[key]

    def _rows(self) -> list[str]:
        return ["embedding", *(str(layer) for layer in range(self.layers)), "logits"]

    def _row(self, said: PartName) -> int:
        if said.layer is not None:
            return said.layer + 1
        return 0 if said.kind == "embedding" else self.layers + 1

    def _column(self, said: PartName) -> int:
        """The column of a part; -1 for what stands in the middle."""
        if said.kind in ("embedding", "logits"):
            return -1
        return said.unit if said.kind == "head" and said.unit is not None else self.heads


def _name(said: PartName, part: str) -> str:
    """The name of a part as a person says it."""
    named = {"head": f"head {said.unit} of layer {said.layer}", "mlp": f"MLP of layer {said.layer}"}
    return named.get(said.kind, part)


def _table(found: CircuitScores, tokens: Sequence[str] | None, edges: Sequence[Edge]) -> Payload:
    rows: list[list[object]] = []
    for at, to, writer, reader, score in edges[:LISTED]:
        where = [] if tokens is None else [f"{at}: {tokens[at]}", f"{to}: {tokens[to]}"]
        rows.append([found.writers[writer], *where[:1], found.readers[reader], *where[1:], score])
    columns = ("writer", "reader", "score") if tokens is None else ("writer", "at", "reader", "written at", "score")
    return table("the strongest edges", columns, rows)
