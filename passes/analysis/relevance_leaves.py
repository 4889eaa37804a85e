"""Analysis: the inputs of a graph at which relevance is read."""

from __future__ import annotations

import re

from torch.fx import Graph, Node

from lxt_fx.base.nodes import is_float

_MASK = re.compile(r"masks?(?![a-z])(?!.*embeds)", re.I)


def relevance_leaves(graph: Graph) -> list[Node]:
    """Analysis: the float inputs without masks, and without `labels`, which only a loss reads. Every question of who
    carries relevance starts here: in `transform`, the fused graph, checkpoints, the certificate and the checks.

    A float input counts as a mask if its name has the word "mask" and there is a float input whose name has not. This is a
    guess by name: in `forward(x, soft_mask)` the input `soft_mask` gets no relevance, and under another name
    (`masked_values`) it does. What tokens are looked up as (`mask_tokens_embeds`) is no mask.
    """
    floats = [node for node in graph.nodes if node.op == "placeholder" and is_float(node)]
    return [node for node in floats if not _MASK.search(str(node.target)) and node.target != "labels"] or floats
