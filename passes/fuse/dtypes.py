"""Transform: what the model's code chose by the dtype of a value is right under autocast too: ops that take operands of one
dtype get them, and the lowest number of a dtype is that of the dtype which the value has in the call."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.fx import Graph, Interpreter, Node

from lxt_fx.base.nodes import arguments, is_float, shape
from lxt_fx.base.torch_internals import any_autocast, aten, schema_of
from lxt_fx.ops.aten_kinds import FILLS, ONE_DTYPE
from lxt_fx.ops.dtype_limits import is_limit, limit_of


def match_dtypes(graph: Graph) -> int:
    """Transform: what is written into another tensor is read in the dtype of that tensor. Models cast it there, and capture
    drops the cast, which changes nothing as long as no caller's autocast makes one of the two narrower. Where a model fills
    in `torch.finfo(x.dtype).min`, which is a constant of the graph, the number is that of the dtype of x in the call."""
    edits = 0
    for node in list(graph.nodes):
        edits += _match_limits(graph, node)
        written = arguments(node).get(ONE_DTYPE[node.target]) if node.target in ONE_DTYPE else None
        into = arguments(node).get("self") if written is not None else None
        if not (isinstance(written, Node) and isinstance(into, Node)) or written is into:
            continue
        if is_float(written) and is_float(into):
            with graph.inserting_before(node):
                cast = graph.call_function(aten.type_as.default, (written, into))
            cast.meta = dict(written.meta)
            node.replace_input_with(written, cast)
            edits += 1
    return edits


def _match_limits(graph: Graph, node: Node) -> int:
    if node.target not in FILLS:
        return 0
    filled = next((arg for arg in node.args if isinstance(arg, Node) and is_float(arg) and shape(arg) != ()), None)
    edits = 0
    for place, arg in enumerate(node.args):
        if filled is not None and (is_limit(arg) or (isinstance(arg, Node) and is_float(arg) and shape(arg) == ())):
            with graph.inserting_before(node):
                node.update_arg(place, graph.call_function(limit_of, (arg, filled)))
            edits += 1
    return edits


class DtypesMatched(Interpreter):
    """Runs a graph node by node as `match_dtypes` would make it."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a node."""
        if target in ONE_DTYPE and any_autocast():
            names = [argument.name for argument in schema_of(target).arguments]
            index = names.index(ONE_DTYPE[target])
            args = (*args[:index], args[index].type_as(args[0]), *args[index + 1 :])
        if target in FILLS and any_autocast():
            floats = [arg for arg in args if isinstance(arg, Tensor) and arg.is_floating_point()]
            filled = next((arg for arg in floats if arg.dim()), None)
            if filled is not None:
                args = tuple(limit_of(arg, filled) if is_limit(arg) or _is_scalar(arg) else arg for arg in args)
        return super().call_function(target, args, kwargs)


def _is_scalar(arg: Any) -> bool:
    return isinstance(arg, Tensor) and arg.is_floating_point() and not arg.dim()
