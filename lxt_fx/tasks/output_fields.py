"""The fields of a model's output: how many dims each has, and a function of it that gives one number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import is_float, shape
from lxt_fx.base.torch_internals import io_of, pytree

ONLY = ""
"""The name of an output that is a tensor alone."""


def output_dims(gm: GraphModule) -> Mapping[str, int]:
    """How many dimensions each field of floats has, of the output of a graph that is captured or explained; `ONLY` for an
    output that is a tensor."""
    flat = pytree.tree_leaves(gm.graph.output_node().args[0])
    output = pytree.tree_unflatten(flat, io_of(gm.graph).out_spec)
    if isinstance(output, Node):
        return {ONLY: len(shape(output) or ())}
    return {name: len(shape(each) or ()) for name, each in _fields(output) if isinstance(each, Node) and is_float(each)}


def dims_of(output: Any) -> Mapping[str, int]:
    """The same of an output."""
    if isinstance(output, Tensor):
        return {ONLY: output.dim()}
    return {name: each.dim() for name, each in _fields(output) if isinstance(each, Tensor) and each.is_floating_point()}


def _fields(output: Any) -> list[tuple[str, Any]]:
    fields = output.items() if isinstance(output, Mapping) else vars(output).items() if hasattr(output, "__dict__") else ()
    return [(str(name), each) for name, each in fields]


def example_function(dims: Mapping[str, int]) -> str:
    """A function of an output with such fields, as a person writes it: one of its numbers, the norm of a hidden state."""
    if dims.get("last_hidden_state") == 3:
        return 'lambda out: out["last_hidden_state"][0, 0].norm()'
    name, count = max(dims.items(), key=lambda item: min(item[1], 1), default=(ONLY, 0))
    field = f'["{name}"]' if name else "" if dims else "[0]"
    return f"lambda out: out{field}" + (f"[{', '.join(['0'] * count)}]" if count else "")
