"""A module's parameters, read once a call.

torch.fx writes `self.encoder.layer.0.attention.query.weight` for each parameter, and each dot is a call of Python in torch:
4 microseconds a parameter, half a millisecond for a small BERT. Here the tree of modules is walked once for all of them.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any

from torch import nn
from torch.fx import Graph, Node, map_arg

from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.torch_internals import copy_io
from lxt_fx.passes.segments.by_segments import forward_of

READER, QUICK = "_attribute_reader", "_quick_forward"
"""The attributes of a module that hold its reader, and the forward that calls it."""


class AttributeReader:
    """Reads attributes of a module by their paths. Nothing is remembered but the paths, so what is replaced in the module
    is seen."""

    def __init__(self, module: nn.Module, paths: Iterable[str]) -> None:
        self.module = weakref.ref(module)
        self.steps: list[tuple[int, str]] = []
        """(number of the parent, name) of each submodule; the module itself is number 0, and the first step makes 1."""
        self.ends: list[tuple[int, str]] = []
        """(number of the module, name) of each attribute."""
        numbers = {"": 0}
        for path in paths:
            *parents, name = path.split(".")
            prefix = ""
            for parent in parents:
                number, prefix = numbers[prefix], f"{prefix}.{parent}" if prefix else parent
                if prefix not in numbers:
                    numbers[prefix] = len(numbers)
                    self.steps.append((number, parent))
            self.ends.append((numbers[prefix], name))

    def read(self) -> list[Any]:
        """The attributes, in the order of their paths."""
        modules: list[Any] = [self.module()]
        for parent, name in self.steps:
            modules.append(_submodule(modules[parent], name))
        return [_attribute(modules[number], name) for number, name in self.ends]


def _submodule(module: Any, name: str) -> Any:
    found = module.__dict__["_modules"].get(name)
    return getattr(module, name) if found is None else found


def _attribute(module: Any, name: str) -> Any:
    found = module.__dict__["_parameters"].get(name)
    return getattr(module, name) if found is None else found


def read_attributes(reader: AttributeReader) -> list[Any]:
    """What a graph calls for all its attributes."""
    return reader.read()


def reading_once(graph: Graph, module: nn.Module) -> Graph:
    """A copy of the graph that reads all attributes at its start, by a reader that the module gets."""
    wanted = [node for node in graph.nodes if node.op == "get_attr"]
    paths = list(dict.fromkeys(str(node.target) for node in wanted))
    module.__dict__[READER] = AttributeReader(module, paths)
    quick = Graph()
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            copies[node] = quick.node_copy(node)
    found = quick.call_function(read_attributes, (quick.create_node("get_attr", READER),))
    items = {path: quick.call_function(operator.getitem, (found, index)) for index, path in enumerate(paths)}
    for node in graph.nodes:
        if node.op == "get_attr":
            copies[node] = items[str(node.target)]
        elif node.op == "output":
            quick.output(map_arg(node.args[0], copies.__getitem__))
        elif node.op != "placeholder":
            copies[node] = quick.node_copy(node, copies.__getitem__)
    copy_io(graph, quick)
    return quick


def quick_forward(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of an explained module that reads its attributes once. It is made at the first call. torch's compiler
    reads the module in its own way, and gets the compiled forward of torch.fx."""

    @wraps(compiled)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            return compiled(self, *args, **kwargs)
        quick = self.__dict__.get(QUICK)
        if quick is None:
            quick = self.__dict__[QUICK] = forward_of(reading_once(self.fused, self))
        return quick(self, *args, **kwargs)

    return forward
