"""Transform: what a model's code computes twice is one value."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import module_path
from lxt_fx.ops.aten_kinds import MOVES, POINTWISE

_PURE = MOVES | POINTWISE


def merge_twins(gm: GraphModule) -> int:
    """Transform: of moves and elementwise ops that do the same to the same values in the same module, the first stays. So
    x[..., :n] * sigmoid(x[..., :n]) is a function of one value, however often its slice is written."""
    first: dict[Any, Node] = {}
    edits = 0
    for node in list(gm.graph.nodes):
        if node.op != "call_function" or node.target not in _PURE:
            continue
        twin = first.setdefault((node.target, module_path(node), _written(node.args), _written(node.kwargs)), node)
        if twin is not node:
            node.replace_all_uses_with(twin)
            gm.graph.erase_node(node)
            edits += 1
    return edits


def _written(argument: Any) -> Any:
    """What two arguments are compared by: 1, 1.0 and True are three numbers."""
    if isinstance(argument, dict):
        return tuple((name, _written(value)) for name, value in sorted(argument.items()))
    if isinstance(argument, (list, tuple)):
        return tuple(map(_written, argument))
    return argument if isinstance(argument, Node) else (type(argument), repr(argument))
