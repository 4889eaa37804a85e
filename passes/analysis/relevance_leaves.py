"""Analysis: the inputs of a graph that relevance is read at."""

from __future__ import annotations

from torch.fx import Graph, Node

from lxt_fx.base.nodes import is_float


def relevance_leaves(graph: Graph) -> list[Node]:
    """Analysis: the float inputs, but for masks that are given as floats beside others. Everything that asks who carries
    relevance starts here: `transform`, the fused graph, checkpoints, the certificate and the checks.

    That an input is a mask is a guess by its name: it holds "mask", and another float input does not. So the features of a
    net `forward(x, soft_mask)` that come as `soft_mask` get no relevance; name that input otherwise and they do.
    """
    floats = [node for node in graph.nodes if node.op == "placeholder" and is_float(node)]
    return [node for node in floats if "mask" not in str(node.target)] or floats
