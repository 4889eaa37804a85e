"""What an audit found at a place inside the model, and what the ops between this place and the output took."""

from __future__ import annotations

import networkx as nx
from torch import Tensor

from lxt_fx.attribution.places import nearest
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.ledger.books import Books

OUTPUT = "output"


def at_place(books: Books, name: str) -> Tensor:
    """The relevance that reached a place, [examples]. Raises UnknownNameError for a place that there is not."""
    node = _node(books, name)
    source = next((source for source in books.sources if source.name == node), None)
    return books.reaching[node] if source is None else source.amount


def behind_place(books: Books, name: str) -> dict[str, Tensor]:
    """What took the difference between the explained number and the relevance at a cut of the network, [examples] each:
    the leaks behind it by cause, and sources that join behind it by name. With `at_place` they add up to the value, less
    the residual.

    Raises InputError for a place that relevance can pass by, since there no such sum exists.
    """
    node, edges = _node(books, name), nx.DiGraph((edge.producer, edge.consumer) for edge in books.passing)
    before = nx.ancestors(edges, node)
    passing_by = edges.subgraph(set(edges) - {node})
    through = [source for source in books.sources if source.name in before or source.name == node]
    if any(source.name in passing_by and nx.has_path(passing_by, source.name, OUTPUT) for source in through):
        raise InputError(
            f"ledger: relevance also reaches the inputs past {name}, so it and the leaks behind it do not add up to the "
            "explained number; choose a cut of the network, such as residual.3"
        )
    found: dict[str, Tensor] = {}
    for entry in books.entries:
        if entry.place.node not in before and entry.place.node != node:
            key = str(entry.cause.value)
            found[key] = found.get(key, 0) + entry.amount
    return found | {source.name: source.amount for source in books.sources if source not in through}


def _node(books: Books, name: str) -> str:
    node = books.inside.get(name, name.removeprefix("%"))
    reached = node in books.reaching or any(source.name == node for source in books.sources)
    if not reached or (not name.startswith("%") and name not in books.inside):
        raise UnknownNameError(f"ledger: relevance reached no place called {name!r}; {nearest(name, books.inside)}")
    return node
