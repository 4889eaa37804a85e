"""Questions one asks of a torch.fx node: its operands by name, its value's dtype, the module and line it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.fx import Node

from lxt_fx.base.torch_internals import OpOverload, schema_of

_SOURCE = re.compile(r'File "([^"]+)", line (\d+), in')


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that a node reads, under the name its op's schema gives that argument; `tensors[1]` is an item of a list."""

    name: str
    node: Node


@dataclass(frozen=True, slots=True)
class TensorType:
    """What a loaded module knows of a value: its dtype and its shape, symbolic sizes as text."""

    dtype: torch.dtype
    shape: tuple[Any, ...]

    def is_floating_point(self) -> bool:
        """As on a tensor."""
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        """As on a tensor."""
        return self.dtype.is_complex


@dataclass(frozen=True, slots=True)
class Source:
    """The line of the model that made a node."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path.rsplit('/', 1)[-1]}:{self.line}"


def nodes_in(value: Any) -> Iterator[Node]:
    """Every node inside an argument, lists and tuples looked through."""
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
    """Kept by op: every analysis asks for them at every node, and torch makes new objects each time."""
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
    """The value's shape (symbolic sizes included), or None where it is no single tensor."""
    found = value(node)
    return tuple(found.shape) if isinstance(found, (torch.Tensor, TensorType)) else None


def written_shape(node: Node) -> tuple[str, ...] | None:
    """The shape as text: symbolic sizes are compared without a guard on them, also where they are known as text only."""
    found = shape(node)
    return None if found is None else tuple(map(str, found))


def dtype(node: Node) -> torch.dtype | None:
    """The value's dtype, or None where it is no single tensor."""
    return getattr(value(node), "dtype", None)


def fixed_size(size: Any) -> int | None:
    """The number that a size is, also where capture found it out later than it gave it a symbol; None for a free one."""
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
    """Path of the innermost module that made the node, `model.layers.0.mlp`; empty at the root."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def source(node: Node) -> Source | None:
    """The innermost line of the model's code on the node's stack trace, torch's own files left out where possible."""
    frames = [Source(path, int(line)) for path, line in _SOURCE.findall(node.meta.get("stack_trace") or "")]
    own = [frame for frame in frames if "/torch/nn/" not in frame.path]
    chosen = own or frames
    return chosen[-1] if chosen else None
