"""Transform: in-place ops become their functional forms."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from lxt_fx.base.errors import CaptureError
from lxt_fx.base.nodes import value
from lxt_fx.base.torch_internals import OpOverload, aten, base_name, functional_of, is_contiguous, schema_of, written_by
from lxt_fx.passes.drop_dead import drop_dead

# Views whose write-back is the value in the shape of what was viewed.
_RESHAPES = {
    aten.view.default,
    aten.reshape.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.alias.default,
    aten.detach.default,
    aten.contiguous.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
}
_OWN_INVERSES = {
    aten.transpose.int,
    aten.t.default,
    aten.swapaxes.default,
    aten.swapdims.default,
    aten.mT.default,
    aten.adjoint.default,
    aten.numpy_T.default,
}
_MAY_COPY = {aten.reshape.default, aten.contiguous.default, aten.flatten.using_ints}
_CASTS = {aten.to.dtype, aten.to.device, aten.to.dtype_layout}
_OPERATORS = {"__ior__": "bitwise_or", "__iand__": "bitwise_and", "__ixor__": "bitwise_xor"}
_TUPLE_VIEWS = {aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int}


def mutates(node: Node) -> bool:
    """Whether the node writes into an operand."""
    return node.op == "call_function" and isinstance(node.target, OpOverload) and schema_of(node.target).is_mutable


def functionalise(gm: GraphModule) -> int:
    """Transform: replaces every in-place op by its functional form. Later readers of the written tensor, or of a view of
    the same memory, read the new value.

    Raises CaptureError, with the node, for a write through a view that cannot be written back.
    """
    if not any(mutates(node) for node in gm.graph.nodes):
        return 0
    memory = _Memory(gm)
    edits = 0
    for node in list(gm.graph.nodes):
        if node.op in ("placeholder", "get_attr"):
            continue
        for operand in list(node.all_input_nodes):
            fresh = memory.fresh(operand, node)
            if fresh is not operand:
                node.replace_input_with(operand, fresh)
        if mutates(node):
            memory.write(node)
            edits += 1
        elif node.op == "call_function":
            memory.note_view(node)
    for node in reversed(list(gm.graph.nodes)):
        if mutates(node):
            gm.graph.erase_node(node)
    drop_dead(gm)
    return edits


class _Memory:
    """Which nodes are views of the same memory, and which of them are up to date."""

    def __init__(self, gm: GraphModule) -> None:
        self.graph = gm.graph
        self.parent: dict[Node, Node] = {}
        self.seen_at: dict[Node, int] = {}
        self.version: dict[Node, int] = {}
        self.current: dict[Node, Node] = {}
        self.replayed: dict[Node, Node] = {}
        self.written: dict[Node, Node] = {}

    def base(self, node: Node) -> Node:
        while node in self.parent:
            node = self.parent[node]
        return node

    def note_view(self, node: Node) -> None:
        if not _is_view(node):
            return
        viewed = node.args[0]
        assert isinstance(viewed, Node)
        origin = self._origin(viewed)
        self.parent[node] = origin
        self.seen_at[node] = self.version.get(self.base(origin), 0)

    def _origin(self, node: Node) -> Node:
        """The node of the original graph that a recomputed view or a written value stands for."""
        for table in (self.replayed, self.current):
            for original, now in table.items():
                if now is node:
                    return original
        return node

    def fresh(self, node: Node, before: Node) -> Node:
        """A node with the present content of the memory that `node` views."""
        if node in self.written:
            node = self.written[node]
        base = self.base(node)
        latest = self.version.get(base, 0)
        if latest == self.seen_at.get(node, 0):
            return self.replayed.get(node, node)
        if node is base:
            return self.current[base]
        parent = self.fresh(self.parent[node], before)
        with self.graph.inserting_before(before):
            copy = self.graph.node_copy(node, lambda n: parent if n is node.args[0] else n)
        self.replayed[node] = copy
        self.seen_at[node] = latest
        return copy

    def write(self, node: Node) -> None:
        """Inserts the functional form of the in-place op before it, and writes the value back through the views to the
        base."""
        target = self._origin(_written(node))
        with self.graph.inserting_before(node):
            new = _functional(self.graph, node)
            viewed = target
            while viewed in self.parent:
                parent = self.parent[viewed]
                now = self.fresh(parent, node)
                with self.graph.inserting_before(node):
                    new = _write_back(self.graph, viewed, now, new)
                viewed = parent
        self.version[viewed] = self.version.get(viewed, 0) + 1
        self.current[viewed] = new
        self.written[node] = target


def _written(node: Node) -> Node:
    """The operand that an op writes into: its first one, or `out`.

    Raises CaptureError for an op that writes into several.
    """
    assert isinstance(node.target, OpOverload)
    names = written_by(node.target)
    given = dict(zip((argument.name for argument in schema_of(node.target).arguments), node.args, strict=False))
    written = (given | node.kwargs).get(names[0])
    if len(names) > 1 or not isinstance(written, Node):
        raise CaptureError(
            f"transform: %{node.name} = {node.target} writes into {', '.join(names)}, which lxt_fx cannot write back; call "
            "the form of it that returns new tensors in the model"
        )
    return written


def _is_view(node: Node) -> bool:
    if node.target is operator.getitem:
        tuple_node = node.args[0]
        return isinstance(tuple_node, Node) and tuple_node.target in _TUPLE_VIEWS
    if node.target in _TUPLE_VIEWS:
        return True
    if not isinstance(node.target, OpOverload) or not node.args or not isinstance(node.args[0], Node):
        return False
    if not any(r.alias_info is not None for r in schema_of(node.target).returns):
        return False
    before, after = value(node.args[0]), value(node)
    if node.target in _CASTS:
        return bool(before.dtype == after.dtype and before.device == after.device)
    return node.target not in _MAY_COPY or is_contiguous(before)


def _functional(graph: torch.fx.Graph, node: Node) -> Node:
    target = node.target
    assert isinstance(target, OpOverload)
    written = _written(node)
    name = base_name(target)
    before = value(written)
    if written is node.kwargs.get("out"):
        if (functional := functional_of(target, name)) is None:
            raise CaptureError(f"transform: %{node.name} = {target} writes into `out`, and has no form that returns it")
        new = graph.call_function(functional, node.args, {k: v for k, v in node.kwargs.items() if k != "out"})
    elif name == "copy_" or target is aten.fill_.Tensor:
        new = graph.call_function(aten.expand_as.default, (node.args[1], written))
    elif name == "zero_":
        new = graph.call_function(aten.zeros_like.default, (written,))
    elif name == "fill_":
        new = graph.call_function(aten.full_like.default, (written, *node.args[1:]))
    else:
        functional = functional_of(target, _OPERATORS.get(name, name.removesuffix("_")))
        if functional is None:
            raise CaptureError(f"transform: in-place op %{node.name} = {target} has no functional form")
        new = graph.call_function(functional, node.args, dict(node.kwargs))
    new.meta = dict(node.meta)
    promoted = _value_of(new)
    if promoted.dtype != before.dtype:  # an in-place op casts its result to the written tensor's dtype
        new.meta["val"] = promoted
        new = graph.call_function(aten.to.dtype, (new, before.dtype))
        new.meta = dict(node.meta)
    new.meta["val"] = before
    return new


def _value_of(node: Node) -> torch.Tensor:
    """The fake value of a call, computed from the fake values of what it reads."""
    args, kwargs = torch.fx.map_arg((node.args, dict(node.kwargs)), value)
    found: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return found


def _write_back(graph: torch.fx.Graph, view: Node, parent: Node, new: Node) -> Node:
    """The viewed tensor after `new` has been written through the view."""
    target: Any = view.target
    args: tuple[Any, ...] = view.args
    if target in _TUPLE_VIEWS:
        return new
    if target is aten.slice.Tensor:
        back = graph.call_function(aten.slice_scatter.default, (parent, new, *args[1:]))
    elif target is aten.select.int:
        back = graph.call_function(aten.select_scatter.default, (parent, new, *args[1:]))
    elif target is aten.narrow.default:
        back = graph.call_function(aten.slice_scatter.default, (parent, new, *args[1:3], _end(graph, *args[2:])))
    elif target is aten.diagonal.default:
        back = graph.call_function(aten.diagonal_scatter.default, (parent, new, *args[1:]), dict(view.kwargs))
    elif target in _OWN_INVERSES:
        back = graph.call_function(target, (new, *args[1:]))
    elif target in (aten.movedim.int, aten.moveaxis.int):
        back = graph.call_function(target, (new, args[2], args[1]))
    elif target is aten.permute.default:
        order = list(args[1])
        back = graph.call_function(aten.permute.default, (new, [order.index(i) for i in range(len(order))]))
    elif target in _RESHAPES:
        back = graph.call_function(aten.reshape_as.default, (new, parent))
    elif target is operator.getitem and args[0].target is aten.unbind.int:
        dim = args[0].args[1] if len(args[0].args) > 1 else 0
        tensor = parent.args[0] if parent.target is aten.unbind.int else parent
        back = graph.call_function(aten.select_scatter.default, (tensor, new, dim, args[1]))
    elif target is operator.getitem:
        back = _write_back_part(graph, args[0], args[1], parent, new)
    else:
        raise CaptureError(
            f"transform: %{view.name} = {target} is a view that is written in place, and lxt_fx cannot write it back; "
            "clone the tensor before the in-place op in the model"
        )
    whole = value(parent)
    back.meta = dict(parent.meta) if isinstance(whole, torch.Tensor) else dict(parent.args[0].meta)  # type: ignore[union-attr]
    return back


def _end(graph: torch.fx.Graph, start: Any, length: Any) -> Any:
    """Where a `narrow` ends; None is the end of the tensor, for one that starts from there."""
    if isinstance(start, int) and isinstance(length, int):
        return (start + length or None) if start < 0 else start + length
    end = graph.call_function(operator.add, (start, length))
    end.meta = {"val": sum(value(part) if isinstance(part, Node) else part for part in (start, length))}
    return end


def _write_back_part(graph: torch.fx.Graph, parts: Node, index: Any, parent: Node, new: Node) -> Node:
    """Part `index` of a split or chunk, written back into the tensor that was split."""
    sizes = [part.shape for part in value(parts)]
    dim = parts.args[2] if len(parts.args) > 2 else parts.kwargs.get("dim", 0)
    start = sum(size[dim] for size in sizes[:index])
    end = start + sizes[index][dim]
    if not isinstance(start, int) or not isinstance(end, int):
        raise CaptureError(
            f"transform: part {index} of %{parts.name} is written in place and its size is symbolic; use dynamic=False"
        )
    tensor = parent.args[0] if parent.target in _TUPLE_VIEWS else parent
    return graph.call_function(aten.slice_scatter.default, (tensor, new, dim, start, end))
