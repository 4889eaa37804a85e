"""Analysis: regions of several nodes that a rule treats as one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import networkx as nx
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import shape
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import MOVES, POINTWISE, POINTWISE_LINEAR, PRODUCTS, REDUCTIONS
from lxt_fx.passes.analysis.find_recurrences import find_recurrences
from lxt_fx.passes.analysis.find_roles import find_roles
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.passes.analysis.region_at_zero import region_at_zero
from lxt_fx.rule_table.rule import GroupKind, Role

_RESHAPES_IN_STATISTIC = frozenset({aten.expand.default, aten.expand_as.default, aten.unsqueeze.default, aten.view.default})
_LINEAR = POINTWISE_LINEAR | PRODUCTS | MOVES | {aten.mean.dim, aten.sum.dim_IntList, aten.cumsum.default}


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """`root` gives the value of the region, `origin` is the one value that all of it is computed from, `members` are the
    nodes between them, root included. For a norm, `statistic` is the operand of the root that is held constant."""

    kind: GroupKind
    root: Node
    origin: Node
    members: frozenset[Node]
    arguments: Mapping[str, Any]
    statistic: Node | None = None


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups by root, the parts that nodes play by node, and by product the operand that is a parameter of a recurrence."""

    by_root: Mapping[Node, Group]
    roles: Mapping[Node, frozenset[Role]]
    parameters: Mapping[Node, tuple[str, ...]]


def find_groups(gm: GraphModule, flow: Flow) -> Groups:
    """Analysis: norms and elementwise regions, both by immediate dominators in the graph of carrying values, and the parts
    that nodes play in attentions, routers and the network."""
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
    return Groups(by_root, find_roles(gm, flow, routers, recurrences.recurrent), recurrences.parameters)


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
    """Carrying nodes from `origin` (left out) to `node` (included), or None if one of them is not an allowed op."""
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
    """y = f(x) for one value x, written in several pointwise ops: 0.5 x (1 + tanh(...)), x sigmoid(1.702 x)."""
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


def _norm(flow: Flow, node: Node, origin: Node) -> Group | None:
    """x * s or x / s where s is computed from x through a reduction (mean, sum, norm) and x itself arrives linearly."""
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
    rms = _rms_arguments(node, scaled, statistic)
    if rms is not None:
        return Group(GroupKind.RMS_NORM, node, scaled, region | {node}, rms, statistic)
    kind = GroupKind.NORMALIZE if node.target is aten.mul.Tensor else GroupKind.NORMALIZE_QUOTIENT
    return Group(kind, node, origin, region | {node}, {"self": scaled, "statistic": statistic}, statistic)


def _rms_arguments(node: Node, scaled: Node, statistic: Node) -> dict[str, Any] | None:
    """x * rsqrt(mean(x^2, dims) + eps), to the letter: the fused op then computes the same bits."""
    if node.target is not aten.mul.Tensor or statistic.target is not aten.rsqrt.default:
        return None
    added = statistic.args[0]
    if not isinstance(added, Node) or added.target is not aten.add.Tensor or not isinstance(added.args[1], float):
        return None
    mean = added.args[0]
    if not isinstance(mean, Node) or mean.target is not aten.mean.dim or list(mean.args[2:]) != [True] or mean.kwargs:
        return None
    square = mean.args[0]
    if not isinstance(square, Node) or square.target is not aten.pow.Tensor_Scalar or square.args != (scaled, 2):
        return None
    return {"self": scaled, "dims": mean.args[1], "eps": added.args[1]}


def _divides_by_sum(group: Group) -> bool:
    """w / sum(w), which normalises routing weights and has degree 0."""
    sums = {aten.sum.dim_IntList, aten.sum.default, aten.add.Tensor, aten.clamp_min.default, *_RESHAPES_IN_STATISTIC}
    region = group.members - {group.root}
    return group.kind is GroupKind.NORMALIZE_QUOTIENT and all(member.target in sums for member in region)
