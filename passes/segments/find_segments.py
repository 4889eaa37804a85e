"""Analysis: where to cut a graph into segments that the backward recomputes."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import is_float, module_path, module_stack, value
from lxt_fx.base.torch_internals import aten, size_on_example
from lxt_fx.ops import explicit, products
from lxt_fx.ops.aten_kinds import MOVES
from lxt_fx.ops.by_queries import FusedAttention, WrittenAttention
from lxt_fx.passes.analysis.mark_flow import Flow, mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.segments.by_segments import Segments

_NUMBERED = re.compile(r"(?:(.*)\.)?(\d+)")
_ATTENTIONS = frozenset(
    {
        *(products.softmax, products.sdpa, products.sdpa_held, aten.softmax.int, aten.scaled_dot_product_attention.default),
        *(explicit.softmax_taylor, explicit.sdpa_steps, explicit.sdpa_held_steps),
    }
)
_FOR_READERS = frozenset({explicit.enter, products.hold})
"""Inserted for the nodes that read them, but recorded under the module of the value that they read."""

Layer = tuple[str, str]
"""A module `prefix.number` as its prefix and number."""


def segments_of(owner: nn.Module, graph: Graph, checkpoint: str | int) -> Segments:
    """Analysis: the segments of a graph that a module runs."""
    gm = GraphModule(owner, graph)
    return find_segments(gm, mark_flow(gm, relevance_leaves(gm.graph)), checkpoint)


def find_segments(gm: GraphModule, flow: Flow, checkpoint: str | int) -> Segments:
    """Analysis: segments of one layer (`checkpoint="layers"`), of about sqrt(n) of n layers (`"sqrt"`), of k layers (k).

    Layers are sibling modules `prefix.0, prefix.1, ...` that have submodules and read the output of the sibling before. The
    longest such run counts, and others beside it (those of an encoder and a decoder). Nodes before the first and after the
    last layer are in no segment; nodes between two layers belong to the first of them. A graph without such a run is cut
    into pieces of equal size in bytes; the number of its attentions, or else of its weights, stands for the number of
    layers.
    """
    nodes = [node for node in gm.graph.nodes if node.op == "call_function"]
    carrying = [node for node in nodes if node in flow.carrying]
    cuts, end = _layer_cuts(nodes, flow)
    if cuts:
        groups = _grouped(cuts, checkpoint)
        return Segments(tuple(g[0][0].name for g in groups), end, tuple(_place(g[0][1], g[-1][1]) for g in groups))
    count = len(_grouped([None] * _estimated_layers(carrying), checkpoint))
    starts = [carrying[0], *_even_cuts(carrying, count)] if carrying else []
    return Segments(tuple(n.name for n in starts), "output", tuple(module_path(n) or f"%{n.name}" for n in starts))


def find_layers(gm: GraphModule, flow: Flow) -> Segments | None:
    """Analysis: the layers of `find_segments`, one segment each; None for a graph without such a run."""
    found = find_segments(gm, flow, "layers")
    return found if _layer_cuts([node for node in gm.graph.nodes if node.op == "call_function"], flow)[0] else None


def _grouped(layers: list[Any], checkpoint: str | int) -> list[list[Any]]:
    """The layers of each segment; for "sqrt", in groups of nearly equal size."""
    if isinstance(checkpoint, int):
        return [layers[i : i + checkpoint] for i in range(0, len(layers), checkpoint)]
    if checkpoint == "layers":
        return [[layer] for layer in layers]
    count = math.ceil(len(layers) / round(math.sqrt(len(layers)))) if layers else 0
    edges = [round(i * len(layers) / count) for i in range(count + 1)] if count else []
    return [layers[a:b] for a, b in pairwise(edges)]


def _place(first: Layer, last: Layer) -> str:
    paths = [".".join(filter(None, layer)) for layer in dict.fromkeys((first, last))]
    return " to ".join(paths)


@dataclass(slots=True)
class _Run:
    """Sibling modules `prefix.number` with their nodes."""

    prefix: str
    members: dict[str, list[Node]] = field(default_factory=lambda: defaultdict(list))

    def holds(self, prefix: str) -> bool:
        """Whether the modules under that prefix are inside one of these."""
        found = re.match(rf"{re.escape(self.prefix)}\.?(\d+)(\.|$)", prefix)
        return found is not None and found.group(1) in self.members

    def is_chain(self) -> bool:
        """Whether each reads, directly or not, what the one before it made. Experts that a token is routed to do not."""
        inside = {node: number for number, nodes in self.members.items() for node in nodes}
        numbers = list(dict.fromkeys(inside.values()))
        follows = set()
        made_from: dict[Node, set[str]] = {}
        todo = list(self.members[numbers[0]][0].graph.nodes)
        for node in todo:
            found = set().union(*(made_from[read] for read in node.all_input_nodes))
            if node in inside:
                follows |= {(number, inside[node]) for number in found}
                found.add(inside[node])
            made_from[node] = found
        return all(pair in follows for pair in pairwise(numbers))


def _layer_cuts(nodes: list[Node], flow: Flow) -> tuple[list[tuple[Node, Layer]], str]:
    """The first node of each layer and the layer, in the order of the graph, and the name of the node after the last."""
    layer_of = _layer_of(_chosen(_runs(node for node in nodes if node in flow.carrying)))
    cuts: list[tuple[Node, Layer]] = []
    start: Node | None = None
    start_of: Layer | None = None
    last: Node | None = None
    for node in nodes:
        layer = _layer(node, layer_of)
        if layer is None or layer != start_of:
            start, start_of = node, layer  # constants of a layer may stand before its first carrying node
        if layer is None or node not in flow.carrying:
            continue
        last = node
        if not cuts or cuts[-1][1] != layer:
            assert start is not None
            cuts.append((start, layer))
    return cuts, last.next.name if last is not None else ""


def _layer(node: Node, layer_of: Mapping[str, Layer]) -> Layer | None:
    while node.target in _FOR_READERS and node.users:
        node = next(iter(node.users))
    return next((layer_of[path] for path, _ in module_stack(node) if path in layer_of), None)


def _layer_of(runs: list[_Run]) -> dict[str, Layer]:
    return {_place(layer, layer): layer for run in runs for layer in ((run.prefix, number) for number in run.members)}


def _runs(carrying: Iterable[Node]) -> list[_Run]:
    """Runs of two or more modules that have submodules (the steps of an `nn.Sequential` are not layers)."""
    runs: dict[str, _Run] = {}
    composite: set[Layer] = set()
    for node in carrying:
        for depth, (path, _) in enumerate(stack := module_stack(node)):
            found = _NUMBERED.fullmatch(path)
            if found is None:
                continue
            prefix, number = found.group(1) or "", found.group(2)
            runs.setdefault(prefix, _Run(prefix)).members[number].append(node)
            if any(deeper != path for deeper, _ in stack[depth + 1 :]):
                composite.add((prefix, number))
    whole = [run for run in runs.values() if all((run.prefix, number) in composite for number in run.members)]
    return [run for run in whole if len(run.members) > 1]


def _chosen(runs: list[_Run]) -> list[_Run]:
    """The longest run that is a chain, then each next longest one that is neither inside nor around a chosen run."""
    chosen: list[_Run] = []
    for run in sorted(runs, key=lambda run: (-len(run.members), len(run.prefix))):
        if any(other.holds(run.prefix) or run.holds(other.prefix) for other in chosen):
            continue
        if run.is_chain():
            chosen.append(run)
    return chosen


def _estimated_layers(carrying: list[Node]) -> int:
    by_queries = (FusedAttention, WrittenAttention)
    attentions = sum(isinstance(node.target, by_queries) or node.target in _ATTENTIONS for node in carrying)
    if attentions > 1:
        return attentions
    return max(1, sum(any(map(_is_weight, node.all_input_nodes)) for node in carrying))


def _is_weight(node: Node) -> bool:
    if node.target is products.hold:
        return _is_weight(node.all_input_nodes[0])
    found = value(node)
    return node.op == "get_attr" and is_float(node) and isinstance(found, Tensor) and found.dim() > 1


def _even_cuts(carrying: list[Node], count: int) -> list[Node]:
    """The nodes before which the graph is cut into `count` pieces. Each cut lies within half a piece of the equal share,
    where the fewest bytes pass from one piece to the next."""
    made = list(accumulate(0 if node.target in MOVES else _bytes(node) for node in carrying))
    passing = _passing(carrying)
    piece = made[-1] / count if carrying else 0
    cuts: list[Node] = []
    for index in range(1, count):
        share = index * piece
        near = [i for i in range(1, len(carrying)) if abs(made[i - 1] - share) < piece / 2]
        if near:
            cuts.append(carrying[min(near, key=lambda i: (passing[i], abs(made[i - 1] - share)))])
    return list(dict.fromkeys(cuts))


def _passing(carrying: list[Node]) -> list[int]:
    """For each carrying node the bytes of carrying values that were made before it and are read by it or later."""
    position = {node: index for index, node in enumerate(carrying)}
    change = [0] * (len(carrying) + 1)
    for index, node in enumerate(carrying):
        last = max((position[user] for user in node.users if user in position), default=index)
        change[index + 1] += _bytes(node)
        change[last + 1] -= _bytes(node)
    return list(accumulate(change))


def _bytes(node: Node) -> int:
    """Bytes of the node's values on the example; views count as copies."""
    found = value(node)
    items = found if isinstance(found, (list, tuple)) else [found]
    tensors = [item for item in items if isinstance(item, Tensor)]
    return sum(tensor.dtype.itemsize * math.prod(map(size_on_example, tensor.shape)) for tensor in tensors)
