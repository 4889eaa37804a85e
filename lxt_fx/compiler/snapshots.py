"""A snapshot of the graph after each step, for the printed graph."""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.torch_internals import aten, copied_graph
from lxt_fx.compiler.record import Stage
from lxt_fx.ops import fused
from lxt_fx.passes.analysis.find_groups import Groups
from lxt_fx.passes.analysis.mark_flow import Flow, mark_flow
from lxt_fx.passes.rewrite.rewrite import Rewritten


def plain_stage(name: str, gm: GraphModule, flow: Flow) -> Stage:
    """A copy of the graph, and which nodes carry relevance."""
    return Stage(name, copied_graph(gm.graph), _names(flow.carrying))


def group_stage(before: Stage, groups: Groups) -> Stage:
    """The canonical graph with the groups that were found in it."""
    return Stage("groups", before.graph, before.carrying, labels=_group_labels(groups))


def rule_stage(name: str, gm: GraphModule, flow: Flow, rewritten: Rewritten) -> Stage:
    """A copy of the rewritten graph, with the rule of each node."""
    now = mark_flow(gm, flow.leaves)
    return Stage(name, copied_graph(gm.graph), _names(now.carrying), rewritten.rules, inserted=rewritten.inserted)


def fused_stage(graph: Graph, lowered: Stage) -> Stage:
    """The graph that a plain call runs. A fused node has the name and the rule of the last of the nodes that it
    replaces."""
    new = {node.name for node in graph.nodes if node.target in (fused.linears, fused.share, aten.type_as.default)}
    names = {node.name for node in graph.nodes}
    carrying = (lowered.carrying & names) | new
    return Stage("fused", graph, carrying, lowered.rules, inserted=(lowered.inserted & names) | new)


def _group_labels(groups: Groups) -> dict[str, str]:
    labels = {node.name: ", ".join(sorted(role.value for role in roles)) for node, roles in groups.roles.items()}
    for root, group in groups.by_root.items():
        for member in group.members:
            labels.setdefault(member.name, f"part of %{root.name}")
        labels[root.name] = str(group.kind)
    return labels


def _names(nodes: frozenset[Node]) -> frozenset[str]:
    return frozenset(node.name for node in nodes)
