"""Analysis: how a selection of positions moves through expert layers that sort their tokens by expert."""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Node

from lxt_fx.base.nodes import arguments, operands, shape
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import GROUPED_MATMULS
from lxt_fx.passes.positions.through_ops import move_through_ops
from lxt_fx.passes.positions.token_axis import Axis, Move, Selection, expression, quotient, same

_OF_COUNTS = frozenset({aten.to.dtype, aten.cumsum.default, aten.detach.default})
_COUNTS = frozenset({aten.histc.default, aten.bincount.default})
_SORTS = frozenset({aten.sort.default, aten.sort.stable})
_EMPTY = frozenset({aten.empty_like.default, aten.zeros_like.default})


def move_through_experts(node: Node, axis: Axis, selection: Selection) -> dict[Node, tuple[Axis | None, Move]] | None:
    """Analysis: the region that ends at `y[inverse]`. Token vectors are sorted by expert (`ids.sort()`), multiplied with
    the weights of their expert, and put back in order; with fewer ids, all of this works on fewer vectors.

    Returns for each node of the region the axis of its vectors (None for counts of them) and how the selection moves
    through it. None where no such region ends at the node, or where a node outside reads a value inside.
    """
    if node.target is not aten.index.Tensor or axis.dim != 0:
        return None
    inverse = _only_index(node)
    if inverse is None:
        return None
    region = _Region(axis, selection)
    if not region.inverts(inverse) or not region.is_sorted(node.args[0], axis):
        return None
    region.members[node] = (axis, Move({"self": axis, "indices[0]": axis}))
    closed = all(user in region.members for member in region.members if member is not node for user in member.users)
    return region.members if closed else None


def _only_index(node: Node) -> Node | None:
    """i in x[i]."""
    indices = arguments(node)["indices"]
    return indices[0] if len(indices) == 1 and isinstance(indices[0], Node) else None


class _Region:
    """The nodes of one sort, and those whose vectors are in its order."""

    def __init__(self, axis: Axis, selection: Selection) -> None:
        self.axis, self.selection = axis, selection
        self.sort: Node | None = None
        self.members: dict[Node, tuple[Axis | None, Move]] = {}

    def inverts(self, node: Node) -> bool:
        """The permutation that undoes the sort: empty.index_put(order, arange)."""
        if node.target is not aten.index_put.default or not isinstance(node.args[2], Node):
            return False
        empty, order, places = node.args[0], _only_index(node), node.args[2]
        fits = isinstance(empty, Node) and empty.target in _EMPTY and places.target is aten.arange.default
        if not fits or order is None or empty.args[0] is not order:  # type: ignore[union-attr]
            return False
        if len(places.args) != 1 or len(places.users) != 1:
            return False
        if not same((shape(places) or (0,))[0], (shape(order) or (1,))[0]) or not self._orders(order):
            return False
        self.members[empty] = (self.axis, Move({"self": self.axis}))  # type: ignore[index]
        self.members[places] = (self.axis, Move({}, {"end": order}))
        self.members[node] = (self.axis, Move({"self": self.axis, "indices[0]": self.axis, "values": self.axis}))
        return True

    def is_sorted(self, node: Any, axis: Axis) -> bool:
        """Whether the vectors of the value are in the order of the sort."""
        if not isinstance(node, Node):
            return False
        if node in self.members:
            return self.members[node][0] == axis
        if node.target in GROUPED_MATMULS:
            return self._multiplies_groups(node, axis)
        if node.target is aten.index.Tensor and axis.dim == 0 and (index := _only_index(node)) is not None:
            return self._takes_in_order(node, index)
        if node.target is operator.getitem and node.args[0].target in _SORTS:  # type: ignore[union-attr]
            return axis == self.axis and self._comes_from_sort(node)
        move = move_through_ops(node, axis, self.selection)
        named = {operand.name: operand.node for operand in operands(node)}
        if move is None or not all(self.is_sorted(named[name], found) for name, found in move.operands.items()):
            return False
        self.members[node] = (axis, move)
        return True

    def _multiplies_groups(self, node: Node, axis: Axis) -> bool:
        vectors, offsets = node.args[0], node.args[2] if len(node.args) > 2 else node.kwargs.get("offs")
        if axis.dim != 0 or len(node.args) > 3 or not self.is_sorted(vectors, axis) or not self._counts(offsets):
            return False
        self.members[node] = (axis, Move({operands(node)[0].name: axis}))
        return True

    def _takes_in_order(self, node: Node, index: Node) -> bool:
        """x[order], or x[order // k] with k experts per token; or a lookup of each sorted id."""
        step = 1
        order = index
        if index.target is aten.floor_divide.default and isinstance(index.args[1], int):
            order, step = index.args[0], index.args[1]  # type: ignore[assignment]
        inner = quotient(self.axis.inner, expression(step))
        if inner is None:
            return False
        if self._orders(order):
            if order is not index:
                self.members[index] = (self.axis, Move({"self": self.axis}))
            self.members[node] = (self.axis, Move({"self": Axis(0, inner), "indices[0]": self.axis}))
            return True
        if not self.is_sorted(index, self.axis):
            return False
        self.members[node] = (self.axis, Move({"indices[0]": self.axis}))
        return True

    def _orders(self, node: Node) -> bool:
        """The indices that the sort gives."""
        return node.target is operator.getitem and bool(node.args[1] == 1) and self._comes_from_sort(node)

    def _comes_from_sort(self, node: Node) -> bool:
        sort: Any = node.args[0]
        if sort.target not in _SORTS or len(shape(sort.args[0]) or ()) != 1 or self.sort not in (None, sort):
            return False
        self.sort = sort
        self.members[sort] = (self.axis, Move({"self": self.axis}))
        self.members[node] = (self.axis, Move({"arg0": self.axis}))
        return True

    def _counts(self, node: Any) -> bool:
        """How many vectors each expert gets, or the running sum of these numbers."""
        if not isinstance(node, Node) or node.target not in _OF_COUNTS | _COUNTS:
            return False
        found = self.is_sorted(node.args[0], self.axis) if node.target in _COUNTS else self._counts(node.args[0])
        if found:
            self.members[node] = (None, Move({"self": self.axis} if node.target in _COUNTS else {}))
        return found
