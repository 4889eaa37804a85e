"""Transform: in a captured graph, each layer that was a single node becomes a copy of its twin's nodes."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lxt_fx.base.torch_internals import OpOverload, aten_ops, may_alias, written_by
from lxt_fx.passes.capture.layer_kinds import Kind
from lxt_fx.passes.capture.layers_once import ANOTHER, BEGINS, ENDS, SYMBOLS, LayersOnce, Template

CASTS = aten_ops("to.dtype to.device to.dtype_layout to.other contiguous")
"""Ops that may give the tensor itself that they read."""


class NoTwinsError(Exception):
    """The graph shows that layers are no twins; `kind` says why."""

    def __init__(self, kind: Kind, why: str) -> None:
        super().__init__(why)
        kind.why_not = why


@dataclass(frozen=True, slots=True)
class _Region:
    """The nodes of a traced layer between its marks."""

    begins: Node
    ends: Node
    inside: tuple[Node, ...]

    @property
    def inputs(self) -> list[Node]:
        return list(self.begins.args[0])  # type: ignore[arg-type]

    @property
    def outputs(self) -> list[Node]:
        return list(self.ends.args[0])  # type: ignore[arg-type]


def copy_layers(gm: GraphModule, model: nn.Module, once: LayersOnce) -> int:
    """Transform: expands the nodes of layers that were not traced, and removes the marks. Returns how many layers were
    copied. Raises NoTwinsError, before it edits, where a layer does something that a copy would not: it reads or gives
    values on the side, or writes into an input; where the last twin is not what its template says; or where a mark is
    missing."""
    regions, calls = _found(gm, once)
    weights = _Weights(gm, model)
    proven = {template for _, template in once.proofs.values()}
    for template in {template: None for _, template in once.alike.values()}:
        _check_closed(template, regions[template.call])
        if template not in proven:
            raise NoTwinsError(template.kind, "the last of them is called in another way than the others, or not at all")
    for call, (path, template) in once.proofs.items():
        _check_equal(template, path, regions[template.call], regions[call], weights)
    for call, (path, template) in once.alike.items():
        _copy(gm, calls[call], path, template, regions[template.call], weights)
    for region in regions.values():
        gm.graph.erase_node(region.ends)
        gm.graph.erase_node(region.begins)
    return len(once.alike)


def _found(gm: GraphModule, once: LayersOnce) -> tuple[dict[int, _Region], dict[int, Node]]:
    regions, calls = dict[int, _Region](), dict[int, Node]()
    begins: Node | None = None
    inside: list[Node] = []
    for node in gm.graph.nodes:
        if node.target is BEGINS:
            begins, inside = node, []
        elif node.target is ENDS:
            assert begins is not None and begins.args[1] == node.args[1]
            regions[int(node.args[1])] = _Region(begins, node, tuple(inside))
            begins = None
        elif node.target is ANOTHER:
            calls[int(node.args[1])] = node
        elif begins is not None:
            inside.append(node)
    expected = once.marked | {call: template.kind for call, (_, template) in once.alike.items()}
    for call, kind in expected.items():
        if call not in regions and call not in calls:
            raise NoTwinsError(kind, "they run inside a block without gradients or under autocast")
    return regions, calls


def _check_closed(template: Template, region: _Region) -> None:
    """Raises NoTwinsError where the nodes of the layer read or give a tensor that is neither argument nor output, or write
    into what they did not make."""
    owned = set[Node]()  # values of the layer's own, which nobody outside sees
    depth = len(region.begins.meta["nn_module_stack"])
    for node in region.inside:
        _check_place(template, node, depth)
        if node.meta.get("unbacked_bindings"):
            raise NoTwinsError(template.kind, f"the size of {node.name} depends on values")
        if isinstance(node.target, OpOverload) and written_by(node.target) and node.args[0] not in owned:
            raise NoTwinsError(template.kind, f"{node.name} writes into {node.args[0]}, which may be an argument")
        if not may_alias(node.target) or owned.issuperset(node.all_input_nodes):
            owned.add(node)
    known, unchanged = {*region.inside, *region.inputs}, _unchanged(region)
    for node in region.inside:
        for read in node.all_input_nodes:
            if read not in known and read.op != "get_attr" and not _is_size(read):
                raise NoTwinsError(template.kind, f"{node.name} reads {read.name}, which is no argument of the layer")
        if node in region.outputs or node in unchanged:
            continue
        for user in node.users:
            if user not in known and user is not region.ends and not _is_size(node):
                raise NoTwinsError(template.kind, f"{node.name} is read by {user.name}, outside of the layer")


def _check_place(template: Template, node: Node, depth: int) -> None:
    """Raises NoTwinsError where a node does not stand below its layer by the module stack: in a module of others, or where
    the tracer names submodules as if the layer were the model (a list that is indexed: `self.layers[i](x)`)."""
    for path, _ in list(node.meta.get("nn_module_stack", {}).values())[depth:]:
        if not f"{path.partition('@')[0]}.".startswith(f"{template.path}."):
            raise NoTwinsError(template.kind, f"{node.name} stands in {path}, which is no part of the layer by its path")


def _unchanged(region: _Region) -> set[Node]:
    """Nodes whose value is an input as it is: a cast to its own dtype gives the tensor itself, and from then on tracing
    takes that node for the input."""
    found = set(region.inputs)
    for node in region.inside:
        read = node.args[0] if node.target in CASTS else None
        if isinstance(read, Node) and read in found and _value(node.meta["val"]) == _value(read.meta["val"]):
            found.add(node)
    return found


class _Weights:
    """The nodes of parameters, buffers and constants, and what stands for each in a twin."""

    def __init__(self, gm: GraphModule, model: nn.Module) -> None:
        self.gm, self.model = gm, model
        self.own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
        self.nodes: dict[str, Node] = {str(node.target): node for node in gm.graph.find_nodes(op="get_attr")}
        held = [*gm.named_buffers(remove_duplicate=False), *gm.named_parameters(remove_duplicate=False)]
        self.names = {id(tensor): name for name, tensor in held if name in self.nodes}
        self.twins: dict[tuple[str, str], dict[str, str]] = {}

    def of_twin(self, node: Node, first: str, path: str) -> Node:
        """The node of the tensor that a twin has where the first has this one; the node itself if it is none of the
        first."""
        if (first, path) not in self.twins:
            layers = map(self.model.get_submodule, (first, path))
            pairs = zip(*([*layer.parameters(), *layer.buffers()] for layer in layers), strict=True)
            self.twins[first, path] = {self.names[id(a)]: self.names[id(b)] for a, b in pairs if id(a) in self.names}
        name = self.twins[first, path].get(str(node.target)) if node.op == "get_attr" else None
        return node if name is None else self.nodes[name]

    def constant(self, node: Node) -> Any:
        """What a node without operands reads, to be compared: a weight as its node, a constant by its values, a block of
        ops by its steps."""
        name = str(node.target)
        if name in self.own:
            return node
        held: Any = operator.attrgetter(name)(self.gm)
        if isinstance(held, Tensor):
            return held.dtype, tuple(held.shape), repr(held.tolist())
        places = {each: place for place, each in enumerate(held.graph.nodes)}
        return [
            (each.op, each.target if each.op == "call_function" else each.op, repr(torch.fx.map_arg(each.args, places.get)))
            for each in places
        ]


def _check_equal(template: Template, path: str, one: _Region, other: _Region, weights: _Weights) -> None:
    """Raises NoTwinsError unless the nodes of the last twin are those of the first, with weights of its own."""
    same = dict(zip(one.inputs, other.inputs, strict=True))

    def wanted(value: Any) -> Any:
        return torch.fx.map_arg(value, lambda n: same[n] if n in same else weights.of_twin(n, template.path, path))

    steps, others = ([node for node in region.inside if not _is_size(node)] for region in (one, other))
    for step, twin in zip(steps, others, strict=False):
        same[step] = twin
        if _said(weights, twin, twin.args, twin.kwargs) != _said(weights, step, wanted(step.args), wanted(step.kwargs)):
            raise NoTwinsError(template.kind, f"{step.name} of the first is not what {twin.name} of the last is")
    if len(steps) != len(others) or _plain(weights, wanted(one.outputs)) != _plain(weights, other.outputs):
        raise NoTwinsError(template.kind, "the first of them takes other steps than the last")


def _said(weights: _Weights, node: Node, args: Any, kwargs: Any) -> list[Any]:
    """All that counts of a node, with these arguments."""
    target = weights.constant(node) if node.op == "get_attr" else node.target
    return [node.op, target, _plain(weights, args), _plain(weights, kwargs), _value(node.meta.get("val"))]


def _plain(weights: _Weights, value: Any) -> Any:
    """Arguments, to be compared: sizes by their symbols, constants by their values."""
    if isinstance(value, Node):
        size = value.meta.get("val")
        return _value(size) if _is_size(value) else weights.constant(value) if value.op == "get_attr" else value
    if isinstance(value, (list, tuple)):
        return [_plain(weights, item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(weights, item) for key, item in value.items()}
    return repr(value) if isinstance(value, float) else value


def _value(value: Any) -> Any:
    """What is known of a value while it is traced."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(map(_value, value.shape))
    if isinstance(value, (list, tuple)):
        return tuple(map(_value, value))
    return value.node.expr if isinstance(value, SYMBOLS) else value


