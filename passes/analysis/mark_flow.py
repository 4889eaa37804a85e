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
from lxt_fx.ops.aten_kinds import SHAPE_READERS, STEPS

NO_GRADIENT = SHAPE_READERS | STEPS | {aten.detach.default, products.hold}
"""Ops whose float output has no gradient to any operand."""

SHAPE_ONLY: dict[Any, str] = {
    aten.type_as.default: "other",
    aten.expand_as.default: "other",
    aten.view_as.default: "other",
    aten.to.other: "other",
}

HeldOperand = tuple[Node, str]
"""A node and the schema name of an operand that it holds constant."""


@dataclass(frozen=True, slots=True)
class Flow:
    """`carrying`: values that depend on a leaf and reach the output, both by a differentiable path. `held`: operands that
    are held constant, so that no path goes through them."""

    carrying: frozenset[Node]
    held: frozenset[HeldOperand]
    leaves: tuple[Node, ...]
    _operands: dict[Node, list[Operand]] = field(default_factory=dict, compare=False, repr=False)

    def carrying_operands(self, node: Node) -> list[Operand]:
        """The operands that receive relevance from the node, in order. The answer is cached: after an edit of the graph,
        mark the flow again."""
        if node not in self._operands:
            self._operands[node] = [
                operand
                for operand in differentiable_operands(node)
                if operand.node in self.carrying and (node, operand.name) not in self.held
            ]
        return self._operands[node]


def differentiable_operands(node: Node) -> list[Operand]:
    """The operands that can receive a gradient from the node."""
    if node.op == "call_function" and (node.target in NO_GRADIENT or not is_float(node)):
        return []
    shape_only = SHAPE_ONLY.get(node.target)
    return [operand for operand in operands(node) if operand.name != shape_only and is_float(operand.node)]


def differentiable_graph(gm: GraphModule, held: frozenset[HeldOperand] = frozenset()) -> nx.DiGraph:
    """The edges producer -> consumer along which a gradient flows."""
    graph: nx.DiGraph = nx.DiGraph()
    for node in gm.graph.nodes:
        graph.add_node(node)
        for operand in differentiable_operands(node):
            if (node, operand.name) not in held:
                graph.add_edge(operand.node, node)
    return graph


def mark_flow(gm: GraphModule, leaves: Iterable[Node], held: frozenset[HeldOperand] = frozenset()) -> Flow:
    """Analysis: the values between the leaves and the output, along differentiable edges that are not held. One sweep
    forward and one backward suffice, since a graph lists every node after its operands."""
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
