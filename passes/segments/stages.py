"""Analysis: the stages of a graph, consecutive layers each of which runs in a process of its own.

A stage is a graph. What it reads of earlier stages it takes from the one before it, and what later stages read of those
before goes through it: an engine for pipelines passes values between neighbours only. Cheap values that depend on sizes,
inputs and small weights only (masks, rotary tables, position biases) are computed in every stage that reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import attrgetter

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import module_stack
from lxt_fx.base.torch_internals import pytree
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.segments.balanced import balanced
from lxt_fx.passes.segments.by_segments import Segments
from lxt_fx.passes.segments.find_segments import find_layers
from lxt_fx.passes.segments.stage_graph import Part, Parts, bytes_of

Cut = int | Sequence[int] | Sequence[str]
"""How many stages, of about equal bytes of weights; or how many layers each stage has; or the module with which each stage
but the first begins."""

Tensors = Mapping[str, Tensor]
NONE: Tensors = {}


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage as a graph. Its placeholders are `takes`, then `inputs`. It returns a tuple: the values of `gives`, then
    the flat outputs `outputs` of the whole graph, then the flat outputs `stays`.

    `takes` are the names of nodes whose values come from the stage before, `gives` those that the next stage takes, in the
    same order. `inputs` names inputs of the whole graph that it reads itself; those with relevance are read by the first
    stage, and taken by the others. `outputs` are numbers of outputs that leave the last stage, `stays` of those that this
    stage computes and that do not travel. `parameters` are the paths of the tensors that it reads of the module, which have
    `size` bytes. `layers` names its layers.
    """

    index: int
    graph: Graph
    takes: tuple[str, ...]
    inputs: tuple[str, ...]
    gives: tuple[str, ...]
    outputs: tuple[int, ...]
    stays: tuple[int, ...]
    parameters: tuple[str, ...]
    size: int
    layers: tuple[str, ...]


def stages_of(
    owner: nn.Module,
    graph: Graph,
    cut: Cut,
    *,
    stays: Collection[int] = (),
    outputs: Collection[int] | None = None,
    in_first: Tensors = NONE,
    in_last: Tensors = NONE,
) -> tuple[Stage, ...]:
    """Analysis: the stages of a graph that a module runs.

    `outputs` are the flat outputs that are wanted, by default all but those of `stays`, which are left where they are
    computed. `in_first` and `in_last` are further tensors that the first and the last stage have, by path: those of
    lookups by token, and of a head that runs outside of the graph.

    Raises InputError for a graph without a chain of layers that is not cut at modules by name, for a cut that does not fit
    its layers, and where what crosses a border is no tensor.
    """
    firsts, layers = _first_nodes(owner, graph, cut, in_first, in_last)
    flat = pytree.tree_leaves(graph.output_node().args[0])
    wanted = [i for i, node in enumerate(flat) if isinstance(node, Node) and i not in stays]
    wanted = wanted if outputs is None else [index for index in wanted if index in outputs]
    parts, count = Parts(owner, graph, firsts), len(firsts) + 1
    found: list[Stage] = []
    gives: tuple[Node, ...] = ()
    for index in reversed(range(count)):
        ends = wanted if index == count - 1 else []
        own = [i for i in stays if parts.home[flat[i]] == index]
        part = Part(parts, index)
        made = part.graph_of(gives, [flat[i] for i in (*ends, *own)])
        takes, sent = (tuple(node.name for node in nodes) for nodes in (part.takes, gives))
        inputs = tuple(str(node.target) for node in part.inputs)
        tensors = {path: attrgetter(path)(owner) for path in part.parameters}
        tensors |= {**(in_first if index == 0 else {}), **(in_last if index == count - 1 else {})}
        size = sum({id(each): bytes_of(each) for each in tensors.values()}.values())
        found.append(Stage(index, made, takes, inputs, sent, tuple(ends), tuple(own), tuple(tensors), size, layers[index]))
        gives = tuple(part.takes)
    return tuple(reversed(found))


def _first_nodes(
    owner: nn.Module, graph: Graph, cut: Cut, in_first: Tensors, in_last: Tensors
) -> tuple[list[Node], list[tuple[str, ...]]]:
    """The first node of each stage but the first, and the names of each one's layers."""
    if not isinstance(cut, int) and any(isinstance(each, str) for each in cut):
        paths = [str(path) for path in cut]
        nodes = [_first_of(graph, path) for path in paths]
        place = {node: number for number, node in enumerate(graph.nodes)}
        if any(place[a] >= place[b] for a, b in pairwise(nodes)):
            raise InputError(f"stages: {', '.join(paths)} do not run in this order; name them as they run")
        return nodes, [(), *((path,) for path in paths)]
    gm = GraphModule(owner, graph)
    layers = find_layers(gm, mark_flow(gm, relevance_leaves(gm.graph)))
    if layers is None:
        raise InputError(
            "stages: the graph has no chain of layers (sibling modules `prefix.0, prefix.1, ...` of which each reads what "
            "the one before it made), so nothing says where to cut it; name the modules with which all stages but the "
            'first begin: stages=["mixer", "head"]'
        )
    pieces = [{path: attrgetter(path)(owner) for path in piece} for piece in layer_weights(graph, layers)]
    pieces[0] |= in_first
    pieces[-1] |= in_last
    counts = _counts(cut, [sum(map(bytes_of, piece.values())) for piece in pieces])
    edges = [0, *accumulate(counts)]
    named = {node.name: node for node in graph.nodes}
    return [named[layers.starts[edge]] for edge in edges[1:-1]], [layers.places[a:b] for a, b in pairwise(edges)]


def _first_of(graph: Graph, path: str) -> Node:
    nodes: list[Node] = list(graph.nodes)
    for node in nodes:
        if node.op == "call_function" and any(own == path for own, _ in module_stack(node)):
            return node
    raise InputError(f"stages: no op of the graph belongs to a module {path!r}; lxt_fx.show(explained) lists them")


def _counts(cut: int | Sequence[int] | Sequence[str], sizes: Sequence[int]) -> list[int]:
    """How many layers each stage has. `sizes` are the bytes of each layer."""
    if not isinstance(cut, int):
        counts = [int(each) for each in cut]
        if sum(counts) != len(sizes) or min(counts, default=0) < 1:
            raise InputError(f"stages: {len(counts)} stages of {counts} layers, but the graph has {len(sizes)} layers")
        return counts
    if isinstance(cut, bool) or not 1 <= cut <= len(sizes):
        raise InputError(f"stages: {cut} stages, but the graph has {len(sizes)} layers; ask for 1 to {len(sizes)}")
    return balanced(sizes, cut)


def layer_weights(graph: Graph, layers: Segments) -> list[set[str]]:
    """Analysis: the paths of the tensors that each layer reads. The first has what is read before it too, the last what is
    read behind it."""
    starts = {name: index for index, name in enumerate(layers.starts)}
    pieces = [set[str]() for _ in layers.starts]
    index = 0
    for node in graph.nodes:
        index = starts.get(node.name, index)
        pieces[index] |= {str(read.target) for read in node.all_input_nodes if read.op == "get_attr"}
    return pieces
