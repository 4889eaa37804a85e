"""Transform: a value that a part on another device reads is moved there by a node of the graph."""

from __future__ import annotations

from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate

from lxt_fx.base.nodes import TensorType, module_stack, value
from lxt_fx.base.streamed_weight import device_of
from lxt_fx.base.torch_internals import rename
from lxt_fx.ops.moves import to_device

Devices = Mapping[str, torch.device]
"""Where each tensor of a module lies, by path."""


def devices_of(owner: nn.Module, graph: Graph, known: Mapping[int, torch.device]) -> dict[str, torch.device]:
    """Where the tensors that a graph reads are computed with: where it is `known`, by identity, or where they lie."""
    names = dict.fromkeys(str(node.target) for node in graph.find_nodes(op="get_attr"))
    found = {name: attrgetter(name)(owner) for name in names}
    tensors = {name: tensor for name, tensor in found.items() if isinstance(tensor, Tensor) and tensor.dim()}
    return {name: known[id(x)] if id(x) in known else device_of(x) for name, x in tensors.items()}


def insert_moves(graph: Graph, devices: Devices, inputs: torch.device) -> int:
    """Transform: an op computes on the device of the weights of its module, the innermost one that has some. Where that has
    weights on several devices, it computes where the weights lie that it reads, or without any where the last value that it
    reads was made. What it reads from elsewhere is moved, once for each device. Inputs and outputs are on the device
    `inputs`. Returns how many moves were inserted."""
    return _Moves(graph, devices, inputs).insert()


def drop_moves(graph: Graph) -> int:
    """Transform: takes the moves out again. Returns how many there were."""
    moves = list(graph.find_nodes(op="call_function", target=to_device))
    for node in moves:
        node.replace_all_uses_with(node.all_input_nodes[0])
        graph.erase_node(node)
    return len(moves)


class _Moves:
    """The device of each node, and the moves that there are."""

    def __init__(self, graph: Graph, devices: Devices, inputs: torch.device) -> None:
        self.graph, self.devices, self.inputs = graph, devices, inputs
        self.of: dict[Node, torch.device] = {}
        self.weights: set[Node] = set()
        self.moved: dict[tuple[Node, torch.device], Node] = {}
        self.modules = _of_modules(devices)
        self.order = {node: place for place, node in enumerate(graph.nodes)}

    def insert(self) -> int:
        """Goes through the graph in its order."""
        for node in list(self.graph.nodes):
            reads = sorted((read for read in node.all_input_nodes if read in self.of), key=self.order.__getitem__)
            if node.op == "placeholder" and _is_tensor(value(node)):
                self.of[node] = self.inputs
            elif node.op == "get_attr" and str(node.target) in self.devices:
                self.of[node] = self.devices[str(node.target)]
                self.weights.add(node)
            elif node.op == "output":
                self._read_on(node, reads, self.inputs)
            elif node.op == "call_function" and _is_tensor(value(node)):
                self._place(node, reads)
        return len(self.moved)

    def _place(self, node: Node, reads: list[Node]) -> None:
        own = [read for read in reads if read in self.weights]
        if reads and len(own) == len(reads):
            self.weights.add(node)
        self.of[node] = device = self._device(node, reads, own)
        if device != self.inputs:
            node.args, node.kwargs = _made_on(node.args, device), _made_on(node.kwargs, device)
        self._read_on(node, reads, device)

    def _device(self, node: Node, reads: list[Node], own: list[Node]) -> torch.device:
        paths = (path for path, _ in reversed(module_stack(node)))
        found = next((self.modules[path] for path in paths if path in self.modules), frozenset[torch.device]())
        if len(found) == 1:
            return next(iter(found))
        return self.of[own[0]] if own else self.of[reads[-1]] if reads else self.inputs

    def _read_on(self, node: Node, reads: list[Node], device: torch.device) -> None:
        for read in reads:
            if self.of[read] != device:
                node.replace_input_with(read, self._moved(read, device, node))

    def _moved(self, read: Node, device: torch.device, reader: Node) -> Node:
        if (read, device) not in self.moved:
            with self.graph.inserting_before(reader):
                move = self.graph.call_function(to_device, (read, device))
            rename(move, "to_device")
            where = read if reader.op == "output" else reader
            move.meta = {**where.meta, "val": value(read)}
            self.moved[read, device], self.of[move] = move, device
        return self.moved[read, device]


def _of_modules(devices: Devices) -> dict[str, frozenset[torch.device]]:
    """The devices of the weights below each module path that has some."""
    found: dict[str, set[torch.device]] = {}
    for name, device in devices.items():
        parts = name.split(".")[:-1]
        for count in range(len(parts) + 1):
            found.setdefault(".".join(parts[:count]), set()).add(device)
    return {path: frozenset(each) for path, each in found.items()}


def _made_on(arguments: Any, device: torch.device) -> Any:
    return map_aggregate(arguments, lambda each: device if isinstance(each, torch.device) else each)


def _is_tensor(found: Any) -> bool:
    """Whether the value is a tensor, or holds one."""
    if isinstance(found, (list, tuple)):
        return any(map(_is_tensor, found))
    return isinstance(found, (Tensor, TensorType))
