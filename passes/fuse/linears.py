"""Transform: linear maps of one value become one op, whose backward accumulates inside its matrix products."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Set

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, module_path
from lxt_fx.ops import fused, products

_NEAR = 40
"""Maps further apart than this number of nodes belong to different layers; fused, they would hold each other's values
in memory."""


def fuse_linears(graph: Graph, carrying: Set[Node], shares: Mapping[Node, float]) -> int:
    """Transform: the `lxt_fx.linear`s that read one carrying value in one module become `lxt_fx.linears`. So does a single
    one with a share, since the matrix product of its backward takes a factor."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    groups: dict[tuple[Node, str], list[list[Node]]] = {}
    for node in list(graph.nodes):
        x = node.args[0] if node.target is products.linear else None
        if not isinstance(x, Node) or x not in carrying:
            continue
        found = groups.setdefault((x, module_path(node).rpartition(".")[0]), [[]])
        if found[-1] and not (order[node] - order[found[-1][0]] <= _NEAR and _is_known(node, found[-1][0], order)):
            found.append([])
        found[-1].append(node)
    return sum(_fuse(graph, maps, shares) for found in groups.values() for maps in found)


def _is_known(node: Node, first: Node, order: Mapping[Node, int]) -> bool:
    """Whether weight and bias stand before the first map of the group."""
    return all(order[operand] < order[first] for operand in node.all_input_nodes)


def _fuse(graph: Graph, maps: list[Node], shares: Mapping[Node, float]) -> int:
    factors = [shares.get(node, 1.0) for node in maps]
    if len(maps) == 1 and factors == [1.0]:
        return 0
    given = [arguments(node) for node in maps]
    weights, biases = ([settings.get(name) for settings in given] for name in ("weight", "bias"))
    with graph.inserting_before(maps[0]):
        together = graph.call_function(fused.linears, (maps[0].args[0], weights, biases, factors))
    together.meta = {name: found for name, found in maps[0].meta.items() if name != "val"}
    together.meta["val"] = tuple(node.meta.get("val") for node in maps)
    for index, node in enumerate(maps):
        node.target, node.args, node.kwargs = operator.getitem, (together, index), {}
    return len(maps)
