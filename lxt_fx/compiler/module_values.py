"""Analysis: which values enter and leave each module, and at which node of the graph the relevance of a value is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from functools import cached_property

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, shape
from lxt_fx.ops import explicit, products, selection
from lxt_fx.passes.rewrite.explicit_form import STANDS_FOR

_BEHIND = STANDS_FOR | {products.epsilon: "self"}
_BEFORE = {explicit.enter: "self", products.hold: "self"}
_SAME = {**_BEHIND, **_BEFORE}


@dataclass(frozen=True, slots=True)
class ModuleCall:
    """One call of a module of the model. `entering` are the values that it reads, `leaving` those made inside and read
    outside; parameters do not count. Both hold the values that carry relevance, or all values where none does. `first` is
    the node that reads the first entering value, or the first node made inside."""

    path: str
    first: Node
    entering: tuple[Node, ...]
    leaving: tuple[Node, ...]


class GraphValues:
    """The model's own values, found in the graph in its final form.

    `to_explicit_form` and `add_epsilon` insert nodes that repeat the value of one of the model's nodes: `enter` and `hold`
    before an op, `leave`, `pass_on` and others after it. What flows back between them is not relevance. So a value is
    always looked up at the node that all its readers read (`at`): what flows back there is relevance. `lxt_fx::positions`
    reads a part of a value; it counts as a reader and never as a module's output.

    `inserted` and `carrying` are names of nodes: those that were inserted, and those on the relevance path.
    """

    def __init__(self, graph: Graph, inserted: Set[str], carrying: Set[str]) -> None:
        self.graph, self.inserted, self.carrying = graph, inserted, carrying

    @cached_property
    def by_name(self) -> Mapping[str, Node]:
        """The nodes of the graph by name."""
        return {node.name: node for node in self.graph.nodes}

    def _same(self, node: Node) -> Node | None:
        """The node whose value, or a part of it, an inserted node repeats."""
        if node.target is selection.positions:
            return node.all_input_nodes[0]
        frozen = node.target is products.hold and node.all_input_nodes[0].op in ("get_attr", "placeholder")
        if node.target not in _SAME or not (frozen or node.name in self.inserted):
            return None
        found: Node = arguments(node)[_SAME[node.target]]
        return found

    def of(self, node: Node) -> Node:
        """The node of the model whose value `node` has."""
        while (found := self._same(node)) is not None:
            node = found
        return node

    def at(self, node: Node) -> Node:
        """The node with the value of `node` that all readers read. Its gradient is complete, and in explicit form it is
        relevance."""
        behind = [user for user in node.users if user.target in _BEHIND and self._same(user) is node]
        return self.at(behind[0]) if behind else node

    def carries(self, node: Node) -> bool:
        """Whether relevance flows back to the value, and it has a shape (a tuple has none). To an `enter` and to what
        `as_gradient` repeats flows a gradient."""
        before = node.name in self.inserted and node.target in _BEFORE
        if any(user.target is explicit.as_gradient for user in self.of(node).users):
            return False
        return self.at(node).name in self.carrying and shape(node) is not None and not before

    def is_models(self, node: Node) -> bool:
        """Whether the node is an input or an op of the model, and was not inserted."""
        made = node.op == "call_function" and node.name not in self.inserted and node.target is not selection.positions
        return node.op == "placeholder" or (made and self._same(node) is None)

    def readers(self, node: Node) -> Iterator[Node]:
        """The nodes that read the value, directly or through inserted nodes that repeat it or a part of it."""
        for user in node.users:
            if self._same(user) is node:
                yield from self.readers(user)
            else:
                yield user

    @cached_property
    def calls(self) -> dict[str, list[ModuleCall]]:
        """The calls of each module that computes something, by module path."""
        made: dict[tuple[str, str], list[Node]] = {}
        for node in self.graph.nodes:
            if node.op == "call_function" and self.is_models(node):
                for key, path in _calls(node).items():
                    made.setdefault((key, path), []).append(node)
        found: dict[str, list[ModuleCall]] = {}
        for (key, path), nodes in made.items():
            found.setdefault(path, []).append(self._call(key, path, nodes))
        return found

    def _call(self, key: str, path: str, made: list[Node]) -> ModuleCall:
        leaving = [node for node in made if any(key not in _calls(reader) for reader in self.readers(node))]
        inside = set(made)
        reads: dict[Node, Node] = {}
        for node in made:
            for operand in dict.fromkeys(map(self.of, node.all_input_nodes)):
                if operand not in inside and self.is_models(operand):
                    reads.setdefault(operand, node)
        entering = self._those_that_count(list(reads))
        first = next((reads[node] for node in reads if node in entering), made[0])
        return ModuleCall(path, first, entering, self._those_that_count(leaving))

    def _those_that_count(self, nodes: list[Node]) -> tuple[Node, ...]:
        tensors = [node for node in nodes if shape(node) is not None]
        return tuple(node for node in tensors if self.carries(node)) or tuple(tensors)


def _calls(node: Node) -> dict[str, str]:
    """The module calls that made the node: keys with the module's path. A second call of a module has another key."""
    stack = node.meta.get("nn_module_stack") or {}
    return {str(key): str(path).split("@")[0] for key, (path, _) in stack.items()}
