"""Analysis: which values carry relevance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import networkx as nx
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import Operand, is_float, operands
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import products

# Ops and operands that are read for shape or dtype only, and ops whose float output has no gradient to any operand.
SHAPE_READERS = frozenset(
    {
        aten.zeros_like.default,
        aten.ones_like.default,
        aten.full_like.default,
        aten.empty_like.default,
        aten.rand_like.default,
        aten.randn_like.default,
        aten.new_zeros.default,
        aten.new_ones.default,
        aten.new_full.default,
        aten.new_empty.default,
    }
)
NO_GRADIENT = SHAPE_READERS | frozenset(
    {
        aten.detach.default,
        products.hold,
        aten.sign.default,
        aten.floor.default,
        aten.ceil.default,
        aten.round.default,
        aten.trunc.default,
        aten.bernoulli.default,
        aten.div.Tensor_mode,
        aten.floor_divide.default,
        aten.heaviside.default,
    }
)
SHAPE_ONLY: dict[Any, str] = {
    aten.type_as.default: "other",
    aten.expand_as.default: "other",
    aten.view_as.default: "other",
    aten.to.other: "other",
}

Edge = tuple[Node, str]
"""A consumer and the schema name of one of its arguments."""


@dataclass(frozen=True, slots=True)
class Flow:
    """Values that depend on a leaf AND reach the output by a differentiable path, and the edges held constant."""

    carrying: frozenset[Node]
    held: frozenset[Edge]
    leaves: tuple[Node, ...]
    _operands: dict[Node, list[Operand]] = field(default_factory=dict, compare=False, repr=False)

    def carrying_operands(self, node: Node) -> list[Operand]:
        """The operands through which relevance leaves the node, in order. Each node is read once: a flow is that of a graph
        as it stands, and edits call for a new one."""
        if node not in self._operands:
            self._operands[node] = [
                operand
                for operand in differentiable_operands(node)
                if operand.node in self.carrying and (node, operand.name) not in self.held
            ]
        return self._operands[node]


def differentiable_operands(node: Node) -> list[Operand]:
    """The operands that a gradient of the node's value can reach."""
    if node.op == "call_function" and (node.target in NO_GRADIENT or not is_float(node)):
        return []
    shape_only = SHAPE_ONLY.get(node.target)
    return [operand for operand in operands(node) if operand.name != shape_only and is_float(operand.node)]


def differentiable_graph(gm: GraphModule, held: frozenset[Edge] = frozenset()) -> nx.DiGraph:
    """The edges producer -> consumer along which a gradient flows."""
    graph: nx.DiGraph = nx.DiGraph()
    for node in gm.graph.nodes:
        graph.add_node(node)
        for operand in differentiable_operands(node):
            if (node, operand.name) not in held:
                graph.add_edge(operand.node, node)
    return graph


def mark_flow(gm: GraphModule, leaves: Iterable[Node], held: frozenset[Edge] = frozenset()) -> Flow:
    """Analysis: the values between the leaves and the output, by reachability along differentiable edges not held: one
    sweep forward and one back, since a graph lists every node behind its operands."""
    leaves = tuple(leaves)
    reached: dict[Node, list[Node]] = {leaf: [] for leaf in leaves}
    for node in gm.graph.nodes:
        if reached.keys().isdisjoint(node.all_input_nodes):
            continue
        found = differentiable_operands(node)
        passing = [o.node for o in found if o.node in reached and (node, o.name) not in held]
        if passing:
            reached[node] = passing
    output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
    carrying = set(reached.get(output, ()))
    for node in reversed(gm.graph.nodes):
        if node in carrying:
            carrying.update(reached[node])
    return Flow(frozenset(carrying), held, leaves)
