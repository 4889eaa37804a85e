"""Transform: the module computes its logits at some positions only, and for the other tokens only what these need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import arguments, operands, shape, value
from lxt_fx.base.torch_internals import OpOverload, aten, pytree, schema_of
from lxt_fx.ops import selection as selection_ops
from lxt_fx.passes.drop_dead import drop_dead
from lxt_fx.passes.positions.asked_positions import answer_index, checked, outputs
from lxt_fx.passes.positions.through_experts import move_through_experts
from lxt_fx.passes.positions.through_ops import move_through_ops
from lxt_fx.passes.positions.token_axis import Axis, Move, Selection, expression, item_shape


def select_positions(gm: GraphModule, positions: tuple[int, ...]) -> int:
    """Transform: the logits [batch, tokens, vocab] become those at `positions`, [batch, len(positions), vocab].

    The selection moves from the logits towards the inputs as long as nothing else reads the value. It passes an op where
    each token of the output depends only on the same token of an operand, or on the whole of an operand (the keys and
    values of an attention). Where it stops, `lxt_fx.positions` is inserted.

    Without logits, the only output of three dims is cut. Raises InputError where there is none.
    """
    drop_dead(gm)
    answer = outputs(gm)[answer_index(gm)]
    tokens = (shape(answer) or ())[1]
    checked(positions, tokens)
    return _Moving(gm, answer, tokens, positions).apply()


class _Moving:
    """Finds which nodes can compute fewer tokens, from the output backwards, and then edits the graph."""

    def __init__(self, gm: GraphModule, answer: Node, tokens: int | torch.SymInt, positions: tuple[int, ...]) -> None:
        self.graph, self.answer, self.tokens, self.positions = gm.graph, answer, tokens, positions
        self.selection = Selection(expression(tokens), len(positions))
        self.measured = _measured(gm, self.selection.tokens)
        self.knows_size = isinstance(tokens, int) or self.measured is not None
        self.axes: dict[Node, Axis | None] = {}
        self.experts: dict[Node, tuple[Axis | None, Move]] = {}
        self.moves: dict[Node, Move] = {}
        self.selected: dict[tuple[Node, Axis], Node] = {}
        self.sized: Node | None = None
        self.causal: Node | None = None
        self._find()

    def _find(self) -> None:
        """A node computes fewer tokens if all its readers need only these and the selection passes its op. Readers come
        first."""
        asked: dict[Node, set[Axis | None]] = {}
        for node in reversed(self.graph.nodes):
            if node.op == "output":
                for other in node.all_input_nodes:
                    asked.setdefault(other, set()).add(Axis(1) if other is self.answer else None)
                continue
            wanted = asked.get(node, set())
            axis = next(iter(wanted)) if len(wanted) == 1 else None
            if axis is not None and node not in self.experts:
                self.experts |= self._experts_behind(node, axis)
            axis, move = self.experts.get(node) or (axis, None if axis is None else self._possible(node, axis))
            if move is None:
                self._stays_whole(node)
            else:
                self.axes[node], self.moves[node] = axis, move
            for operand in operands(node):
                asked.setdefault(operand.node, set()).add(None if move is None else move.operands.get(operand.name))

    def _possible(self, node: Node, axis: Axis) -> Move | None:
        if self.selection.tokens == 1:
            return None  # the dim of a single token cannot be told from other dims of size 1
        move = move_through_ops(node, axis, self.selection)
        named = {operand.name: operand.node for operand in operands(node)}
        if move is None or ("is_causal" in move.arguments and not self.knows_size):
            return None
        possible = all(self._can_be_selected(named[name], found) for name, found in move.operands.items())
        return move if possible else None

    def _experts_behind(self, node: Node, axis: Axis) -> dict[Node, tuple[Axis | None, Move]]:
        """The region of sorted experts that ends at the node, if tokens can be selected from the values that enter it."""
        region = move_through_experts(node, axis, self.selection) or {}
        enters = [
            (operand.node, move.operands[operand.name])
            for member, (_, move) in region.items()
            for operand in operands(member)
            if operand.name in move.operands and operand.node not in region
        ]
        return region if all(self._can_be_selected(*entering) for entering in enters) else {}

    def _can_be_selected(self, node: Node, axis: Axis) -> bool:
        """Whether tokens can be selected in this dim: it holds nothing else, or the graph knows the sizes that split it."""
        return self._is_plain(node, axis) or (axis.inner.is_Integer and self.knows_size)

    def _is_plain(self, node: Node, axis: Axis) -> bool:
        """Whether the dim holds the tokens and nothing else."""
        sizes = item_shape(node)
        return sizes is not None and expression(sizes[axis.dim]) == self.selection.tokens

    def _stays_whole(self, node: Node) -> None:
        """Tokens cannot be selected from a tuple, so they are selected from each item."""
        if isinstance(value(node), (list, tuple)):
            for item in node.users:
                self.moves.pop(item, None)

    def apply(self) -> int:
        """Edits the graph: ops compute fewer tokens, selections are inserted. Returns the number of edited nodes."""
        for node, move in reversed(self.moves.items()):
            self._narrow(node, move)
        if self.answer not in self.moves:
            last = next(node for node in reversed(self.graph.nodes) if node.op == "output")
            last.replace_input_with(self.answer, self._select(self.answer, Axis(1)))
        return len(self.moves) + len(self.selected)

    def _narrow(self, node: Node, move: Move) -> None:
        named = arguments(node)
        whole = {name: _with_operands(name, argument, partial(self._operand, move)) for name, argument in named.items()}
        if node.target is aten.scaled_dot_product_attention.default and "is_causal" in move.arguments:
            whole["attn_mask"] = self._causal_mask(node)
        for name, argument in move.arguments.items():
            whole[name] = self._size_of(argument, node) if isinstance(argument, Node) else argument
        if move.op is not None:
            whole = {"self": whole.pop("self"), "shape": whole.pop("shape", whole.pop("size", None))}
            node.target = move.op
        node.args, node.kwargs = _split(node.target, whole)
        if (axis := self.axes[node]) is not None:
            node.meta["val"] = self._fewer(node, axis)

    def _size_of(self, measured: Node, reader: Node) -> Node:
        """A node with the length of a value along dim 0; `reader` moves behind it."""
        with self.graph.inserting_after(measured):
            size = self.graph.call_function(aten.sym_size.int, (measured, 0))
        size.meta = dict(measured.meta) | {"val": (shape(measured) or ())[0]}
        next(iter(reader.users)).prepend(reader)
        return size

    def _operand(self, move: Move, name: str, operand: Node) -> Node:
        axis = move.operands.get(name)
        return operand if axis is None or operand in self.moves else self._select(operand, axis)

    def _select(self, node: Node, axis: Axis) -> Node:
        """The node at the selected positions."""
        if (node, axis) in self.selected:
            return self.selected[node, axis]
        apart = () if self._is_plain(node, axis) else (self._size(), int(axis.inner))
        fewer = self._fewer(node, axis)
        with self.graph.inserting_after(self._behind(node)):
            found = self.graph.call_function(selection_ops.positions, (node, axis.dim, list(self.positions), *apart))
        found.meta = dict(node.meta) | {"val": fewer}
        self.selected[node, axis] = found
        return found

    def _behind(self, node: Node) -> Node:
        """The node after which readers can be inserted: after an input, they come behind all inputs."""
        return (self.sized or self._last_input()) if node.op == "placeholder" else node

    def _last_input(self) -> Node:
        inputs: list[Node] = [node for node in self.graph.nodes if node.op == "placeholder"]
        return inputs[-1]

    def _fewer(self, node: Node, axis: Axis) -> Any:
        """The recorded (fake) value of the node, with fewer tokens."""
        plain = self._is_plain(node, axis)

        def fewer(tensor: Any) -> Any:
            if not isinstance(tensor, Tensor):
                return tensor
            size = len(self.positions) * (1 if plain else tensor.shape[axis.dim] // self.tokens)
            return tensor.new_empty([*tensor.shape[: axis.dim], size, *tensor.shape[axis.dim + 1 :]])

        return pytree.tree_map(fewer, value(node))

    def _size(self) -> Any:
        """The number of tokens as an argument of a node."""
        if isinstance(self.tokens, int):
            return self.tokens
        if self.sized is None:
            assert self.measured is not None
            with self.graph.inserting_after(self._last_input()):
                self.sized = self.graph.call_function(aten.sym_size.int, self.measured)
            self.sized.meta["val"] = self.tokens
        return self.sized

    def _causal_mask(self, node: Node) -> Node:
        """The causal mask [queries, keys] of the selected queries: each sees the keys up to its own position."""
        if self.causal is None:
            one = value(node).new_empty([], dtype=torch.long)
            keys, queries = one.expand(self.tokens), one.expand(len(self.positions))
            settings = {"device": one.device, "pin_memory": False}
            with self.graph.inserting_before(node):
                places = self._made(node, aten.arange.default, (self._size(),), keys, settings)
                asked = self._made(node, selection_ops.positions, (places, 0, list(self.positions)), queries)
                asked = self._made(node, aten.unsqueeze.default, (asked, 1), queries.unsqueeze(1))
                seen = queries.unsqueeze(1) >= keys
                self.causal = self._made(node, aten.ge.Tensor, (asked, places), seen)
        return self.causal

    def _made(self, like: Node, op: Any, args: tuple[Any, ...], fake: Any, kwargs: dict[str, Any] | None = None) -> Node:
        made = self.graph.call_function(op, args, kwargs)
        made.meta = dict(like.meta) | {"val": fake}
        return made


def _measured(gm: GraphModule, tokens: Any) -> tuple[Node, int] | None:
    """An input, and which of its dims has the number of tokens as size."""
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            for dim, size in enumerate(shape(node) or ()):
                if expression(size) == tokens:
                    return node, dim
    return None


def _with_operands(name: str, argument: Any, change: Callable[[str, Node], Node]) -> Any:
    """The argument with `change` applied to each node in it; nodes are named as `operands` names them."""
    if isinstance(argument, Node):
        return change(name, argument)
    if isinstance(argument, (list, tuple)):
        return [_with_operands(f"{name}[{index}]", item, change) for index, item in enumerate(argument)]
    return argument


def _split(op: Any, named: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments by name as positional and keyword ones."""
    if not isinstance(op, OpOverload):
        return tuple(named.values()), {}
    given = dict(named)
    args = []
    for argument in schema_of(op).arguments:
        if argument.kwarg_only or argument.name not in given:
            break
        args.append(given.pop(argument.name))
    return tuple(args), given
