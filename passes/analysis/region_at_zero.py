"""Analysis: value and slope at 0 of a function that is written out in several pointwise nodes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import ALONG, CONTRACTIONS, LOOK_UP, ONE_HOT, REDUCED, REDUCTIONS


def region_at_zero(gm: GraphModule, root: Node, origin: Node, members: frozenset[Node]) -> tuple[float, float] | str:
    """Analysis: f(0) and f'(0) of the function that computes `root` from `origin`, measured by running it at 0 in float64.
    Where it is not one smooth function of each element, the result is a string that says why."""
    x = torch.zeros((), dtype=torch.float64, device="cpu", requires_grad=True)  # also where "meta" is the default
    values: dict[Node, Any] = {origin: x}
    try:
        with torch.enable_grad():
            y = _run(gm, root, members, values)
            if y.dim() > 0:
                raise _NotOneFunction("a constant of it differs from element to element")
            (slope,) = torch.autograd.grad(y, x)
    except _NotOneFunction as reason:
        return str(reason)
    at_zero = y.item(), slope.item()
    return (
        at_zero
        if all(map(math.isfinite, at_zero))
        else f"its value {at_zero[0]:.3g} or slope {at_zero[1]:.3g} at 0 is not finite"
    )


_ACROSS = REDUCTIONS | REDUCED | ALONG | ONE_HOT | LOOK_UP | CONTRACTIONS
"""Ops whose output has an element that depends on several of the input."""


class _NotOneFunction(Exception):
    """The region reads a constant that differs from element to element, or what several elements decide."""


def _run(gm: GraphModule, node: Node, members: frozenset[Node], values: dict[Node, Any]) -> Any:
    if node in values:
        return values[node]
    if node.op == "get_attr":
        values[node] = _one_number(gm, node)
    elif node in members or node.op == "call_function":
        if node.target in _ACROSS:
            raise _NotOneFunction(f"%{node.name} is computed from several elements")
        args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), lambda n: _run(gm, n, members, values))
        is_cast = node.target is aten.to.dtype
        try:
            values[node] = args[0] if is_cast else node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception as error:  # it reads a size or a dim, which one number has not
            raise _NotOneFunction(f"%{node.name} cannot be computed from one number") from error
    else:
        raise _NotOneFunction(f"%{node.name} is an input")
    return values[node]


def _one_number(gm: GraphModule, node: Node) -> Tensor:
    constant: Any = gm
    for part in str(node.target).split("."):
        constant = getattr(constant, part)
    if constant.numel() != 1:
        raise _NotOneFunction(f"%{node.name} is not one number")
    if constant.is_meta:
        raise _NotOneFunction(f"%{node.name} is on the meta device and has no value")
    number: Tensor = constant.detach().reshape(())
    return number.double() if number.is_floating_point() else number
