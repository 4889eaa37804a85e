"""A piece of a graph that computes an attention, or a mask, from values with fewer entries, for some queries at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, operands
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import products
from lxt_fx.ops.dtype_limits import limit_of
from lxt_fx.passes.fuse.query_axis import QUERIES, Needs, needs_of, sizes_of

PRODUCTS = frozenset({products.matmul, products.matmul_held, aten.matmul.default})

Entering = tuple[Node, int | None]
"""A value that enters a piece, and the dim of it that is cut down to some queries."""


@dataclass(slots=True)
class Piece:
    """The nodes that compute `last` from the values that enter: those that have no dim of keys (of size `keys`) beside one
    of queries, and those that no known op makes."""

    last: Node
    keys: str
    needs: dict[Node, Needs] = field(default_factory=dict)
    axes: dict[Node, int] = field(default_factory=dict)
    enters: dict[Entering, None] = field(default_factory=dict)
    scores: Node | None = None
    """The product of queries and keys."""
    has_one_axis: bool = True
    """Whether each node has its queries in one dim."""

    def visit(self, node: Node, axis: int) -> None:
        """Takes in the node, whose dim `axis` holds queries, and all that it is computed from by queries and keys."""
        if node in self.needs:
            self.has_one_axis = self.has_one_axis and self.axes.get(node) == axis
            return
        sizes = sizes_of(node) or ()
        starts = node.target in PRODUCTS and axis == len(sizes) - 2 and self.scores is None
        found = _product_needs(node) if starts else needs_of(node, axis)
        if found is None:
            self.enters[node, axis] = None
            return
        self.needs[node], self.axes[node] = found, axis
        if starts:
            self.scores = node
        for operand in operands(node):
            dim = found.axes.get(operand.name)
            if operand.node.target is limit_of and operand.node.args[1] in self.needs:
                self.needs[operand.node] = Needs({"arg1": axis})
                self.enters |= {(each.node, None): None for each in operands(operand.node) if each.name != "arg1"}
            elif dim is None or starts or not self.has_keys(operand.node, dim):
                self.enters[operand.node, dim] = None
            else:
                self.visit(operand.node, dim)

    def is_consistent(self) -> bool:
        """Whether each node is either in the piece, by queries in one dim, or enters it."""
        return self.has_one_axis and all(node not in self.needs for node, _ in self.enters)

    def has_keys(self, node: Node, axis: int) -> bool:
        """Whether another dim of the value than that of the queries holds keys."""
        others = [size for dim, size in enumerate(sizes_of(node) or ()) if dim != axis]
        symbols = set(re.findall(r"[a-z]\w*", self.keys))
        if not symbols:
            return self.keys in others
        return any(not symbols.isdisjoint(re.findall(r"[a-z]\w*", size)) for size in others)


def _product_needs(node: Node) -> Needs | None:
    left = sizes_of(node.args[0]) or ()
    return Needs({"self": len(left) - 2}) if len(left) >= 2 else None


class Functions:
    """Pieces of a graph as functions. Layers of one kind have one function."""

    def __init__(self, graph: Graph) -> None:
        self.place = {node: index for index, node in enumerate(graph.nodes)}
        self.compiled: dict[Any, Callable[..., Any]] = {}

    def ordered(self, nodes: Iterable[Node]) -> list[Node]:
        """The nodes in the order of the graph."""
        return sorted(nodes, key=self.place.__getitem__)

    def of(self, needs: Mapping[Node, Needs], enters: Sequence[Entering], last: Node) -> Callable[..., Any]:
        """The nodes as a function of the number of queries and of what enters; the value of `last`."""
        piece = Graph()
        count = piece.placeholder("queries")
        entered: dict[Entering, Node] = {}
        for index, entering in enumerate(enters):
            entered.setdefault(entering, piece.placeholder(f"x{index}"))
        inner: dict[Node, Node] = {}
        for index, node in enumerate(self.ordered(needs)):
            need = needs[node]
            named = {name: _renamed(name, x, need, inner, entered, count) for name, x in arguments(node).items()}
            named |= {name: _renamed("", x, need, inner, entered, count) for name, x in need.arguments.items()}
            args = tuple(named.values())[: len(node.args)]
            kwargs = {name: named[name] for name in node.kwargs}
            inner[node] = piece.create_node("call_function", node.target, args, kwargs, f"n{index}")
        piece.output(inner[last])
        key = tuple((node.target, str(node.args), str(node.kwargs)) for node in piece.nodes)
        if key not in self.compiled:
            code = piece.python_code(root_module="self")
            scope = dict(code.globals)
            exec(code.src, scope)
            self.compiled[key] = _without_self(scope["forward"])
        return self.compiled[key]


def _without_self(forward: Callable[..., Any]) -> Callable[..., Any]:
    def by_queries_of(*values: Any) -> Any:
        return forward(None, *values)

    return by_queries_of


def _renamed(
    name: str, x: Any, need: Needs, inner: dict[Node, Node], entered: dict[Entering, Node], count: Node
) -> Any:
    """An argument with the nodes of a piece in it."""
    if isinstance(x, Node):
        return inner[x] if x in inner else entered[x, need.axes.get(name)]
    if isinstance(x, (list, tuple)):
        return [_renamed(f"{name}[{index}]", item, need, inner, entered, count) for index, item in enumerate(x)]
    return count if x is QUERIES else x
