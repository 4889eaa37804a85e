"""Captured graphs as lists that can be compared, and captures in which no layer is copied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import source_line
from lxt_fx.passes.capture import capture as capture_module
from lxt_fx.passes.capture.copy_layers import CASTS


@contextmanager
def all_traced() -> Iterator[None]:
    """Inside the block no layer is copied."""
    with mock.patch.object(capture_module, "kinds_of", lambda model: []):
        yield


def steps(gm: GraphModule) -> list[list[Any]]:
    """All that counts of each node, sizes by the input that they are of, without casts of a value to what it is."""
    symbols = {
        str(size.node.expr): f"{node.name}.{dim}"
        for node in reversed(gm.graph.find_nodes(op="placeholder"))
        for dim, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt)
    }

    def sizes(value: Any) -> str:
        text = str(value)
        for symbol in sorted(symbols, key=len, reverse=True):
            text = text.replace(symbol, symbols[symbol])
        return text

    numbers = (torch.SymInt, torch.SymBool, int)
    constants = {node: gm.get_buffer(str(node.target)) for node in gm.graph.nodes if "lifted" in str(node.target)}
    counted = [node for node in gm.graph.nodes if not isinstance(node.meta.get("val"), numbers)]
    same = {node: node.args[0] for node in counted if node.target in CASTS and _casts_to_its_own(node)}
    nodes = [node for node in counted if node not in constants and node not in same]
    places = {node: f"%{place}" for place, node in enumerate(nodes)} | {n: str(t.tolist()) for n, t in constants.items()}
    for node, read in same.items():
        places[node] = places[read]
    places |= {node: sizes(node.meta["val"]) for node in gm.graph.nodes if node not in places}
    found = []
    for node in nodes:
        value = node.meta.get("val")
        shape = (value.dtype, sizes(list(value.shape))) if isinstance(value, Tensor) else None
        stack = [(path, str(kind)) for path, kind in (node.meta.get("nn_module_stack") or {}).values()]
        keys = list(node.meta.get("nn_module_stack") or {})
        arguments = torch.fx.map_arg((node.args, node.kwargs), places.get)
        block = node.op == "get_attr" and isinstance(getattr(gm, str(node.target), None), GraphModule)
        target = "a block" if block else str(node.target)
        found.append([node.op, target, repr(arguments), shape, keys, stack, source_line(node)])
    return found


def _casts_to_its_own(node: Node) -> bool:
    """Whether a cast has the dtype that it reads."""
    return bool(node.meta["val"].dtype == node.args[0].meta["val"].dtype)  # type: ignore[union-attr]
