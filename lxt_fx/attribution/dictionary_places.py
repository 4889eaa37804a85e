"""The places of dictionaries that were spliced into a model, beside those that the model has without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch.fx import Graph, Node

from lxt_fx.passes.analysis.find_dictionaries import InsertedDictionary

FOLDER = "dictionary"
"""The module that holds those of all dictionaries."""


def path_for(place: str, taken: Sequence[str]) -> str:
    """The path of the module of a new dictionary at this place, beside those of others."""
    path = first = f"{FOLDER}.{_flat(place)}"
    number = 1
    while path in taken:
        number += 1
        path = f"{first}__{number}"
    return path


def _flat(place: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in place.lstrip("%"))


def without_dictionaries(graph: Graph, found: Sequence[InsertedDictionary]) -> tuple[Graph, Mapping[Node, Node]]:
    """The graph as it would be without its dictionaries, and the node of the graph that each of its nodes stands for."""
    if not found:
        return graph, {node: node for node in graph.nodes}
    plain, copies = Graph(), dict[Node, Node]()
    plain.output(plain.graph_copy(graph, copies))
    for one in reversed(found):
        copies[one.result].replace_all_uses_with(copies[one.written])
    return plain, {copy: node for node, copy in copies.items()}


def with_dictionaries(named: Mapping[str, Node], found: Sequence[InsertedDictionary]) -> dict[str, Node]:
    """The places of a graph with dictionaries, from those that it has without. A value in whose place a dictionary stands
    is what its readers read; `residual.3` has `residual.3.features` and `residual.3.error` beside it. Places that have no
    standard name are called like the module of their dictionary; further dictionaries of one place are numbered."""
    places = dict(named)
    for one in found:
        flat, _, number = one.path.removeprefix(f"{FOLDER}.").partition("__")
        place = next((name for name in places if _flat(name) == flat), f"{FOLDER}.{flat}")
        places = {name: one.result if node is one.written else node for name, node in places.items()}
        for part, node in (("features", one.features), ("error", one.error)):
            places[f"{place}.{part}.{number}" if number else f"{place}.{part}"] = node
    return places
