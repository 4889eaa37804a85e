"""Measures relevance on every edge of the graph: an identity tap on each carrying operand, read in the backward."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lxt_fx.base.nodes import TensorType, operands, value
from lxt_fx.base.torch_internals import aten, pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.ledger.call import Call, inner
from lxt_fx.ledger.causes import Cause
from lxt_fx.ledger.claimed import shares
from lxt_fx.ledger.meter import Edge, Meter
from lxt_fx.ops import products
from lxt_fx.ops.aten_kinds import MOVES
from lxt_fx.ops.packed import packed_layer_of
from lxt_fx.passes.analysis.mark_flow import NO_GRADIENT
from lxt_fx.rule_table.rule import Rule

FUSED_ATTENTION = frozenset({products.sdpa, products.sdpa_held, aten.scaled_dot_product_attention.default})
_MATMULS = frozenset({products.matmul, products.matmul_held, aten.matmul.default})
_SOFTMAXES = frozenset({products.softmax, aten.softmax.int})
_BETWEEN = MOVES | {
    aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.masked_fill.Scalar, aten.where.self, products.hold
}  # fmt: skip
_READS_SHAPE = NO_GRADIENT - {aten.detach.default, products.hold}
_LAYER = re.compile(r"(?:.*?\.)?\d+(?=\.|$)")


class Taps(torch.fx.Interpreter):
    """Runs the graph of an explained module node by node, with a tap on every operand that carries relevance. `graph` is a
    copy of it with the same names, where that is what runs."""

    def __init__(self, explained: Explained, meter: Meter, graph: Graph | None = None) -> None:
        super().__init__(explained, graph=graph)
        self.meter = meter
        self.rules: Mapping[str, Rule] = explained.record.stages["lowered"].rules
        self.layers = layer_outputs(explained)
        self.parts = attention_parts(self.graph)
        self.origin = Origins(explained.record.stages["lowered"].carrying)

    def run_node(self, n: Node) -> Any:
        if n.op not in ("call_function", "output"):
            return super().run_node(n)
        values = {node: self._value(n, node) for node in n.all_input_nodes}
        read = iter(enumerate(operands(n)))
        carrying: set[Node] = set()

        def tapped(node: Node) -> Any:
            index, operand = next(read)
            edge = Edge(node.name, n.name, operand.name, index)
            if node.op == "get_attr" or not _asks_gradient(values[node]):
                return values[node]
            carrying.add(node)
            return pytree.tree_map_only(Tensor, lambda tensor: self._tap(tensor, edge, n), values[node])

        args, kwargs = torch.fx.map_arg(n.args, tapped), torch.fx.map_arg(n.kwargs, tapped)
        if n.op == "output":
            return args[0]
        if n.target in FUSED_ATTENTION:
            kwargs = kwargs | {"enable_gqa": False}
        result = super().call_function(n.target, args, kwargs)
        if _asks_gradient(result):
            known = {node: _detached(found) for node, found in values.items()}
            self._meet(result, Call(n, self.rules.get(n.name), known, frozenset(carrying), _detached(result), self.origin))
        return result

    def _value(self, reader: Node, node: Node) -> Any:
        """The operand's value. Keys and values of grouped queries are repeated, so that each head has its own."""
        found = self.env[node]
        if reader.target not in FUSED_ATTENTION or not reader.kwargs.get("enable_gqa"):
            return found
        query, *grouped = reader.args[:3]
        if node not in grouped or not isinstance(query, Node):
            return found
        return found.repeat_interleave(self.env[query].shape[-3] // found.shape[-3], -3)

    def _tap(self, tensor: Tensor, edge: Edge, reader: Node) -> Tensor:
        if not tensor.requires_grad:
            return tensor
        tap, meter = tensor.view_as(tensor), self.meter
        found = tensor.detach()

        def read(gradient: Tensor | None) -> None:
            if gradient is None:
                return  # an item of a tuple that the target does not depend on
            meter.add(meter.passing, edge, inner(found, gradient))
            if reader in self.parts and found.dim() == 4:
                _split(meter, edge, found, gradient, self.parts[reader].get(edge.argument))

        tap.register_hook(read)  # type: ignore[no-untyped-call]
        return tap

    def _meet(self, result: Any, call: Call) -> None:
        """Hooks that read the relevance that reaches the node, once its gradient is complete."""
        items = result if isinstance(result, (tuple, list)) else [result]
        for index, item in enumerate(items):
            if isinstance(item, Tensor) and item.requires_grad:
                reader = self._reader(call, index, isinstance(result, (tuple, list)))
                item.register_hook(reader)  # type: ignore[no-untyped-call]

    def _reader(self, call: Call, index: int, several: bool) -> Callable[[Tensor | None], None]:
        meter, name = self.meter, call.node.name

        def read(gradient: Tensor | None) -> None:
            if gradient is None:
                return
            found = call.output[index] if several else call.output
            meter.add(meter.reaching, name, inner(found, gradient))
            for share in shares(call, gradient, index):
                meter.add(meter.taken, (name, share.cause, share.name), share.amount)
            if found.dim() == 4 and "value" in {part for part, _ in self.parts.get(call.node, {}).values()}:
                meter.add(meter.heads, name, (found.double() * gradient.double()).sum((0, 2, 3)))
            if name in self.layers and found.dim() == 3:
                meter.add(meter.profile, self.layers[name], (found.double() * gradient.double()).sum((0, 2)))

        return read


def _split(meter: Meter, edge: Edge, found: Tensor, gradient: Tensor, part: tuple[str, int] | None) -> None:
    """Splits [batch, heads, tokens, width] by head, and by token where the operand is query, key or value."""
    product = torch.where(gradient == 0, 0, found.double() * gradient.double())
    meter.add(meter.heads, edge, product.sum((0, 2, 3)))
    if part is not None:
        name, tokens = part
        meter.add(meter.positions, (edge.consumer, name), product.sum([0, 1, 5 - tokens]))


def _asks_gradient(found: Any) -> bool:
    return any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in pytree.tree_leaves(found))


