"""Analysis: queries, keys, values, pattern and heads of an attention, as one op or written out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from lxt_fx.base.nodes import operands, shape
from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops.aten_kinds import CONTRACTIONS, LINEAR_MAPS
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.rule_table.rule import Role

_SDPA = aten.scaled_dot_product_attention.default
RESHAPES = aten_ops(
    "view reshape reshape_as view_as flatten.using_ints unflatten.int contiguous clone unsqueeze squeeze.dim"
)
"""Ops that leave the order of all elements as it is."""

Roles = Mapping[Node, frozenset[Role]]


@dataclass(frozen=True, slots=True)
class AttentionParts:
    """One attention. `queries`, `keys`, `values` and `heads`, its output before heads are merged, are [..., heads, tokens,
    size]; `pattern` [..., heads, queries, keys] is there if the graph has it."""

    queries: Node
    keys: Node
    values: Node
    heads: Node
    pattern: Node | None


def is_attention(node: Node, roles: Roles) -> bool:
    """Whether the node gives what an attention puts together: one op, or the product of pattern and values."""
    return node.target is _SDPA or Role.OUTPUT in roles.get(node, ())


def find_attention_parts(flow: Flow, heads: Node, roles: Roles) -> AttentionParts | None:
    """Analysis: the parts of the attention that gives `heads`; each is the value nearest to the attention that has one axis
    for batch, heads, tokens and size each. None where it is written in a way that hides them."""
    if heads.target is _SDPA:
        found = {operand.name: operand.node for operand in operands(heads)}
        queries, keys, values, pattern = found["query"], found["key"], found["value"], None
    else:
        pattern = next(_before(flow, heads, Role.WEIGHTS, roles), None)
        others = [o.node for o in flow.carrying_operands(heads) if pattern and not _leads_to(flow, o.node, pattern)]
        scores = _scores_of(flow, heads, others[0], roles) if others else None
        if scores is None or len(flow.carrying_operands(scores)) < 2:
            return None
        queries, keys = (operand.node for operand in flow.carrying_operands(scores)[:2])
        values, keys = others[0], _before_transpose(flow, keys)
    separate = [split_before(flow, node, 4) for node in (queries, keys, values)]
    return AttentionParts(separate[0], separate[1], separate[2], split_behind(flow, heads, 4), pattern)


def split_before(flow: Flow, node: Node, dims: int) -> Node:
    """The nearest value with at least so many dims that the node is a reshape of, and that nothing else reads; the node
    itself where it has them, or there is none."""
    return _reshaped(node, dims, lambda one: _only(_sources(flow, one)))


def split_behind(flow: Flow, node: Node, dims: int) -> Node:
    """The nearest reshape of the value with at least so many dims, where nothing else reads it; the node itself where it
    has them, or there is none."""
    return _reshaped(node, dims, lambda one: _only(_readers(flow, one)))


def _reshaped(node: Node, dims: int, near: Callable[[Node], Node | None]) -> Node:
    one: Node | None = node
    while one is not None:
        if len(shape(one) or ()) >= dims:
            return one
        one = near(one)
    return node


def _only(found: list[Node]) -> Node | None:
    return found[0] if len(found) == 1 else None


def _sources(flow: Flow, node: Node) -> list[Node]:
    found = [operand.node for operand in flow.carrying_operands(node)] if node.target in RESHAPES else []
    return [one for one in found if len(_carrying_users(flow, one)) == 1]


def _readers(flow: Flow, node: Node) -> list[Node]:
    found = _carrying_users(flow, node)
    return found if all(user.target in RESHAPES for user in found) else []


def _carrying_users(flow: Flow, node: Node) -> list[Node]:
    return [user for user in node.users if user in flow.carrying]


def projected(flow: Flow, node: Node) -> Node:
    """What the linear map reads that queries, keys or values come out of."""
    while found := flow.carrying_operands(node):
        if node.target in LINEAR_MAPS:
            return found[0].node
        node = found[0].node
    return node


def _scores_of(flow: Flow, heads: Node, values: Node, roles: Roles) -> Node | None:
    """The scores of an attention. Where those of another one are added (LiLT), its own are computed of what its values are
    computed of."""
    found = list(_before(flow, heads, Role.SCORES, roles))
    own = projected(flow, values)
    near = (one for one in found if own in [projected(flow, operand.node) for operand in flow.carrying_operands(one)])
    return next(near, found[0] if found else None)


def _before(flow: Flow, heads: Node, role: Role, roles: Roles) -> Iterator[Node]:
    """The nodes of this role before the output of an attention, the nearest first."""
    seen, todo = {heads}, [heads]
    while todo:
        for operand in flow.carrying_operands(todo.pop(0)):
            node = operand.node
            if node in seen:
                continue
            seen.add(node)
            if role in roles.get(node, ()):
                yield node
            elif node.target not in LINEAR_MAPS - CONTRACTIONS:
                todo.append(node)


def _leads_to(flow: Flow, node: Node, pattern: Node) -> bool:
    """Whether the node is computed of the pattern alone: scaled, masked, reshaped."""
    while node is not pattern:
        found = flow.carrying_operands(node)
        if not found or node.target in LINEAR_MAPS:
            return False
        node = found[0].node
    return True


def _before_transpose(flow: Flow, keys: Node) -> Node:
    """The keys [..., tokens, size], where the product of the scores reads them turned."""
    dims = len(shape(keys) or ())
    if keys.target is aten.transpose.int:
        arguments: tuple[Any, ...] = keys.args
        if {d % dims for d in arguments[1:]} == {dims - 2, dims - 1}:
            return flow.carrying_operands(keys)[0].node
    return keys
