"""Analysis: the parts that nodes play in an attention, in a router, and in the network."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from torch.fx import GraphModule, Node

from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import (
    CONTRACTIONS,
    LINEAR_MAPS,
    MASKS,
    MOVES,
    NORMS,
    POINTWISE_LINEAR,
    POWERS,
    PRODUCTS,
    REDUCTIONS,
)
from lxt_fx.passes.analysis.find_rotations import find_rotations
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.rule_table.rule import Role

_FUSED = aten.scaled_dot_product_attention.default
_BETWEEN_SCORES_AND_SOFTMAX = (
    MOVES
    | POINTWISE_LINEAR
    | PRODUCTS
    | MASKS
    | {aten.tanh.default, aten.amax.default, aten.max.dim}
)
_BEHIND_OUTPUT = MOVES | PRODUCTS | NORMS
_BEFORE_SCORES = _BEHIND_OUTPUT | POINTWISE_LINEAR | REDUCTIONS | POWERS

Roles = dict[Node, set[Role]]
Near = Callable[[Node], list[Node]]


def find_roles(
    gm: GraphModule, flow: Flow, routers: Iterable[Node], recurrent: Iterable[Node]
) -> Mapping[Node, frozenset[Role]]:
    """Analysis: scores, weights and output of attentions written as matmul, softmax, matmul; the projections to and from
    attentions; the products that rotate queries and keys; linear maps with no other one before or behind them; `routers`,
    and the `recurrent` products."""
    roles: Roles = defaultdict(set)
    for role, nodes in ((Role.ROUTER, routers), (Role.RECURRENCE, recurrent)):
        for node in nodes:
            roles[node].add(role)
    _attentions(gm, flow, roles)
    _projections(gm, flow, roles)
    _rotations(gm, flow, roles)
    _ends(gm, flow, roles)
    return {node: frozenset(found) for node, found in roles.items()}


def _carries(flow: Flow, node: Node) -> int:
    return len(flow.carrying_operands(node)) if node in flow.carrying else 0


def _is_linear_map(flow: Flow, node: Node) -> bool:
    return node.target in LINEAR_MAPS and _carries(flow, node) == 1


def _is_product(flow: Flow, node: Node) -> bool:
    return node.target is _FUSED or (node.target in CONTRACTIONS and _carries(flow, node) > 1)


def _attentions(gm: GraphModule, flow: Flow, roles: Roles) -> None:
    """A softmax that is fed by a product of two carrying values and feeds another one, with scales, masks, soft caps and
    sink columns between, is the weights of an attention."""
    for node in gm.graph.nodes:
        if node.target is not aten.softmax.int or node not in flow.carrying:
            continue
        scores = _nearest(flow, node, _operands(flow), _is_product, _BETWEEN_SCORES_AND_SOFTMAX)
        outputs = _nearest(flow, node, _users(flow), _is_product, _BETWEEN_SCORES_AND_SOFTMAX)
        if scores and outputs:
            roles[node].add(Role.WEIGHTS)
            for score in scores:
                roles[score].add(Role.SCORES)
            for output in outputs:
                roles[output].add(Role.OUTPUT)


def _projections(gm: GraphModule, flow: Flow, roles: Roles) -> None:
    """The linear maps that are nearest to an attention: before it through rotary embeddings and norms, behind it through
    moves, gates and norms."""
    for node in gm.graph.nodes:
        fused = node.target is _FUSED and node in flow.carrying
        found = set(roles.get(node, ()))
        if fused or found & {Role.SCORES, Role.OUTPUT}:
            for projection in _nearest(flow, node, _operands(flow), _is_linear_map, _BEFORE_SCORES):
                roles[projection].add(Role.PROJECTION)
        if fused or Role.OUTPUT in found:
            for projection in _nearest(flow, node, _users(flow), _is_linear_map, _BEHIND_OUTPUT):
                roles[projection].add(Role.PROJECTION)


def _rotations(gm: GraphModule, flow: Flow, roles: Roles) -> None:
    """The products by which queries and keys are rotated by their positions."""
    starts: list[Node] = []
    for node in gm.graph.nodes:
        if node.target is _FUSED and node in flow.carrying:
            starts += [operand.node for operand in flow.carrying_operands(node) if operand.name in ("query", "key")]
        elif Role.SCORES in roles.get(node, ()):
            starts += [operand.node for operand in flow.carrying_operands(node)]
    for product in find_rotations(gm, flow, starts, _BEFORE_SCORES):
        roles[product].add(Role.ROTATION)


def _ends(gm: GraphModule, flow: Flow, roles: Roles) -> None:
    """Linear maps that no linear map or attention is before, and those that none is behind."""
    for role, nodes, near in (
        (Role.FIRST, list(gm.graph.nodes), _operands(flow)),
        (Role.LAST, list(reversed(gm.graph.nodes)), _users(flow)),
    ):
        past: set[Node] = set()
        for node in nodes:
            if any(other in past or other.target in LINEAR_MAPS | {_FUSED} for other in near(node)):
                past.add(node)
            elif _is_linear_map(flow, node):
                roles[node].add(role)


def _operands(flow: Flow) -> Near:
    return lambda node: [operand.node for operand in flow.carrying_operands(node)] if node in flow.carrying else []


def _users(flow: Flow) -> Near:
    return lambda node: [user for user in node.users if user in flow.carrying]


def _nearest(
    flow: Flow, start: Node, near: Near, wanted: Callable[[Flow, Node], bool], between: Collection[Any]
) -> list[Node]:
    """The wanted nodes that are reached from `start` through nothing but the ops `between`."""
    found: list[Node] = []
    seen, todo = {start}, [start]
    while todo:
        for node in near(todo.pop()):
            if node in seen:
                continue
            seen.add(node)
            if wanted(flow, node):
                found.append(node)
            elif node.target in between:
                todo.append(node)
    return found