def _detached(found: Any) -> Any:
    """Without gradients; a packed weight, which has none, as it is."""
    return pytree.tree_map_only(Tensor, lambda t: t.detach() if packed_layer_of(t) is None else t, found)


def attention_parts(graph: Graph) -> dict[Node, dict[str, tuple[str, int]]]:
    """The products of each attention: which argument is query, key or value, and the dimension that counts its tokens."""
    parts: dict[Node, dict[str, tuple[str, int]]] = {}
    for node in graph.nodes:
        if node.target in FUSED_ATTENTION:
            parts[node] = {"query": ("query", 2), "key": ("key", 2), "value": ("value", 2)}
        elif node.target in _MATMULS and _above(node.args[0], MOVES | {products.hold}, _SOFTMAXES):
            parts[node] = {"other": ("value", 2)}
        elif node.target in _SOFTMAXES:
            scores = _above(node.args[0], _BETWEEN, _MATMULS)
            if scores is not None:
                parts.setdefault(scores, {"self": ("query", 2), "other": ("key", 3)})
    return parts


def _above(start: Any, between: frozenset[Any], wanted: frozenset[Any]) -> Node | None:
    """The first node of a wanted op, going up by first operands through ops of `between`."""
    while isinstance(start, Node) and start.target in between and start.args:
        start = start.args[0]
    return start if isinstance(start, Node) and start.target in wanted else None


def layer_of(path: str) -> str:
    """`model.layers.3` of `model.layers.3.mlp.up_proj`; of a path without a number its first two names."""
    found = _LAYER.match(path)
    return found.group() if found else ".".join(path.split(".")[:2])


def layer_outputs(explained: Explained) -> dict[str, str]:
    """For each layer, the node that receives all relevance of its output: the last value made inside and read outside."""
    values = explained._values()
    last = {path: call.leaving[-1] for path, calls in values.calls.items() for call in calls if call.leaving}
    layers = [path for path in last if _LAYER.match(path) and layer_of(path) == path and values.carries(last[path])]
    return {values.at(last[layer]).name: layer for layer in layers}


class Origins:
    """The origin of a value that carries nothing: a parameter, an input, or a carrying value that was held."""

    def __init__(self, carrying: frozenset[str]) -> None:
        self.carrying = carrying
        self.known: dict[Node, tuple[Cause, str]] = {}

    def __call__(self, node: Node) -> tuple[Cause, str]:
        if node not in self.known:
            self.known[node] = self._found(node)
        return self.known[node]

    def _found(self, node: Node) -> tuple[Cause, str]:
        held, parameters, inputs = self._ancestors(node)
        if held:
            return Cause.HELD, _listed([f"%{name}" for name in held])
        if parameters:
            return Cause.CONSTANT, _listed(sorted(parameters, key=lambda name: not name.endswith("bias")))
        return Cause.CONSTANT, f"computed from {_listed(inputs)}" if inputs else f"computed by %{node.name}"

    def _ancestors(self, node: Node) -> tuple[list[str], list[str], list[str]]:
        held: dict[str, None] = {}
        parameters: dict[str, None] = {}
        inputs: dict[str, None] = {}
        seen, todo = set[Node](), [node]
        while todo:
            current = todo.pop()
            if current in seen or not isinstance(value(current), (Tensor, TensorType)):
                continue  # a size is no origin of numbers
            seen.add(current)
            if current.op == "get_attr":
                parameters[str(current.target)] = None
            elif current.name in self.carrying:
                held[current.name] = None
            elif current.op == "placeholder":
                inputs[str(current.target)] = None
            elif current.target not in _READS_SHAPE:
                todo += current.all_input_nodes
        return list(held), list(parameters), list(inputs)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
