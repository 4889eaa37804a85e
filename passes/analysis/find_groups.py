"""Analysis: groups of nodes that a rule treats as one op (norms, activations written out in several ops)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import shape
from lxt_fx.base.pattern import Found, Op, Part, exactly, match, number
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import CURVED, MOVES, POINTWISE, POINTWISE_LINEAR, PRODUCTS, REDUCTIONS
from lxt_fx.passes.analysis.find_gates import find_gates
from lxt_fx.passes.analysis.find_recurrences import find_recurrences
from lxt_fx.passes.analysis.find_roles import find_roles
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.passes.analysis.region_at_zero import region_at_zero
from lxt_fx.rule_table.rule import GroupKind, Role

_rsqrt, _mean = Op(aten.rsqrt.default), Op(aten.mean.dim)

_RESHAPES_IN_STATISTIC = frozenset({aten.expand.default, aten.expand_as.default, aten.unsqueeze.default, aten.view.default})
_LINEAR = POINTWISE_LINEAR | PRODUCTS | MOVES | {aten.mean.dim, aten.sum.dim_IntList, aten.cumsum.default}


def _rms_norm(x: Part, dims: Part, eps: Part) -> Part:
    """Matched exactly as written: only then does the fused op compute the same bits."""
    return x * _rsqrt(_mean(x**2, dims, keepdim=True) + eps)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Nodes that compute `root` from the one value `origin`. `members` are the nodes between them, with the root. For a
    norm, `statistic` is the operand of the root that is held constant."""

    kind: GroupKind
    root: Node
    origin: Node
    members: frozenset[Node]
    arguments: Mapping[str, Any]
    statistic: Node | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups by root, the roles of each node, and for each product the operand that is a parameter of a recurrence and the
    operands that are gates."""

    by_root: Mapping[Node, Group]
    roles: Mapping[Node, frozenset[Role]]
    parameters: Mapping[Node, tuple[str, ...]]
    gates: Mapping[Node, tuple[str, ...]]


def find_groups(gm: GraphModule, flow: Flow) -> Groups:
    """Analysis: norms and elementwise regions, found by immediate dominators in the graph of carrying values, and the roles
    of nodes in attentions, routers and the network."""
    graph, root = _carrying_graph(gm, flow)
    dominators = nx.immediate_dominators(graph, root)
    by_root: dict[Node, Group] = {}
    for node in gm.graph.nodes:
        if node not in flow.carrying or node.target not in POINTWISE or len(flow.carrying_operands(node)) < 2:
            continue
        origin = dominators.get(node)
        if not isinstance(origin, Node):
            continue
        group = _norm(flow, node, origin) or _elementwise(gm, flow, node, origin)
        if group is not None:
            by_root[node] = group
    routers = {node for node, group in by_root.items() if _divides_by_sum(group)}
    inside = frozenset().union(*(group.members for group in by_root.values()))
    recurrences = find_recurrences(gm, flow, inside)
    roles = find_roles(gm, flow, routers, recurrences.recurrent)
    written_out = {root for root, group in by_root.items() if _is_activation(group)}
    scaled = {root: group.arguments["self"] for root, group in by_root.items()}
    norms = {root for root, group in by_root.items() if group.statistic is not None}
    return Groups(by_root, roles, recurrences.parameters, find_gates(gm, flow, written_out, scaled, norms))


def _carrying_graph(gm: GraphModule, flow: Flow) -> tuple[nx.DiGraph, object]:
    root = object()
    graph: nx.DiGraph = nx.DiGraph()
    graph.add_edges_from((root, leaf) for leaf in flow.leaves if leaf in flow.carrying)
    for node in gm.graph.nodes:
        if node in flow.carrying:
            graph.add_edges_from((operand.node, node) for operand in flow.carrying_operands(node))
    graph.add_node(root)
    return graph, root


def _between(flow: Flow, node: Node, origin: Node, allowed: frozenset[Any]) -> frozenset[Node] | None:
    """Carrying nodes between `origin` (excluded) and `node` (included), or None if one of them is not an allowed op."""
    found: set[Node] = set()
    todo = [node]
    while todo:
        current = todo.pop()
        if current is origin or current in found:
            continue
        if current.target not in allowed:
            return None
        found.add(current)
        todo.extend(operand.node for operand in flow.carrying_operands(current))
    return frozenset(found)


def _elementwise(gm: GraphModule, flow: Flow, node: Node, origin: Node) -> Group | None:
    """y = f(x) of one value x, written in several pointwise ops: 0.5 x (1 + tanh(...)), x sigmoid(1.702 x)."""
    members = _between(flow, node, origin, POINTWISE)
    if members is None or shape(node) != shape(origin):
        return None
    if all(member.target in POINTWISE_LINEAR for member in members):
        return None
    at_zero = region_at_zero(gm, node, origin, members)
    if isinstance(at_zero, str):
        return None
    arguments = {"self": origin, "value": node, "intercept": at_zero[0], "slope": at_zero[1]}
    return Group(GroupKind.ELEMENTWISE, node, origin, members, arguments)


def _is_activation(group: Group) -> bool:
    """Whether the group is more than sums, products and powers of its value."""
    return group.kind is GroupKind.ELEMENTWISE and any(m.target in CURVED for m in group.members)


def _norm(flow: Flow, node: Node, origin: Node) -> Group | None:
    """x * s or x / s, where s is computed from x by a reduction (mean, sum, norm) and x reaches the product linearly."""
    if node.target not in PRODUCTS:
        return None
    carrying = [operand.node for operand in flow.carrying_operands(node)]
    pairs = [tuple(carrying)] if node.target is aten.div.Tensor else [tuple(carrying), tuple(reversed(carrying))]
    for scaled, statistic in pairs:
        linear = _between(flow, scaled, origin, _LINEAR)
        region = _between(flow, statistic, origin, POINTWISE | REDUCTIONS | _RESHAPES_IN_STATISTIC)
        if linear is None or region is None or not _is_linear(flow, linear):
            continue
        if any(member.target in REDUCTIONS for member in region - linear):
            return _norm_group(flow, node, origin, scaled, statistic, region - linear)
    return None


def _is_linear(flow: Flow, members: frozenset[Node]) -> bool:
    return all(member.target not in PRODUCTS or len(flow.carrying_operands(member)) == 1 for member in members)


def _norm_group(flow: Flow, node: Node, origin: Node, scaled: Node, statistic: Node, region: frozenset[Node]) -> Group:
    rms = match(_rms_norm, node, x=exactly(scaled), eps=number)
    if isinstance(rms, Found):
        arguments = {"self": scaled, "dims": rms["dims"], "eps": rms["eps"]}
        return Group(GroupKind.RMS_NORM, node, scaled, region | {node}, arguments, statistic)
    kind = GroupKind.NORMALIZE if node.target is aten.mul.Tensor else GroupKind.NORMALIZE_QUOTIENT
    return Group(kind, node, origin, region | {node}, {"self": scaled, "statistic": statistic}, statistic)


def _divides_by_sum(group: Group) -> bool:
    """w / sum(w), which normalises routing weights; scaling w does not change it."""
    sums = {aten.sum.dim_IntList, aten.sum.default, aten.add.Tensor, aten.clamp_min.default, *_RESHAPES_IN_STATISTIC}
    region = group.members - {group.root}
    return group.kind is GroupKind.NORMALIZE_QUOTIENT and all(member.target in sums for member in region)
