"""The values of a graph on given inputs, node by node: whole, or of some nodes with one value replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from lxt_fx.base.nodes import arguments
from lxt_fx.base.streamed_weight import loaded
from lxt_fx.base.torch_internals import io_of, pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.inside.circuits.held_norm import held_norm
from lxt_fx.ops.norms import LAST_DIMS


class GraphRun:
    """One forward of a graph without gradients. `values` are those of the nodes that ran. `graph` is one of
    those of the `module`, which has its tensors; `inputs` are the values of its placeholders by name."""

    def __init__(self, module: Explained, graph: Graph, inputs: Mapping[str, Any]) -> None:
        self.module, self.graph, self.inputs = module, graph, inputs
        self.values: dict[Node, Any] = {}

    def compute(self, node: Node, instead: Mapping[Node, Any] | None = None) -> Any:
        """The value of a node from those of the nodes that it reads; those of `instead` take the place of what was."""
        if node.op == "placeholder":
            value = self.inputs[str(node.target)]
            return value.detach() if isinstance(value, Tensor) else value
        if node.op == "get_attr":
            return loaded(attrgetter(str(node.target))(self.module))
        known = instead or {}

        def found(operand: Node) -> Any:
            return known[operand] if operand in known else self.values[operand]

        assert node.op == "call_function" and callable(node.target), node.op
        return node.target(*map_arg(node.args, found), **map_arg(node.kwargs, found))

    @torch.no_grad()
    def constant(self, node: Node) -> Any:
        """The value of a node that depends on no input, which may stand behind those that ran so far."""
        if node not in self.values:
            for each in node.all_input_nodes:
                self.constant(each)
            self.values[node] = self.compute(node)
        return self.values[node]

    @torch.no_grad()
    def all(self, changes: Mapping[Node, Callable[[Tensor], Tensor]] | None = None) -> GraphRun:
        """Runs every node. What reads a node of `changes` reads what that makes of its value."""
        known = changes or {}
        for node in self.graph.nodes:
            if node.op != "output":
                found = self.compute(node)
                self.values[node] = known[node](found) if node in known else found
        return self

    def through(self, nodes: Iterable[Node], source: Node, value: Tensor, held: Set[Node] = frozenset()) -> Tensor:
        """The value of the last of these nodes, which lead there from `source`, if that had this value. Those that are
        `held` stay as they were; of norms that are one op, their statistics do."""
        instead: dict[Node, Any] = {source: value}
        last = source
        for node in nodes:
            if node in held and node.target in LAST_DIMS:
                given = map_arg(arguments(node), self.values.__getitem__)
                instead[node] = held_norm(node.target, given, instead[node.all_input_nodes[0]])
                last = node
            elif node not in held:
                instead[node] = self.compute(node, instead)
                last = node
        found: Tensor = instead[last]
        return found

    def output(self) -> Any:
        """What the graph returns, as the model returns it."""
        flat = pytree.tree_leaves(self.graph.output_node().args[0])
        found = [self.values[each] if isinstance(each, Node) else each for each in flat]
        return pytree.tree_unflatten(found, io_of(self.module.graph).out_spec)
