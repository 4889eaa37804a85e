"""Transform: nodes that nothing reads are removed."""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.torch_internals import OpOverload, is_global_switch, schema_of
from lxt_fx.ops.expectations import EXPECTATIONS


def drop_dead(gm: GraphModule) -> int:
    """Transform: removes nodes that nothing reads, also ops that may draw random numbers (attention). Nodes with a side
    effect stay: in-place ops, grad-mode switches, the start and end of a traced `vmap`, and guards on the inputs
    (`lxt_fx::expect_*`)."""
    return drop_dead_nodes(gm.graph)


def drop_dead_nodes(graph: Graph) -> int:
    """The same for a graph that belongs to no module yet."""
    before = len(graph.nodes)
    graph.eliminate_dead_code(_acts)
    return before - len(graph.nodes)


def _acts(node: Node) -> bool:
    if node.op in ("placeholder", "output"):
        return True
    if node.op != "call_function":
        return False
    if isinstance(node.target, OpOverload):
        return schema_of(node.target).is_mutable or node.target in EXPECTATIONS
    return is_global_switch(node.target)
