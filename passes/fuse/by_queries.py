"""Transform: attention on long texts runs some queries at a time, and masks of queries times keys are not made."""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

from torch.fx import Graph, Node

from lxt_fx.base.node_text import op_name
from lxt_fx.base.nodes import arguments, operands
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import by_queries, fused, products, selection
from lxt_fx.ops.aten_kinds import SHAPE_READERS
from lxt_fx.ops.dtype_limits import limit_of
from lxt_fx.passes.drop_dead import drop_dead_nodes
from lxt_fx.passes.fuse.piece import PRODUCTS, Functions, Piece
from lxt_fx.passes.fuse.query_axis import Needs, broadcasts, sizes_of

_SOFTMAX = frozenset({products.softmax, aten.softmax.int})
_FUSED = frozenset({products.sdpa, products.sdpa_held, fused.grouped_sdpa})
_POSITIONAL = frozenset({"query", "key", "value", "attn_mask", "dropout_p", "is_causal"})


def run_by_queries(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: every attention whose number of queries is free, or larger than `by_queries.WHOLE`, becomes a call that
    runs some queries at a time where there are many. A mask or bias is made by the same nodes as before, for these queries
    only: the nodes that make it from vectors (positions, padding) become a function. The whole is made for few queries, or
    where something else reads it.

    An attention stays as it is where its scores are read by something else (a model that returns its weights), and where an
    op between scores and weights mixes queries or is unknown. So does a mask that comes from outside, or that is made by
    unknown ops.
    """
    return _Splitting(graph, carrying).apply()


class _Splitting:
    """Finds the attentions, and then edits the graph."""

    def __init__(self, graph: Graph, carrying: Set[Node]) -> None:
        self.graph = graph
        self.functions = Functions(graph)
        self.readers = {node: [user.target for user in node.users] for node in graph.nodes}
        self.reads_relevance = _reading(graph, carrying)
        self.masks: dict[Node, tuple[by_queries.LazyMask, list[Node]] | None] = {}

    def apply(self) -> int:
        edits = sum(self._selected(node) for node in list(self.graph.nodes) if node.target is selection.positions)
        edits += sum(self._written(node) for node in list(self.graph.nodes) if node.target in PRODUCTS)
        edits += sum(self._fused(node) for node in list(self.graph.nodes) if node.target in _FUSED)
        drop_dead_nodes(self.graph)
        return edits + sum(self._lazy(mask) for mask in self.masks)

    def _selected(self, selected: Node) -> int:
        """A mask of which some queries are read (`positions=`): it is made for these only."""
        given = arguments(selected)
        mask, axis, places = given["self"], given["dim"], given["positions"]
        found = self._made_of_vectors(mask) if isinstance(mask, Node) and "tokens" not in given else None
        if found is None or axis != len(sizes_of(mask) or ()) - 2:
            return 0
        lazy, parts = found
        with self.graph.inserting_before(selected):
            for index, dim in enumerate(lazy.axes):
                if dim is not None:
                    parts[index] = self.graph.call_function(selection.positions, (parts[index], dim, places))
        selected.target, selected.args = lazy.part, (len(places), *parts)
        return 1

    def _written(self, last: Node) -> int:
        """An attention that is written in single ops."""
        weights = last.args[0]
        sizes = sizes_of(weights) or ()
        if last not in self.reads_relevance or not isinstance(weights, Node) or len(sizes) < 3 or _is_few(sizes[-2]):
            return 0
        piece = Piece(last, sizes[-1])
        piece.needs[last], piece.axes[last] = Needs({"self": len(sizes) - 2}), len(sizes_of(last) or ()) - 2
        piece.visit(weights, len(sizes) - 2)
        core = self.functions.ordered(node for node in piece.needs if node in self.reads_relevance)
        inside = set(core)
        stays = any(user not in inside for node in core if node is not last for user in node.users)
        attends = piece.scores in inside and not _SOFTMAX.isdisjoint(node.target for node in core)
        if not attends or stays or not piece.is_consistent():
            return 0
        self._replace_written(piece, core, last)
        return 1

    def _replace_written(self, piece: Piece, core: list[Node], last: Node) -> None:
        inside = set(core)
        assert piece.scores is not None
        scores = (piece.scores.args[0], piece.needs[piece.scores].axes["self"]), (piece.scores.args[1], None)
        made = (operand for node in core for operand in node.all_input_nodes if operand in piece.needs)
        masks = list(dict.fromkeys(node for node in made if node not in inside))
        inputs: dict[Any, None] = dict.fromkeys(scores)
        read = {(o.node, piece.needs[node].axes.get(o.name)) for node in core for o in operands(node)}
        inputs |= dict.fromkeys(entering for entering in (*piece.enters, (last.args[1], None)) if entering in read)
        parts = [entering for entering in piece.enters if entering not in inputs]
        whole = [*((mask, None) for mask in masks), *((node, None) for node, _ in inputs)]
        entering = [*inputs, *parts]
        attention = by_queries.WrittenAttention(
            self.functions.of({node: Needs({}) for node in core}, whole, last),
            self.functions.of(piece.needs, entering, last),
            tuple(axis for _, axis in entering),
            tuple(map(op_name, core)),
        )
        last.target, last.kwargs = attention, {}
        last.args = (masks, [node for node, _ in inputs], [node for node, _ in parts])
        for mask in masks:
            self._mask(mask)

    def _fused(self, attention: Node) -> int:
        """An op of torch's fused attention."""
        given = arguments(attention)
        query, key, value_, mask = (given.get(name) for name in ("query", "key", "value", "attn_mask"))
        sees = given.get("is_causal", False)
        if given.get("dropout_p") or not isinstance(query, Node) or _is_few((sizes_of(query) or ("", ""))[-2]):
            return 0
        lazy, parts = None, list[Node]()
        if isinstance(mask, Node):
            made = _made_simple(mask)
            found = self._mask(made)
            if found is None:
                return 0
            lazy, parts = found
            if made is mask:
                mask, sees = self._simplest(made)
        elif _has_kernel(query, value_):
            return 0
        settings = {name: setting for name, setting in given.items() if name not in _POSITIONAL}
        attention.target = by_queries.FusedAttention(attention.target, lazy)  # type: ignore[arg-type]
        attention.args, attention.kwargs = (query, key, value_, mask, sees, parts), settings
        return 1

    def _simplest(self, mask: Node) -> tuple[Node, Node]:
        """Items of `simplest_mask` of a mask that has none yet."""
        for user in mask.users:
            if user.target is fused.simplest_mask:
                items = {item.args[1]: item for item in user.users}
                return items[0], items[1]
        with self.graph.inserting_after(mask):
            simplest = self.graph.call_function(fused.simplest_mask, (mask,))
        with self.graph.inserting_after(simplest):
            sees = self.graph.call_function(operator.getitem, (simplest, 1))
            simpler = self.graph.call_function(operator.getitem, (simplest, 0))
        simpler.meta = dict(mask.meta)
        return simpler, sees

    def _mask(self, mask: Node) -> tuple[by_queries.LazyMask, list[Node]] | None:
        """The mask as a function, and the vectors that it is made of; None where it is not made of vectors."""
        if mask not in self.masks:
            self.masks[mask] = self._made_of_vectors(mask)
        return self.masks[mask]

    def _made_of_vectors(self, mask: Node) -> tuple[by_queries.LazyMask, list[Node]] | None:
        sizes = sizes_of(mask) or ()
        if len(sizes) < 2 or sizes[-2] == "1" or mask in self.reads_relevance:
            return None
        piece = Piece(mask, sizes[-1])
        piece.visit(mask, len(sizes) - 2)
        whole = any(axis is not None and piece.has_keys(node, axis) for node, axis in piece.enters)
        if mask not in piece.needs or whole or not piece.is_consistent():
            return None
        part = self.functions.of(piece.needs, list(piece.enters), mask)
        return by_queries.LazyMask(part, tuple(axis for _, axis in piece.enters)), [node for node, _ in piece.enters]

    def _lazy(self, mask: Node) -> int:
        """The whole of a mask is not made for many queries, if only attentions by queries read it."""
        found = self.masks[mask]
        if found is None:
            return 0
        lazy, parts = found
        edits = 0
        for user in list(mask.users):
            readers = [reader for item in user.users for reader in item.users]
            if user.target is fused.simplest_mask and all(isinstance(r.target, by_queries.FusedAttention) for r in readers):
                user.target, user.args = by_queries.LazySimplestMask(lazy), (parts,)
                edits += 1
        written = [isinstance(user.target, by_queries.WrittenAttention) for user in mask.users]
        if written and all(written) and self._fits(mask, lazy):
            mask.target, mask.args, mask.kwargs = lazy, (parts,), {}
            edits += 1
        return edits

    def _fits(self, mask: Node, lazy: by_queries.LazyMask) -> bool:
        """Whether the mask holds queries, or one that is broadcast: all that read it in the model are elementwise."""
        return any(axis is not None for axis in lazy.axes) or all(map(broadcasts, self.readers[mask]))


def _reading(graph: Graph, carrying: Set[Node]) -> set[Node]:
    """The carrying nodes, and those that read more of one than its shape."""
    found: set[Node] = set()
    for node in graph.nodes:
        reads = node.target is limit_of or (sizes_of(node) is not None and node.target not in SHAPE_READERS)
        if node in carrying or (reads and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return found


def _made_simple(mask: Node) -> Node:
    """The mask of which this is the simplest one that hides the same."""
    simplest = mask.args[0]
    if isinstance(simplest, Node) and simplest.target is fused.simplest_mask:
        return simplest.all_input_nodes[0]
    return mask


def _is_few(size: str) -> bool:
    """Whether a size is fixed, and so small that all queries run at once."""
    return size.isdigit() and int(size) <= by_queries.WHOLE


def _has_kernel(query: Node, value_: Any) -> bool:
    """Whether torch has a fused kernel that makes no scores."""
    queries, values = sizes_of(query) or (), sizes_of(value_) or ()
    return len(queries) == 4 and queries[-1:] == values[-1:]
