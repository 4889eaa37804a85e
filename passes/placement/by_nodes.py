"""A graph with streamed weights that runs node by node."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.fx import Graph, Interpreter

from lxt_fx.base.streamed_weight import StreamedWeight


@dataclass(frozen=True, slots=True)
class _Handle:
    """What an op saved of a weight: which weight, and which view of it."""

    weight: StreamedWeight
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


@contextmanager
def weights_read(interpreter: Interpreter) -> Iterator[None]:
    """Inside the block the interpreter reads each streamed weight when a node needs it. What an op saves of a weight for
    its backward is a handle, by which it is read again. What an op computes from a weight and saves (a weight in another
    dtype, its positive part) stays in memory until the backward."""
    alive: dict[int, tuple[StreamedWeight, weakref.ref[Tensor]]] = {}
    plain = interpreter.fetch_attr

    def fetch(target: str) -> Any:
        found = plain(target)
        if not isinstance(found, StreamedWeight):
            return found
        value = found.load()
        alive[value.untyped_storage().data_ptr()] = found, weakref.ref(value)
        return value

    def pack(tensor: Tensor) -> Tensor | _Handle:
        known = alive.get(tensor.untyped_storage().data_ptr())
        if known is None or known[1]() is None:
            return tensor
        return _Handle(known[0], tensor.size(), tensor.stride(), int(tensor.storage_offset()))

    def unpack(saved: Tensor | _Handle) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        return saved.weight.load().as_strided(saved.size, saved.stride, saved.offset)

    interpreter.fetch_attr = fetch  # type: ignore[method-assign]
    try:
        with saved_tensors_hooks(pack, unpack):
            yield
    finally:
        interpreter.fetch_attr = plain  # type: ignore[method-assign]


def read_early(graph: Graph) -> None:
    """Transform: puts the nodes that name tensors behind the inputs, where what fuses ops finds them."""
    first = next((node for node in graph.nodes if node.op not in ("placeholder", "get_attr")), None)
    if first is None:
        return
    for node in graph.find_nodes(op="get_attr"):
        first.prepend(node)


def read_late(graph: Graph) -> None:
    """Transform: puts each node that names a tensor before its first reader, so that what runs node by node reads one
    weight after another."""
    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.find_nodes(op="get_attr"):
        if node.users:
            min(node.users, key=place.__getitem__).prepend(node)
