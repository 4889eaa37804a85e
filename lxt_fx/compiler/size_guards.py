"""Whether a graph is valid for the sizes of its inputs: the guards of its capture."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from types import CodeType
from typing import Any

from torch import Tensor

_GUARD_NODES = (
    ast.Expression, ast.Compare, ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.Call, ast.Attribute, ast.Subscript, ast.Name,
    ast.Constant, ast.operator, ast.cmpop, ast.boolop, ast.unaryop, ast.expr_context,
)  # fmt: skip


def compiled_guard(guard: str) -> CodeType | None:
    """The code of a shape guard. None unless it is only arithmetic on `L[...].size()[i]` with max and min: the guards of a
    saved module come from a file."""
    tree = ast.parse(guard, mode="eval")
    for node in ast.walk(tree):
        fine = isinstance(node, _GUARD_NODES)
        fine &= not isinstance(node, ast.Name) or node.id in ("L", "max", "min")
        fine &= not isinstance(node, ast.Attribute) or node.attr in ("size", "dim")
        if not fine:
            return None
    return compile(tree, "<guard>", "eval")


_SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")


def reads_a_one(guard: str, bound: Mapping[str, Any]) -> bool:
    """Whether a size in the guard is 1. torch.export assumes that dynamic sizes are not 0 or 1, but graphs are exact at
    1."""
    return any(bound[name].shape[int(dim)] == 1 for name, dim in _SIZE.findall(guard) if isinstance(bound[name], Tensor))
