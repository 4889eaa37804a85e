"""An explained model in two parts: its body, and the linear head that computes the logits of a position from its hidden
state.

Every path from the logits to the inputs goes through these hidden states. So a backward through the head, followed by one
through the body, is the backward through the model. The logits of a few positions then need only a few hidden states, while
the whole head would compute [batch, positions, vocabulary] numbers and as many gradients. Both parts come from the fused
graph, which a plain call runs, and the body has the same segments for recomputation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any
from weakref import WeakKeyDictionary

from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import computed_from, shape
from lxt_fx.base.streamed_weight import is_streamed
from lxt_fx.base.torch_internals import aten, io_of, pytree, set_forward, set_io, size_on_example
from lxt_fx.compiler.explained import Explained
from lxt_fx.ops import active, explicit, fused, products
from lxt_fx.ops.activations import POINTWISE_OPS
from lxt_fx.ops.aten_kinds import POINTWISE
from lxt_fx.ops.head import head
from lxt_fx.passes.drop_dead import drop_dead_nodes
from lxt_fx.passes.placement.streamed_forward import streamed_forward

_LINEAR = frozenset({head, products.linear, aten.linear.default})
_ELEMENTWISE = (
    POINTWISE
    | POINTWISE_OPS
    | {fused.share, products.epsilon, products.hold, explicit.enter, explicit.leave, explicit.pass_on, aten.to.dtype}
    | {active.active}
)


@dataclass(frozen=True, slots=True)
class SplitModel:
    """`body` maps the inputs by name to hidden states [batch, positions, hidden] and a list of the values beside them that
    were asked for. `head` maps hidden states of any number of positions to their logits [batch, positions, entries], and
    `entries` is how many these are."""

    body: GraphModule
    head: GraphModule
    entries: int


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """What was made of a fused graph, and the tensors of its module that it shares, by name."""

    shared: Mapping[str, Any]
    split: SplitModel | None


_MADE: WeakKeyDictionary[Graph, _Made] = WeakKeyDictionary()
"""The parts of the modules that were split, by their fused graph, because to make them costs more than a short text. They
hold the parameters of the module, and neither the module nor that graph."""


def split_model(explained: Explained) -> SplitModel | None:
    """The module in two parts, which share its parameters. None unless the logits are a linear map of each position's
    hidden state, followed by elementwise ops only (soft caps, casts). They are made once, and again where the module's
    graph or a tensor of it was replaced (a loaded module that moved to a device)."""
    made = _MADE.get(explained.fused)
    if made is None or not _shares(explained, made.shared):
        names = {str(node.target) for node in explained.fused.nodes if node.op == "get_attr"}
        shared = {name: attrgetter(name)(explained) for name in names}
        _MADE[explained.fused] = made = _Made(shared, split_beside(explained, logits_index(explained), ()))
    return made.split


def _shares(explained: Explained, shared: Mapping[str, Any]) -> bool:
    return all(attrgetter(name)(explained) is tensor for name, tensor in shared.items())


def split_beside(explained: Explained, index: int | None, beside: Sequence[Node]) -> SplitModel | None:
    """The module in two parts, whose logits are the flat output `index`. The body also returns these nodes of the fused
    graph. None where it cannot: where one of them is computed by the head."""
    flat = pytree.tree_leaves(explained.fused.output_node().args[0])
    if index is None or not isinstance(flat[index], Node) or len(shape(flat[index]) or ()) != 3:
        return None
    needed = _needed(flat[index])
    by_inputs = _by_inputs(needed)
    region = [node for node in needed if node in by_inputs]
    linear = next((node for node in reversed(region) if node.target in _LINEAR), None)
    if linear is None:
        return None
    hidden = linear.args[0]
    tail = region[region.index(linear) :]
    if not isinstance(hidden, Node) or len(shape(hidden) or ()) != 3 or not _reads_only(tail, linear, by_inputs):
        return None
    if any(not computed_from(node).isdisjoint(tail) for node in beside):
        return None
    head_alone = _head(explained, hidden, flat[index], needed, set(tail))
    return SplitModel(_body(explained, hidden, beside), head_alone, size_on_example((shape(flat[index]) or ())[-1]))


def logits_index(explained: Explained) -> int | None:
    """The index of `logits`, or of the only output, among the flat outputs; None if there is neither."""
    spec = io_of(explained.graph).out_spec
    output = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return next((index for index in (output, found) if isinstance(index, int)), None)


def _needed(node: Node) -> list[Node]:
    """The node and all that it is computed from, in graph order."""
    needed = computed_from(node)
    return [each for each in node.graph.nodes if each in needed]


def _by_inputs(nodes: list[Node]) -> set[Node]:
    """The nodes that depend on an input of the module; the others compute weights."""
    found: set[Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _reads_only(tail: list[Node], linear: Node, by_inputs: set[Node]) -> bool:
    """Whether the nodes between the linear map and the logits are elementwise, and none of them, nor the linear map itself,
    reads another value that depends on the inputs."""
    inside = set(tail)
    if any(operand in by_inputs for operand in linear.all_input_nodes if operand is not linear.args[0]):
        return False
    others = [node for node in tail if node is not linear]
    return all(
        node.target in _ELEMENTWISE and all(n in inside for n in node.all_input_nodes if n in by_inputs) for node in others
    )


def _body(explained: Explained, hidden: Node, beside: Sequence[Node]) -> GraphModule:
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.graph_copy(explained.fused, copies)
    graph.output((copies[hidden], *(copies[node] for node in beside)))
    set_io(graph, replace(io_of(explained.graph), out_spec=pytree.tree_structure((0, [0] * len(beside)))))
    drop_dead_nodes(graph)
    body = GraphModule(explained, graph)
    if (cut := explained._cut_for_calls(body.graph)) is not None:
        set_forward(body, cut)
    return body


def _head(explained: Explained, hidden: Node, logits: Node, needed: list[Node], tail: set[Node]) -> GraphModule:
    graph = Graph()
    copies = {hidden: graph.placeholder("hidden")}
    wanted = tail | {n for node in tail for n in _needed_constants(node, tail | {hidden})}
    for node in needed:
        if node in wanted:
            copies[node] = graph.node_copy(node, lambda operand: copies[operand])
    graph.output(copies[logits])
    made = GraphModule(explained, graph)
    if is_streamed(made):
        set_forward(made, streamed_forward(made, graph, None))
    return made


def _needed_constants(node: Node, known: set[Node]) -> set[Node]:
    found: set[Node] = set()
    todo = [operand for operand in node.all_input_nodes if operand not in known]
    while todo:
        operand = todo.pop()
        if operand not in found:
            found.add(operand)
            todo.extend(operand.all_input_nodes)
    return found
