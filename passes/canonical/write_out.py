"""Transform: an op that no rule accepts becomes the ops that it is written out in, by torch itself or by lxt_fx."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import fixed_size, value
from lxt_fx.base.torch_internals import (
    OpOverload,
    aten,
    base_name,
    conditions_on,
    guards_of_graph,
    is_fake,
    new_fakes,
    pytree,
    rename,
    traced_ops,
    writings_of,
)
from lxt_fx.ops.writings import WRITINGS
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.passes.canonical.try_writing import Call, difference_of_writing

ROUNDS = 8
"""How often what was written out is written out again; cdist takes two rounds."""


@dataclass(frozen=True, slots=True)
class WrittenOut:
    """What a call of `write_out` did: by name a sentence for each node that it wrote out, and why it left the others.
    `guards` are conditions on the sizes of inputs under which the graph is now valid, `fixed` says which sizes are fixed,
    and `made` are the names of the new nodes."""

    written: Mapping[str, str] = field(default_factory=dict)
    left: Mapping[Node, str] = field(default_factory=dict)
    guards: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    made: frozenset[str] = frozenset()

    def then(self, step: WrittenOut) -> WrittenOut:
        """Both calls, of which the second wrote out what the first made too: this needs no sentence of its own."""
        new = {name: said for name, said in step.written.items() if name not in self.made}
        guards, fixed = self.guards + step.guards, self.fixed + step.fixed
        return WrittenOut({**self.written, **new}, step.left, guards, fixed, self.made | step.made)


def write_out(gm: GraphModule, nodes: Iterable[Node], flow: Flow, device: torch.device) -> WrittenOut:
    """Transform: replaces each of these nodes by the ops that its op is written out in, if that is known. The new nodes
    belong to the module and the source line of the node; the last has its name, the others begin with it. Free sizes stay
    free.

    A writing is taken only if it has the value and the gradient of the op on random numbers, at the sizes of the example
    and at others; the gradient of operands that carry relevance by `flow`. `device` is that of the model, for graphs whose
    values know none.
    """
    done, left, fixed, made = dict[str, str](), dict[Node, str](), list[str](), set[str]()
    before = guards_of_graph(gm.graph)
    for node in list(nodes):
        said, free = f"%{node.name} = {node.target}", _free_sizes(gm.graph)
        written = _written(gm, node, flow, device)
        if isinstance(written, str):
            left[node] = written
        else:
            done[node.name] = f"{said} as {', '.join(_names(written))}"
            made |= {new.name for new in written}
        now = _free_sizes(gm.graph)
        fixed += [f"dim {dim} of {name} is fixed to {size} ({said} is written out for it)"
                  for (name, dim), size in now.items() if size is not None and free[name, dim] is None]
    guards = tuple(guard for guard in guards_of_graph(gm.graph) if guard not in before)
    return WrittenOut(done, left, guards, tuple(fixed), frozenset(made))


def _free_sizes(graph: Graph) -> dict[tuple[str, int], int | None]:
    """The size of each dim of each input; None where it is free."""
    return {
        (str(node.target), dim): fixed_size(size)
        for node in _inputs(graph)
        if isinstance(value(node), Tensor)
        for dim, size in enumerate(value(node).shape)
    }


def _names(nodes: list[Node]) -> list[str]:
    """The ops that do something, each once: `mul, where`."""
    names = dict.fromkeys(base_name(node.target) for node in nodes if isinstance(node.target, OpOverload))
    return [name for name in names if name not in ("sym_size", "view", "to")] or list(names)[:1]


def _written(gm: GraphModule, node: Node, flow: Flow, device: torch.device) -> list[Node] | str:
    """The nodes that replace this one, or why there are none."""
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return ""
    if any(user.target is not operator.getitem for user in node.users) and not isinstance(value(node), Tensor):
        return "its outputs are read together"
    reasons = []
    carrying = {operand.node for operand in flow.carrying_operands(node)}
    call = Call(node, _fake_values(node.all_input_nodes, device), carrying)
    for writing in [WRITINGS[node.target]] if node.target in WRITINGS else writings_of(node.target):
        known = conditions_on(call.given)
        traced = _traced(call, writing)
        new = conditions_on(call.given)[len(known) :]
        reason = traced if isinstance(traced, str) else _unfit(node, traced) or difference_of_writing(call, traced, new)
        if not reason:
            assert isinstance(traced, GraphModule)
            return _inlined(gm, node, call, traced)
        reasons.append(reason)
    return "; ".join(dict.fromkeys(reasons)) or "torch writes it out in no other ops"


def _fake_values(nodes: list[Node], device: torch.device) -> list[Any]:
    values = [value(node) for node in nodes]
    if any(isinstance(item, Tensor) and not is_fake(item) for item in values):
        return new_fakes(values, device)
    return values


def _traced(call: Call, writing: Callable[..., Any]) -> GraphModule | str:
    """The writing as a graph whose inputs are the nodes that the node reads."""
    try:
        with torch.no_grad():
            return traced_ops(lambda *given: call.by(writing, given), call.given)
    except Exception as error:  # whatever torch's code raises on fake tensors: then it is not written out
        return f"it cannot be written out for free sizes ({type(error).__name__}: {str(error).splitlines()[0][:120]})"


def _unfit(node: Node, traced: GraphModule) -> str:
    """Why the graph is none that rules can be chosen for."""
    for new in traced.graph.nodes:
        if new.op == "output" and _reads(node) > len(pytree.tree_leaves(new.args[0])):
            return "an output is read that is not written out"
        if new.op == "get_attr" and is_fake(getattr(traced, str(new.target))):
            return "it makes a constant whose value is unknown"
        if new.op != "call_function":
            continue
        if new.target is node.target and not _reads_detached(new):
            return "it is written out as itself"
        known = new.target.namespace == "aten" if isinstance(new.target, OpOverload) else _is_arithmetic(new.target)
        if not known:
            return f"it is written out as {new.target}, which is no op of ATen"
    return ""


def _reads_detached(node: Node) -> bool:
    return all(operand.target is aten.detach.default for operand in node.all_input_nodes[:1])


def _reads(node: Node) -> int:
    """How many outputs of the node it takes to have all that are read."""
    return max((int(user.args[1]) + 1 for user in node.users if user.target is operator.getitem), default=0)  # type: ignore[arg-type]


def _is_arithmetic(target: Any) -> bool:
    """Whether it computes a size, or takes an item of a tuple."""
    return getattr(target, "__module__", "") in ("_operator", "math", "torch")


def _inlined(gm: GraphModule, node: Node, call: Call, traced: GraphModule) -> list[Node]:
    """Puts the graph in the place of the node."""
    stands_for: dict[Node, Any] = dict(zip(_inputs(traced.graph), call.nodes, strict=True))
    made: list[Node] = []
    with gm.graph.inserting_before(node):
        for new in traced.graph.nodes:
            if new.op == "get_attr":
                stands_for[new] = _constant(gm, node, getattr(traced, str(new.target)))
            elif new.op == "call_function":
                copy = gm.graph.node_copy(new, lambda n: stands_for[n])
                stands_for[new] = copy
                copy.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
                copy.meta["val"] = _value_like(value(new), node)
                rename(copy, f"{node.name}_{_short_name(copy.target)}")
                made.append(copy)
    (result,) = next(n for n in traced.graph.nodes if n.op == "output").args
    result = torch.fx.map_arg(result, lambda n: stands_for[n])
    _replace(node, result)
    return made


def _inputs(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _short_name(target: Any) -> str:
    return base_name(target).strip("_") if isinstance(target, OpOverload) else str(target.__name__)


def _constant(gm: GraphModule, node: Node, constant: Tensor) -> Node:
    name = f"{node.name}_constant"
    while hasattr(gm, name):
        name += "_"
    gm.register_buffer(name, constant)
    made = gm.graph.get_attr(name)
    made.meta = {"val": _value_like(constant, node)}
    return made


def _value_like(found: Any, node: Node) -> Any:
    """The values of a graph are all fake tensors of one mode, or all tensors on the meta device."""
    tensors = [value(operand) for operand in node.all_input_nodes if isinstance(value(operand), Tensor)]
    if any(is_fake(tensor) for tensor in tensors):
        return found
    return pytree.tree_map(
        lambda x: torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta") if isinstance(x, Tensor) else x,
        found,
    )


def _replace(node: Node, result: Any) -> None:
    """Whoever read the node, or an item of it, reads the result instead, which takes over its name."""
    reads = [(node, result)]
    if not isinstance(result, Node):
        reads = [(user, result[user.args[1]]) for user in list(node.users)]
    for old, new in reads:
        old.replace_all_uses_with(new)
        old.graph.erase_node(old)
        if new.op == "call_function":
            new.name = old.name
    if not isinstance(result, Node):
        node.graph.erase_node(node)
