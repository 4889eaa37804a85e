"""An explained model in two: its body, and the linear head that makes the logits of each position from one row of it.

Every path from the logits back to the inputs goes through the rows that the head reads, so backward through the head and
backward through the body, one after the other, are the backward through both. The logits of a few positions are then a
matter of a few rows, where the whole head would make [batch, positions, vocabulary] numbers and as many gradients. Both
are parts of the fused graph, which a plain call runs, and the body is cut into the same segments.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import shape
from lxt_fx.base.torch_internals import aten, io_of, pytree, set_forward, set_io
from lxt_fx.compiler.explained import Explained
from lxt_fx.ops import explicit, fused, products
from lxt_fx.ops.aten_kinds import ACTIVATIONS, POINTWISE
from lxt_fx.ops.head import head
from lxt_fx.passes.drop_dead import drop_dead
from lxt_fx.passes.segments.recompute import checkpointed_forward

_LINEAR = frozenset({head, products.linear, aten.linear.default})
_ROW_BY_ROW = (
    POINTWISE
    | ACTIVATIONS
    | {fused.share, products.epsilon, products.hold, explicit.enter, explicit.leave, explicit.pass_on, aten.to.dtype}
)


@dataclass(frozen=True, slots=True)
class Cut:
    """`body` takes the inputs by name and gives rows [batch, positions, hidden]; `head` takes such rows, of as many
    positions as wanted, to their logits [batch, positions, entries]."""

    body: GraphModule
    head: GraphModule


def cut_head(explained: Explained) -> Cut | None:
    """The module in two parts, which share its parameters; None where what makes the logits is no linear map of each
    position's row, with nothing but elementwise ops behind it (soft caps, casts)."""
    index, flat = logits_index(explained), pytree.tree_leaves(explained.fused.output_node().args[0])
    if index is None or not isinstance(flat[index], Node) or len(shape(flat[index]) or ()) != 3:
        return None
    needed = _needed(flat[index])
    by_inputs = _by_inputs(needed)
    region = [node for node in needed if node in by_inputs]
    linear = next((node for node in reversed(region) if node.target in _LINEAR), None)
    if linear is None:
        return None
    rows = linear.args[0]
    behind = region[region.index(linear) :]
    if not isinstance(rows, Node) or len(shape(rows) or ()) != 3 or not _reads_only(behind, linear, by_inputs):
        return None
    return Cut(_body(explained, rows), _head(explained, rows, flat[index], needed, set(behind)))


def logits_index(explained: Explained) -> int | None:
    """Which of the flat outputs is `logits`, or the only output; None where there is no such."""
    spec = io_of(explained.graph).out_spec
    output = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    return next((index for index in (output, found) if isinstance(index, int)), None)


def _needed(node: Node) -> list[Node]:
    """The node and all that it is computed from, in graph order."""
    seen, todo = {node}, [node]
    while todo:
        for operand in todo.pop().all_input_nodes:
            if operand not in seen:
                seen.add(operand)
                todo.append(operand)
    return [each for each in node.graph.nodes if each in seen]


def _by_inputs(nodes: list[Node]) -> set[Node]:
    """Those that depend on an input of the module; the others compute weights."""
    found: set[Node] = set()
    for node in nodes:
        if node.op == "placeholder" or not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _reads_only(behind: list[Node], linear: Node, by_inputs: set[Node]) -> bool:
    """Whether the nodes from the linear map to the logits are elementwise and read nothing else that inputs decide."""
    inside = set(behind)
    if any(operand in by_inputs for operand in linear.all_input_nodes if operand is not linear.args[0]):
        return False
    others = [node for node in behind if node is not linear]
    return all(
        node.target in _ROW_BY_ROW and all(n in inside for n in node.all_input_nodes if n in by_inputs) for node in others
    )


def _body(explained: Explained, rows: Node) -> GraphModule:
    graph = Graph()
    copies: dict[Node, Node] = {}
    graph.graph_copy(explained.fused, copies)
    graph.output((copies[rows],))
    set_io(graph, replace(io_of(explained.graph), out_spec=pytree.tree_structure(0)))
    body = GraphModule(explained, graph)
    drop_dead(body)
    body.recompile()
    if explained.segments is not None:
        set_forward(body, checkpointed_forward(body.graph, explained.segments))
    return body


def _head(explained: Explained, rows: Node, logits: Node, needed: list[Node], behind: set[Node]) -> GraphModule:
    graph = Graph()
    copies = {rows: graph.placeholder("rows")}
    wanted = behind | {n for node in behind for n in _needed_constants(node, behind | {rows})}
    for node in needed:
        if node in wanted:
            copies[node] = graph.node_copy(node, lambda operand: copies[operand])
    graph.output(copies[logits])
    return GraphModule(explained, graph)


def _needed_constants(node: Node, known: set[Node]) -> set[Node]:
    found: set[Node] = set()
    todo = [operand for operand in node.all_input_nodes if operand not in known]
    while todo:
        operand = todo.pop()
        if operand not in found:
            found.add(operand)
            todo.extend(operand.all_input_nodes)
    return found