def _is_size(node: Node) -> bool:
    """Whether the value is a number. Twins have the same, since their inputs have the same sizes."""
    return isinstance(node.meta.get("val"), (*SYMBOLS, int, float, bool))


def _copy(gm: GraphModule, call: Node, path: str, template: Template, region: _Region, weights: _Weights) -> None:
    """Puts a copy of the region in the place of the call. Sizes are not copied: they are the same."""
    copies: dict[Node, Node] = dict(zip(region.inputs, call.args[0], strict=True))  # type: ignore[arg-type]
    depth = len(region.begins.meta["nn_module_stack"])
    for node in region.inside:
        if _is_size(node):
            continue
        with gm.graph.inserting_before(call):
            copy = gm.graph.node_copy(node, lambda n: copies.get(n) or weights.of_twin(n, template.path, path))
        if "nn_module_stack" in node.meta:
            copy.meta["nn_module_stack"] = _stack(node, depth, call, template.path, path)
        copies[node] = copy
    for user in list(call.users):
        assert user.target is operator.getitem
        user.replace_all_uses_with(copies[region.outputs[user.args[1]]])  # type: ignore[index]
        gm.graph.erase_node(user)
    gm.graph.erase_node(call)


def _stack(node: Node, depth: int, call: Node, first: str, path: str) -> dict[str, tuple[str, Any]]:
    """The module stack of a copy: the twin's own, and inside of it that of the node with other paths."""
    inner = list(node.meta["nn_module_stack"].items())[depth:]
    renamed = {key.replace(first, path, 1): (f"{path}{inside.removeprefix(first)}", kind) for key, (inside, kind) in inner}
    return {**call.meta["nn_module_stack"], **renamed}
