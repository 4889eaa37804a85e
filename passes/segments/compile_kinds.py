"""Compiles each kind of segment once: layers that are the same graph with other weights share one compiled function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from lxt_fx.passes.segments.by_segments import Segment, forward_of


class CompiledKinds:
    """Makes compiled functions of segments, one for each kind. `options` are those of `torch.compile`. The functions are
    compiled when they are first called."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self.kinds: dict[Any, Callable[..., Any]] = {}

    def __call__(self, segment: Segment) -> Callable[..., Any]:
        """The function of a segment: that of an earlier one of its kind, or a new one. Its name in the forward is that of
        the segment."""
        graph = renamed(segment.graph)
        code = graph.python_code(root_module="self")
        key = code.src, tuple(code.globals.items())
        if key not in self.kinds:
            self.kinds[key] = torch.compile(forward_of(graph), **self.options)
        compiled = self.kinds[key]

        def called(*values: Any) -> Any:
            return compiled(None, *values)

        called.__name__ = f"segment_{segment.index}"
        return called

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledKinds:
        return CompiledKinds(self.options)  # a compiled function belongs to its module


def renamed(graph: Graph) -> Graph:
    """The graph with names that only say where a node stands."""
    copy = Graph()
    copies: dict[Node, Node] = {}
    for place, node in enumerate(graph.nodes):
        if node.op == "placeholder":
            copies[node] = copy.placeholder(f"read_{place}")
        elif node.op == "output":
            copy.output(torch.fx.map_arg(node.args[0], copies.__getitem__))
        else:
            arguments = torch.fx.map_arg((node.args, node.kwargs), copies.__getitem__)
            copies[node] = copy.create_node(node.op, node.target, *arguments, name=f"value_{place}")
    return copy
