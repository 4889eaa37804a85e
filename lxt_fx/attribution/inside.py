"""Relevance inside the model: at the output of any module, or at any node of the graph."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.nodes import is_float, module_stack, shape
from lxt_fx.compiler.explained import Explained, check_explained


@dataclass(slots=True)
class Watched:
    """A value inside the model and, after `backward()`, its gradient (in explicit form its relevance)."""

    name: str
    value: Tensor
    form: str

    @property
    def relevance(self) -> Tensor:
        """value * gradient (in explicit form what came back), in the value's own shape ([batch, tokens, hidden] at a
        layer's output).

        Raises InputError before `backward()` was called.
        """
        if self.value.grad is None:
            raise InputError(f"watch: {self.name} has no gradient yet; call backward() on what is to be explained first")
        return self.value.grad if self.form == "explicit" else self.value.detach() * self.value.grad


@dataclass(slots=True)
class Watch(Mapping[str, Watched]):
    """What is watched, by module path or `%node`, in the order of the graph. Filled by each call of the module."""

    nodes: Mapping[str, str]
    found: dict[str, Watched] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Watched:
        if name not in self.nodes:
            raise UnknownNameError(f"watch: {name!r} is not watched; watched: {', '.join(self.nodes)}")
        if name not in self.found:
            raise InputError(f"watch: {name} has no value yet; call the module inside the with block")
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)


@contextmanager
def watch(explained: Explained, *places: str) -> Iterator[Watch]:
    """Keeps values inside the model, with their relevance, while the `with` block runs.

    A place is a module path with `*` for one segment (`model.layers.*`: the output of each layer) or a `%node` as printed
    by `show(explained, "lowered")`. Calls inside the block run node by node (slower than outside).

        with lxt_fx.watch(explained, "model.layers.*") as layers:
            explained(inputs_embeds=e).logits[0, -1, 42].backward()
        layers["model.layers.0"].relevance.sum(-1)

    Raises UnknownNameError where a place selects nothing that carries relevance, InputError for a model that was not
    transformed: its calls carry no relevance.
    """
    check_explained(explained, "watch")
    kept = Watch(_nodes_at(explained, places))
    outer = explained._observer
    explained._observer = lambda module: _Keeper(module, places, kept)
    try:
        yield kept
    finally:
        explained._observer = outer


def _nodes_at(explained: Explained, places: tuple[str, ...]) -> dict[str, str]:
    """The nodes of this graph that are watched, by module path or `%node`."""
    nodes: dict[str, str] = {}
    for place in places:
        chosen = _chosen(explained, place)
        if not chosen:
            raise UnknownNameError(
                f"watch: {place!r} selects nothing that carries relevance; "
                "show(explained, 'lowered') prints modules and nodes"
            )
        nodes |= chosen
    return nodes


class _Keeper(torch.fx.Interpreter):
    """Runs the graph node by node and keeps the watched values with their gradients."""

    def __init__(self, explained: Explained, places: tuple[str, ...], kept: Watch) -> None:
        super().__init__(explained)
        self.names = {node: name for name, node in _nodes_at(explained, places).items()}
        self.kept, self.form = kept, explained.record.form

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if n.name in self.names:
            if result.requires_grad and not result.is_leaf:
                result.retain_grad()
            self.kept.found[self.names[n.name]] = Watched(self.names[n.name], result, self.form)
        return result


def _chosen(explained: Explained, place: str) -> dict[str, str]:
    carrying = explained.record.stages["lowered"].carrying
    nodes = [n for n in explained.graph.nodes if n.name in carrying and is_float(n) and shape(n) is not None]  # no tuples
    if place.startswith("%"):
        return {f"%{n.name}": n.name for n in nodes if fnmatch.fnmatchcase(n.name, place[1:])}
    chosen: dict[str, str] = {}
    for node in nodes:
        for path in _left_by(node):
            if len(path.split(".")) == len(place.split(".")) and fnmatch.fnmatchcase(path, place):
                chosen[path] = node.name  # the last value that leaves the module is its output
    return chosen


def _left_by(node: Node) -> set[str]:
    """The modules that the node's value leaves: it was made inside them and is read outside."""
    inside = {path for path, _ in module_stack(node)}
    return {
        path
        for path in inside
        if any(user.op == "output" or path not in {p for p, _ in module_stack(user)} for user in node.users)
    }
