"""Whether a graph is valid for the sizes of its inputs: the guards of its capture."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from types import CodeType
from typing import Any

from torch import Tensor

from lxt_fx.base.errors import InputError

MOST_NODES = 20_000
"""How many operators, sizes and numbers a guard may have."""
MOST_BITS = 4096
"""How long a whole number may get while a guard is computed."""
DEEPEST = 200
"""How deep a guard may be nested."""

_FUNCTIONS = {"max": max, "min": min, "abs": abs}
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Div, ast.Pow)
_COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_SCOPE = {"__builtins__": {}, "math": math, **_FUNCTIONS}


def compiled_guard(guard: str) -> CodeType:
    """The code of a shape guard. Raises InputError unless it is only arithmetic on `L[...].size()[i]` and numbers, with
    max, min and the like, whose numbers stay short: the guards of a saved module come from a file."""
    try:
        tree = ast.parse(guard, mode="eval")
        if sum(1 for _ in ast.walk(tree)) > MOST_NODES:
            raise _Unknown(f"more than {MOST_NODES} parts")
        _bits(tree.body, DEEPEST)
        return compile(tree, "<guard>", "eval")
    except (_Unknown, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        shown = guard if len(guard) <= 200 else f"{guard[:200]}..."
        raise InputError(
            f"the condition {shown!a} on the sizes of inputs cannot be checked ({error}); without it, a call could "
            "silently give wrong numbers; capture with fixed sizes: transform(..., dynamic=False)"
        ) from None


def holds(code: CodeType, bound: Mapping[str, Any]) -> bool:
    """Whether a guard is true for these inputs. One that cannot be computed for them (a division by 0, an input without
    this size) does not hold."""
    try:
        return bool(eval(code, dict(_SCOPE), {"L": bound}))
    except (ArithmeticError, LookupError, AttributeError, TypeError, ValueError):
        return False


class _Unknown(Exception):
    """A part of a guard that is not computed."""


def _bits(node: ast.expr, depth: int) -> int:
    """How many bits the value of an expression may have. Raises _Unknown for what no guard needs."""
    if depth == 0:
        raise _Unknown("it is nested too deeply")
    found = _bits_of(node, depth - 1)
    if found > MOST_BITS:
        raise _Unknown(f"a number may get longer than {MOST_BITS} bits")
    return found


def _bits_of(node: ast.expr, depth: int) -> int:
    match node:
        case ast.Constant(value=bool()):
            return 1
        case ast.Constant(value=int() as number):
            return max(number.bit_length(), 1)
        case ast.Constant(value=float()):
            return 64
        case ast.BinOp(left=left, op=op, right=right) if isinstance(op, _ARITHMETIC):
            return _bits_of_operator(op, _bits(left, depth), _bits(right, depth), right)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() | ast.Not(), operand=operand):
            return _bits(operand, depth)
        case ast.BoolOp(values=values):
            return max(_bits(value, depth) for value in values)
        case ast.Compare(left=left, ops=ops, comparators=others) if all(isinstance(op, _COMPARISONS) for op in ops):
            return max(_bits(value, depth) for value in (left, *others))
        case ast.IfExp(test=test, body=body, orelse=other):
            return max(_bits(value, depth) for value in (test, body, other))
        case ast.Call(func=function, args=[_, *_] as given, keywords=[]) if _is_function(function):
            return max(_bits(value, depth) for value in given)
        case _ if _is_size(node):
            return 64
    raise _Unknown(f"it holds {ast.unparse(node)[:80]}")


def _bits_of_operator(op: ast.operator, left: int, right: int, exponent: ast.expr) -> int:
    if isinstance(op, ast.Mult):
        return left + right
    if not isinstance(op, ast.Pow):
        return max(left, right) + 1
    if isinstance(exponent, ast.Constant) and type(exponent.value) is int and 0 <= exponent.value <= MOST_BITS:
        return left * max(exponent.value, 1)
    raise _Unknown("a power whose exponent is no small number")


def _is_function(node: ast.expr) -> bool:
    match node:
        case ast.Name(id="max" | "min" | "abs"):
            return True
        case ast.Attribute(value=ast.Name(id="math"), attr="ceil" | "floor" | "trunc"):
            return True
    return False


def _is_size(node: ast.expr) -> bool:
    """Whether this is `L['x'].size()[0]`, `L['x']['y'].size()[0]`, `L['x'].dim()`."""
    match node:
        case ast.Subscript(
            value=ast.Call(func=ast.Attribute(value=of, attr="size"), args=[], keywords=[]),
            slice=ast.Constant(value=int()),
        ):
            return _is_input(of)
        case ast.Call(func=ast.Attribute(value=of, attr="dim"), args=[], keywords=[]):
            return _is_input(of)
    return False


def _is_input(node: ast.expr) -> bool:
    match node:
        case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str())):
            return True
        case ast.Subscript(value=inner, slice=ast.Constant(value=str() | int())):
            return _is_input(inner)
    return False


def inputs_read(guard: str) -> set[str]:
    """The names of the inputs that a guard reads."""
    found = set()
    for node in ast.walk(ast.parse(guard, mode="eval")):
        match node:
            case ast.Subscript(value=ast.Name(id="L"), slice=ast.Constant(value=str() as name)):
                found.add(name)
    return found


_SIZE = re.compile(r"L\['(\w+)'\]\.size\(\)\[(\d+)\]")


def reads_a_one(guard: str, bound: Mapping[str, Any]) -> bool:
    """Whether a size in the guard is 1. torch.export assumes that dynamic sizes are not 0 or 1, but graphs are exact at
    1."""
    sizes = ((bound.get(name), int(dim)) for name, dim in _SIZE.findall(guard))
    return any(x.shape[dim] == 1 for x, dim in sizes if isinstance(x, Tensor) and dim < x.dim())
