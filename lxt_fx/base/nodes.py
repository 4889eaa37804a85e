"""Facts about a torch.fx node: its operands by name, dtype and shape of its value, the module and source line it came
from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cache
from typing import Any

import torch
from torch.fx import Node

from lxt_fx.base.torch_internals import OpOverload, schema_of

_SOURCE = re.compile(r'File "([^"]+)", line (\d+), in')


@dataclass(frozen=True, slots=True)
class Operand:
    """A node that another node reads, and the name of that argument in the op's schema; `tensors[1]` is an item of a
    list."""

    name: str
    node: Node


@dataclass(frozen=True, slots=True)
class TensorType:
    """All that a loaded module knows of a value: dtype and shape, with symbolic sizes as text."""

    dtype: torch.dtype
    shape: tuple[Any, ...]

    def is_floating_point(self) -> bool:
        """As on a tensor."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """As on a tensor."""
        return self.dtype.is_complex


@dataclass(frozen=True, slots=True)
class SourceLine:
    """The line of the model's code that made a node."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path.rsplit('/', 1)[-1]}:{self.line}"


def nodes_in(value: Any) -> Iterator[Node]:
    """Every node inside an argument, also inside lists, tuples and dicts."""
    if isinstance(value, Node):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from nodes_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from nodes_in(item)


def arguments(node: Node) -> dict[str, Any]:
    """The node's arguments by schema name, without defaults. A function that has no schema names them arg0, arg1, ..."""
    if isinstance(node.target, OpOverload):
        names = _schema_names(node.target)
    else:
        names = tuple(f"arg{index}" for index in range(len(node.args)))
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


@cache
def _schema_names(op: OpOverload) -> tuple[str, ...]:
    """Cached by op: every analysis needs the names at every node, and torch makes new objects each time."""
    return tuple(argument.name for argument in schema_of(op).arguments)


def operands(node: Node) -> list[Operand]:
    """The nodes that a node reads, in order."""
    return [operand for name, value in arguments(node).items() for operand in _operands(name, value)]


def _operands(name: str, value: Any) -> Iterator[Operand]:
    if isinstance(value, Node):
        yield Operand(name, value)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _operands(f"{name}[{index}]", item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _operands(name, item)


def computed_from(node: Node) -> set[Node]:
    """The node and all that it is computed from."""
    seen, todo = {node}, [node]
    while todo:
        new = [operand for operand in todo.pop().all_input_nodes if operand not in seen]
        seen.update(new)
        todo += new
    return seen


def with_nodes(found: Any, change: Callable[[Any], Any]) -> Any:
    """A result of an analysis with each of its nodes changed: in dataclasses, tuples, sets and mappings. What is no node
    stays, and so does what `change` returns as it was given."""
    if is_dataclass(found) and not isinstance(found, type):
        changed = {each.name: with_nodes(getattr(found, each.name), change) for each in fields(found) if each.init}
        return replace(found, **changed)
    if isinstance(found, (tuple, frozenset)):
        return type(found)(with_nodes(each, change) for each in found)
    if isinstance(found, Mapping):
        return {with_nodes(key, change): with_nodes(each, change) for key, each in found.items()}
    return change(found)


def value(node: Node) -> Any:
    """The fake tensor (or tuple, or number) that capture recorded for the node, or None."""
    return node.meta.get("val")


def is_float(node: Node) -> bool:
    """Whether the value is a floating-point or complex tensor, or a tuple that holds one."""
    found = value(node)
    if isinstance(found, (list, tuple)):
        return any(_is_float(item) for item in found)
    return _is_float(found)


def _is_float(found: Any) -> bool:
    return isinstance(found, (torch.Tensor, TensorType)) and (found.is_floating_point() or found.is_complex())


def shape(node: Node) -> tuple[Any, ...] | None:
    """The value's shape, which may have symbolic sizes; None if the value is no single tensor."""
    found = value(node)
    return tuple(found.shape) if isinstance(found, (torch.Tensor, TensorType)) else None


def written_shape(node: Node) -> tuple[str, ...] | None:
    """The shape as text. So symbolic sizes can be compared without a new guard, also in a loaded module."""
    found = shape(node)
    return None if found is None else tuple(map(str, found))


def dtype(node: Node) -> torch.dtype | None:
    """The value's dtype; None if the value is no single tensor."""
    return getattr(value(node), "dtype", None)


def fixed_size(size: Any) -> int | None:
    """The size as a number, also if capture gave it a symbol and fixed that later; None for a free size."""
    if isinstance(size, int):
        return size
    expr = size.node.expr if isinstance(size, torch.SymInt) else None
    return int(expr) if expr is not None and expr.is_number else None


def module_stack(node: Node) -> list[tuple[str, str]]:
    """(module path, class name) from the outermost module to the innermost."""
    return [
        (path.split("@")[0], str(name if isinstance(name, str) else name.__qualname__))
        for path, name in (node.meta.get("nn_module_stack") or {}).values()
    ]


def module_path(node: Node) -> str:
    """Path of the innermost module that the node belongs to, such as `model.layers.0.mlp`; empty at the root."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def source_line(node: Node) -> SourceLine | None:
    """The innermost line of the node's stack trace outside of torch.nn and of what stands in for a layer during capture, if
    there is one; else the innermost line."""
    frames = [SourceLine(path, int(line)) for path, line in _SOURCE.findall(node.meta.get("stack_trace") or "")]
    own = [frame for frame in frames if not any(part in frame.path for part in ("/torch/nn/", "/passes/capture/"))]
    chosen = own or frames
    return chosen[-1] if chosen else None
