"""Transform: a value is computed from the features of a dictionary, and from what these do not explain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lxt_fx.base.autocast import autocast_off
from lxt_fx.base.nodes import value, written_shape
from lxt_fx.base.torch_internals import (
    OpOverload,
    aten,
    base_name,
    fakes_beside,
    is_fake,
    new_fakes,
    rename,
    traced_ops,
)
from lxt_fx.ops import sources
from lxt_fx.passes.analysis.find_dictionaries import DECODER, ENCODER

Part = Callable[..., Tensor]
"""A part of a dictionary in torch's functions: of values, and of the dictionary's tensors by name."""


def insert_dictionary(
    gm: GraphModule,
    read: Node,
    written: Node,
    path: str,
    tensors: Mapping[str, Tensor],
    encode: Part,
    decode: Part,
    *,
    stop: bool = False,
) -> int:
    """Transform: all readers of the value h of `written` read sum_k f_k d_k + b + e instead, with f = encode(x) for the
    value x of `read`, and the error e = h - (sum_k f_k d_k + b), which is a source of relevance. No value of the graph
    changes but for rounding.

    `encode(x, **tensors)` gives the features [..., features], `decode(f, x, **tensors)` what is reconstructed from them, in
    the shape of h. The `tensors` become buffers of the module at `path`, as they are; the new nodes belong to that module.
    With `stop` the features are sources too, so that relevance ends there. Returns the number of new nodes.
    """
    readers = list(written.users)
    inside = _Inside(gm, [read, written], path, tensors)
    features = inside.traced(encode, [read], ENCODER)
    if stop:
        features = inside.call(sources.source, [features], ENCODER)
    rename(features, "features")
    found = inside.traced(decode, [features, read], DECODER)
    if written_shape(found) != written_shape(written):  # a transcoder, where one of the places has its tokens in one dim
        found = inside.traced(_in_shape, [found, written], DECODER)
    error = inside.call(sources.reconstruction_error, [written, found])
    result = inside.call(aten.add.Tensor, [found, error])
    for reader in readers:
        reader.replace_input_with(written, result)
    return len(inside.made)


class _Inside:
    """The nodes of a dictionary while they are made, one behind the other."""

    def __init__(self, gm: GraphModule, behind: Sequence[Node], path: str, tensors: Mapping[str, Tensor]) -> None:
        self.graph, self.path, self.made = gm.graph, path, list[Node]()
        order = {node: place for place, node in enumerate(gm.graph.nodes)}
        inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
        self.last = max([*behind, *inputs], key=order.__getitem__)
        self.like: Tensor = value(behind[-1])
        outer = behind[-1].meta.get("nn_module_stack") or {}
        self.root = {key: found for key, found in outer.items() if not found[0]}
        gm.add_submodule(path, _holding(tensors))
        given = list(tensors.values())
        fakes = fakes_beside(self.like, given) if is_fake(self.like) else [tensor.to("meta") for tensor in given]
        self.constants = dict(zip(tensors, map(self._constant, tensors, fakes), strict=True))

    def traced(self, part: Part, operands: list[Node], module: str) -> Node:
        """The last of the nodes that compute a part of the dictionary."""
        read = [*operands, *self.constants.values()]
        named = partial(_with_names, part, len(operands), tuple(self.constants))
        values = [value(node) for node in read]
        fakes = values if is_fake(self.like) else new_fakes(values, torch.device("cpu"))
        with torch.no_grad(), autocast_off():
            traced = traced_ops(named, fakes)
        inputs = [node for node in traced.graph.nodes if node.op == "placeholder"]
        stands_for: dict[Node, Node] = dict(zip(inputs, read, strict=True))
        for node in traced.graph.nodes:
            if node.op == "call_function":
                made = self._put(partial(self.graph.node_copy, node, stands_for.__getitem__), module)
                made.meta["val"] = value(node) if is_fake(self.like) else _on_meta(value(node))
                rename(made, base_name(made.target) if isinstance(made.target, OpOverload) else made.name)
                stands_for[node] = made
        (result,) = traced.graph.output_node().args
        assert isinstance(result, Node), "a part of a dictionary gives one tensor"
        return stands_for[result]

    def call(self, op: OpOverload, operands: list[Node], module: str = "") -> Node:
        """A call of one op."""
        made = self._put(lambda: self.graph.create_node("call_function", op, tuple(operands), name=base_name(op)), module)
        with torch.no_grad():
            made.meta["val"] = op(*map(value, operands))
        return made

    def _constant(self, name: str, fake: Tensor) -> Node:
        made = self._put(lambda: self.graph.get_attr(f"{self.path}.{name}"), "")
        made.meta["val"] = fake
        return made

    def _put(self, make: Callable[[], Node], module: str) -> Node:
        """A new node behind the last one."""
        with self.graph.inserting_after(self.last):
            made = self.last = make()
        stack = {**self.root, self.path: (self.path, "Dictionary")}
        inner = f"{self.path}.{module}"
        made.meta = {"nn_module_stack": {**stack, inner: (inner, module.capitalize())} if module else stack}
        self.made.append(made)
        return made


def _holding(tensors: Mapping[str, Tensor]) -> nn.Module:
    module = nn.Module()
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor)
    return module


def _in_shape(found: Tensor, like: Tensor, **tensors: Tensor) -> Tensor:
    return found.reshape(like.shape)


def _with_names(part: Part, operands: int, names: tuple[str, ...], *given: Tensor) -> Any:
    """The part, called by values without names and then by its tensors."""
    return part(*given[:operands], **dict(zip(names, given[operands:], strict=True)))


def _on_meta(found: Any) -> Any:
    if not isinstance(found, Tensor):
        return found
    return torch.empty_strided(found.shape, found.stride(), dtype=found.dtype, device="meta")
