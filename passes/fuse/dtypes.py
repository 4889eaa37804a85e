"""Transform: ops that take operands of one dtype only get them under autocast too."""

from __future__ import annotations

from typing import Any

from torch.fx import Graph, Interpreter, Node

from lxt_fx.base.nodes import arguments, is_float
from lxt_fx.base.torch_internals import any_autocast, aten, schema_of
from lxt_fx.ops.aten_kinds import ONE_DTYPE


def match_dtypes(graph: Graph) -> int:
    """Transform: what is written into another tensor is read in the dtype of that tensor. Models cast it there, and capture
    drops the cast, which changes nothing as long as no caller's autocast makes one of the two narrower."""
    edits = 0
    for node in list(graph.nodes):
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


class DtypesMatched(Interpreter):
    """Runs a graph node by node as `match_dtypes` would make it."""

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of a node."""
        if target in ONE_DTYPE and any_autocast():
            names = [argument.name for argument in schema_of(target).arguments]
            index = names.index(ONE_DTYPE[target])
            args = (*args[:index], args[index].type_as(args[0]), *args[index + 1 :])
        return super().call_function(target, args, kwargs)
