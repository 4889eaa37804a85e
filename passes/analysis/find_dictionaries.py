"""Analysis: the dictionaries that were spliced into a graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Graph, Node

from lxt_fx.base.nodes import module_path
from lxt_fx.ops.sources import reconstruction_error

ENCODER, DECODER = "encoder", "decoder"
"""The modules of a dictionary that make the features, and what is reconstructed from them."""


@dataclass(frozen=True, slots=True)
class InsertedDictionary:
    """One dictionary in a canonical graph: `written` is the value h that it takes the place of, `features` are f, `error`
    is e, and `result`, which the readers of h read, is sum_k f_k d_k + b + e. `path` is that of its module."""

    path: str
    written: Node
    features: Node
    error: Node
    result: Node


def find_dictionaries(graph: Graph) -> tuple[InsertedDictionary, ...]:
    """Analysis: the dictionaries of a canonical graph, in the order of the values that they take the place of. So one that
    explains the features of another, or stands behind it, comes after it."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    return tuple(sorted(_found(graph), key=lambda one: order[one.written]))


def _found(graph: Graph) -> Iterator[InsertedDictionary]:
    last = {module_path(node): node for node in graph.nodes if node.op == "call_function"}
    for error in graph.nodes:
        if error.target is reconstruction_error:
            path, (written, _) = module_path(error), error.all_input_nodes
            (result,) = error.users
            yield InsertedDictionary(path, written, last[f"{path}.{ENCODER}"], error, result)
