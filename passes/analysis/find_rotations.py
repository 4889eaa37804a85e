"""Analysis: the products with tables in the rotation of queries and keys by their positions (RoPE)."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import dtype
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import MOVES
from lxt_fx.passes.analysis.mark_flow import Flow

_SUMS = frozenset({aten.add.Tensor, aten.sub.Tensor})
_TURNS = MOVES | {aten.neg.default}


def find_rotations(gm: GraphModule, flow: Flow, starts: Iterable[Node], between: Collection[Any]) -> frozenset[Node]:
    """Analysis: the products x c and P(x) s of each sum x c + P(x) s, or difference, on the way from `starts` (what the
    scores of attentions are made of) back through ops `between`, where P moves and negates elements of x, and c and s are
    tables: they carry nothing, and are no parameters. Complex numbers are rotated by one product.

    No name of a module is read, and no value of a table.
    """
    rotations = _Rotations(flow, {name for name, _ in gm.named_parameters(remove_duplicate=False)})
    found: set[Node] = set()
    seen: set[Node] = set()
    todo = list(starts)
    while todo:
        node = todo.pop()
        if node in seen or node not in flow.carrying:
            continue
        seen.add(node)
        found |= rotations.ending_at(node)
        if node.target in between:
            todo += [operand.node for operand in flow.carrying_operands(node)]
    return frozenset(found)


@dataclass(slots=True)
class _Rotations:
    """A graph in which rotations are looked for. `learned` says of each table whether it reads a parameter."""

    flow: Flow
    parameters: set[str]
    learned: dict[Node, bool] = field(default_factory=dict)

    def ending_at(self, node: Node) -> set[Node]:
        """The products of a rotation that ends at the node; empty where none does."""
        if (dtype(node) or torch.bool).is_complex:
            return {node} if self._turned(node) is not None else set()
        products = [operand.node for operand in self.flow.carrying_operands(node)] if node.target in _SUMS else []
        turned = [self._turned(product) for product in products]
        if len(turned) != 2 or turned[0] is None or turned[1] is None or turned[0] is turned[1]:
            return set()
        return set() if self._moved(turned[0]).isdisjoint(self._moved(turned[1])) else set(products)

    def _turned(self, product: Node) -> Node | None:
        """What a product with a table multiplies; None for another value."""
        carrying = [operand.node for operand in self.flow.carrying_operands(product)]
        if product.target is not aten.mul.Tensor or len(carrying) != 1:
            return None
        tables = [node for node in product.all_input_nodes if node is not carrying[0]]
        return carrying[0] if len(tables) == 1 and not self._is_learned(tables[0]) else None

    def _is_learned(self, table: Node) -> bool:
        if table not in self.learned:
            self.learned[table] = False  # while it is looked at
            own = table.op == "get_attr" and str(table.target) in self.parameters
            self.learned[table] = own or any(map(self._is_learned, table.all_input_nodes))
        return self.learned[table]

    def _moved(self, node: Node) -> set[Node]:
        """The values that this one consists of elements of: itself, and all before it up to an op that computes one."""
        found: set[Node] = set()
        todo = [node]
        while todo:
            current = todo.pop()
            if current in found:
                continue
            found.add(current)
            if current.target in _TURNS:
                todo += [operand.node for operand in self.flow.carrying_operands(current)]
        return found
