"""Analysis: the parameters of linear recurrences: step sizes, decays, gates, and the factors that write and read the state.

h_t = a_t h_{t-1} + B_t x_t, y_t = C_t h_t with a, B, C computed from x, one step at a time, in chunks, or as a sum over all
earlier steps: MambaLRP (Rezaei Jafari et al. 2024) holds a, B and C, so that the map from x to y is linear.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Flag, auto
from functools import reduce
from operator import and_, or_

import networkx as nx
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import Operand, module_path
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.activations import ACTIVATIONS
from lxt_fx.ops.aten_kinds import CONTRACTIONS, MASKS, MOVES, POINTWISE, POINTWISE_LINEAR, PRODUCTS
from lxt_fx.passes.analysis.mark_flow import Flow

_RATES = frozenset(activation.aten for activation in ACTIVATIONS if activation.rate)
_DECAYS = frozenset(activation.aten for activation in ACTIVATIONS if activation.decay)
_SUMS = frozenset({aten.sum.dim_IntList, aten.sum.default, aten.cumsum.default})


class _Part(Flag):
    """The part that a value plays in a recurrence."""

    NONE = 0
    RATE = auto()  # made of exp, softplus and sigmoid and nothing else: a step size, a decay, a gate
    DECAY = auto()  # there is an exp among the rates
    RATED = auto()  # a value that was multiplied by a rate
    STATE = auto()  # a sum of values that were multiplied by rates
    PRODUCT = auto()  # a product of two values element by element
    SCORE = auto()  # a sum of such products: how much one position looks at another


@dataclass(frozen=True, slots=True)
class Recurrences:
    """`parameters`: for each product, the name of the operand that may be a parameter of a recurrence. `recurrent`: those
    of these products that are part of a recurrence."""

    parameters: Mapping[Node, tuple[str, ...]]
    recurrent: frozenset[Node]


def find_recurrences(gm: GraphModule, flow: Flow, inside: frozenset[Node]) -> Recurrences:
    """Analysis: for each product of two carrying values where one is a parameter of a recurrence, the name of that operand.

    These operands are parameters: a rate (a step size, a decay, a gate) that multiplies another value; the factor of a
    state (C); scores with decays that weigh values; a value with a decay that multiplies one without; and a value that
    multiplies the one that it was computed from (B x). A value contracted with its own multiple by a rate gives scores
    (the keys of the delta rule). Nodes `inside` a norm or an activation are not looked at. A sigmoid gate outside of a
    recurrence looks the same, so a product counts as recurrent only where decays of its module multiply one state after
    another, or are first summed along the sequence.
    """
    parts: dict[Node, _Part] = {}
    found: dict[Node, tuple[str, ...]] = {}
    decaying: set[Node] = set()
    order = {node: index for index, node in enumerate(gm.graph.nodes)}
    for node in gm.graph.nodes:
        if node not in flow.carrying or node in inside:
            continue
        operands = flow.carrying_operands(node)
        of = [parts.get(operand.node, _Part.NONE) for operand in operands]
        if node.target in _RATES:
            parts[node] = _Part.RATE | (_Part.DECAY if node.target in _DECAYS else _Part.NONE)
        elif node.target in CONTRACTIONS and _with_itself(flow, operands):
            parts[node] = _Part.SCORE | _Part.RATED
        elif node.target in PRODUCTS | CONTRACTIONS and len(of) == 2:
            parameter = _parameter(flow, node, operands, of, order)
            found |= {} if parameter is None else {node: (parameter,)}
            decaying |= {node} if _Part.DECAY in reduce(or_, of) else set()
            parts[node] = _of_product(node, of, parameter is not None)
        else:
            parts[node] = _of_others(node, of)
    return Recurrences(found, _recurrent(flow, found, decaying))


def _recurrent(flow: Flow, products: Iterable[Node], decaying: set[Node]) -> frozenset[Node]:
    modules = {module_path(node) for node in decaying}
    graph: nx.DiGraph = nx.DiGraph()
    for node in flow.carrying:
        if (path := module_path(node)) in modules:
            same = [operand.node for operand in flow.carrying_operands(node) if module_path(operand.node) == path]
            graph.add_edges_from((before, node) for before in same)
    starts = [node for node in graph if node in decaying or node.target is aten.cumsum.default]
    stepping = {module_path(node) for node in starts if not decaying.isdisjoint(nx.descendants(graph, node))}
    return frozenset(node for node in products if module_path(node) in stepping)


def _parameter(
    flow: Flow, node: Node, operands: list[Operand], of: list[_Part], order: Mapping[Node, int]
) -> str | None:
    """The name of the operand that is a parameter: the one that is the part, or beside a state the other one."""
    (a, b), (first, second) = of, [operand.name for operand in operands]
    if node.target is aten.div.Tensor:
        return second if _Part.RATE in b and _Part.RATE not in a else None
    for part in (_Part.RATE, _Part.STATE, _Part.SCORE | _Part.RATED, _Part.DECAY):
        if (part in a) != (part in b) and (part is not _Part.STATE or _contracts(node)):
            return second if (part in b) != (part is _Part.STATE) else first
    if _Part.RATE in a or not (a | b) & (_Part.RATED | _Part.STATE):
        return None
    for own, other in (operands, operands[::-1]):
        if _depends(flow, own.node, _unmoved(other.node), order):
            return own.name
    return None


def _contracts(node: Node) -> bool:
    """Whether a product is summed in the next op."""
    return node.target in CONTRACTIONS or all(user.target in _SUMS for user in node.users)


def _of_product(node: Node, of: list[_Part], held: bool) -> _Part:
    a, b = of
    if _Part.RATE in a and _Part.RATE in b:
        return (a | b) & (_Part.RATE | _Part.DECAY)
    contraction = node.target in CONTRACTIONS
    if _Part.RATE in a | b:
        value, rate = (b, a) if _Part.RATE in a else (a, b)
        return _Part.STATE if contraction else value | _Part.RATED | (rate & _Part.DECAY)
    if _Part.SCORE in a and _Part.SCORE in b:
        return (a | b) & (_Part.SCORE | _Part.RATED)
    rated = _Part.NONE if _Part.STATE in a | b else (a | b) & _Part.RATED
    if contraction:
        return _Part.NONE if held else _Part.STATE if rated else _Part.SCORE
    return rated if held else _Part.PRODUCT | rated


def _of_others(node: Node, of: list[_Part]) -> _Part:
    if not of:
        return _Part.NONE
    every, some = reduce(and_, of), reduce(or_, of)
    if node.target in _SUMS or (node.target in POINTWISE_LINEAR and len(of) > 1):
        if _Part.RATE in every:
            return _Part.RATE | (some & _Part.DECAY)
        if _Part.SCORE in some and _Part.STATE not in some:
            return some & (_Part.SCORE | _Part.RATED)
        if (_Part.RATED | _Part.STATE) & some:
            return _Part.STATE
        return _Part.SCORE if _Part.PRODUCT in some else _Part.NONE
    if node.target in MOVES | POINTWISE_LINEAR | PRODUCTS | MASKS:
        return (some & ~_Part.RATE) | (every & _Part.RATE)
    if _Part.RATE in every and node.target in POINTWISE | CONTRACTIONS:
        return _Part.RATE | (some & _Part.DECAY)
    return _Part.NONE


def _with_itself(flow: Flow, operands: list[Operand]) -> bool:
    """Whether a value is contracted with itself times a rate (the keys of the delta rule): how much one position looks at
    another."""
    nodes = [_unmoved(operand.node) for operand in operands]
    return len(nodes) == 2 and any(
        product.target in PRODUCTS and any(_unmoved(factor.node) is plain for factor in flow.carrying_operands(product))
        for product, plain in (nodes, nodes[::-1])
    )


def _unmoved(node: Node) -> Node:
    """The value before views and casts."""
    while node.target in MOVES and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def _depends(flow: Flow, node: Node, on: Node, order: Mapping[Node, int]) -> bool:
    """Whether a value is computed from another one that is not itself behind views."""
    if _unmoved(node) is on:
        return False
    seen, todo = {node}, [node]
    while todo:
        for operand in flow.carrying_operands(todo.pop()):
            if operand.node is on:
                return True
            if operand.node not in seen and order[operand.node] > order[on]:
                seen.add(operand.node)
                todo.append(operand.node)
    return False
