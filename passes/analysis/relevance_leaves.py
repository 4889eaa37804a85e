"""Analysis: the inputs of a graph at which relevance is read."""

from __future__ import annotations

from torch.fx import Graph, Node

from lxt_fx.base.nodes import is_float


def relevance_leaves(graph: Graph) -> list[Node]:
    """Analysis: the float inputs without masks, and without `labels`, which only a loss reads. Every question of who
    carries relevance starts here: in `transform`, the fused graph, checkpoints, the certificate and the checks.

    A float input counts as a mask if its name holds "mask" and there is a float input whose name does not. This is a guess
    by name: in `forward(x, soft_mask)` the input `soft_mask` gets no relevance, and under another name it does.
    """
    floats = [node for node in graph.nodes if node.op == "placeholder" and is_float(node)]
    return [node for node in floats if "mask" not in str(node.target) and node.target != "labels"] or floats
