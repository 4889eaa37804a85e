"""Transform: linear maps of one value become one op, whose backward accumulates inside its matrix products, and skips
positions without a gradient where there may be many."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Set
from typing import Any

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, fixed_size, module_path, shape, value
from lxt_fx.ops import active, fused, gradient_product, products
from lxt_fx.passes.fuse.unmixed import unmixed

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


def fuse_single_linears(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: a large `lxt_fx.linear` of a carrying value becomes `lxt_fx.linears` where `gradient_product` shortens its
    backward: by a faster kernel, or as few positions have a gradient. Maps of the latter are marked as `sparse`."""
    sparse, edits = unmixed(graph, carrying), 0
    for node in list(graph.nodes):
        if node.target in (fused.linears, active.linear_active) and node in sparse:
            node.kwargs = {**node.kwargs, "sparse": True}
        elif node.target is products.linear and node in carrying and node.args[0] in carrying and _gains(node, sparse):
            edits += _together(graph, [node], [1.0], {"sparse": True} if node in sparse else {})
    return edits


def _gains(linear: Node, sparse: Set[Node]) -> bool:
    """Whether a backward in Python is paid for."""
    weight = arguments(linear)["weight"]
    sizes = [fixed_size(size) for size in shape(weight) or (None,)]
    large = None not in sizes and math.prod(size or 0 for size in sizes) >= gradient_product.WORTH_A_FUNCTION
    return large and (linear in sparse or gradient_product.takes_onednn(value(weight)))


def _is_known(node: Node, first: Node, order: Mapping[Node, int]) -> bool:
    """Whether weight and bias stand before the first map of the group."""
    return all(order[operand] < order[first] for operand in node.all_input_nodes)


def _fuse(graph: Graph, maps: list[Node], shares: Mapping[Node, float]) -> int:
    factors = [shares.get(node, 1.0) for node in maps]
    if len(maps) == 1 and factors == [1.0]:
        return 0
    return _together(graph, maps, factors, {})


def _together(graph: Graph, maps: list[Node], factors: list[float], settings: dict[str, Any]) -> int:
    given = [arguments(node) for node in maps]
    weights, biases = ([each.get(name) for each in given] for name in ("weight", "bias"))
    with graph.inserting_before(maps[0]):
        together = graph.call_function(fused.linears, (maps[0].args[0], weights, biases, factors), settings)
    together.meta = {name: found for name, found in maps[0].meta.items() if name != "val"}
    together.meta["val"] = tuple(node.meta.get("val") for node in maps)
    for index, node in enumerate(maps):
        node.target, node.args, node.kwargs = operator.getitem, (together, index), {}
    return len(maps)
