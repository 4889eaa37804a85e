"""The graph of one stage: what it computes itself, what it takes from the stage before, and what it hands on."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from operator import attrgetter

from torch import Tensor, nn
from torch.fx import Graph, Node

from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import shape, source_line, written_shape
from lxt_fx.base.torch_internals import aten
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.segments.by_segments import known_early

SHARED, SHARE = 2**20, 100
"""A value that is computed in every stage that reads it needs weights of at most `SHARED` bytes, or of one in `SHARE` of
all bytes of weights."""


class Parts:
    """Where each value of a graph is computed, for stages that begin with the nodes `firsts`."""

    def __init__(self, owner: nn.Module, graph: Graph, firsts: Sequence[Node]) -> None:
        self.owner, self.graph = owner, graph
        self.leaves = set(relevance_leaves(graph))
        self.home = _homes(graph, firsts)
        self.everywhere = self._everywhere()

    def size(self, path: str) -> int:
        """The bytes of a tensor of the module."""
        return bytes_of(attrgetter(path)(self.owner))

    def _everywhere(self) -> set[Node]:
        """What every stage that reads it computes or reads itself: sizes, and cheap values that no relevance reaches."""
        nodes = list(self.graph.nodes)
        known = known_early(nodes)
        paths = {str(node.target) for node in nodes if node.op == "get_attr"}
        bound = max(SHARED, sum(map(self.size, paths)) // SHARE)
        weights: dict[Node, frozenset[str]] = {}
        found: set[Node] = set()
        for node in nodes:
            if node not in known:
                continue
            own = {str(node.target)} if node.op == "get_attr" else set()
            weights[node] = frozenset(own.union(*(weights[read] for read in node.all_input_nodes)))
            is_cheap = node.op != "call_function" or sum(map(self.size, weights[node])) <= bound
            if is_cheap and node not in self.leaves:
                found.add(node)
        return found


def _homes(graph: Graph, firsts: Sequence[Node]) -> dict[Node, int]:
    """The stage in whose stretch of the graph each node stands. Items of a list stay with the list."""
    starts = {node: index for index, node in enumerate(firsts, start=1)}
    home: dict[Node, int] = {}
    stage = 0
    for node in graph.nodes:
        stage = starts.get(node, stage)
        home[node] = 0 if node.op == "placeholder" else stage
        if node.target is operator.getitem and node.all_input_nodes:
            home[node] = home[node.all_input_nodes[0]]
    return home


class Part:
    """What one stage computes: `takes` are the values of the stage before, `inputs` the inputs of the graph, `parameters`
    the paths that it reads."""

    def __init__(self, parts: Parts, index: int) -> None:
        self.parts, self.index = parts, index
        self.takes: dict[Node, None] = {}
        self.inputs: dict[Node, None] = {}
        self._own: set[Node] = set()
        self._sizes: dict[Node, None] = {}
        self._size_of: dict[Node, tuple[Node, int]] = {}

    @property
    def parameters(self) -> tuple[str, ...]:
        """The paths of the tensors that it reads of the module."""
        read = [node for node in self.parts.graph.nodes if node in self._own and node.op == "get_attr"]
        return tuple(dict.fromkeys(str(node.target) for node in read))

    def graph_of(self, gives: Sequence[Node], more: Sequence[Node]) -> Graph:
        """The graph that returns the values `gives` for the next stage, contiguous, and `more` behind them."""
        for node in (*gives, *more):
            self._need(node)
        while self._sizes:
            self._find_size(self._sizes.popitem()[0])
        graph, copies = Graph(), dict[Node, Node]()
        for node in (*self.takes, *self.inputs):
            copies[node] = graph.placeholder(node.name)
            copies[node].meta = dict(node.meta)
        for node in self.parts.graph.nodes:
            if node not in self._own:
                continue
            copies[node] = graph.node_copy(node, lambda read: copies.get(read, read))
            if node in self._size_of:
                read, dim = self._size_of[node]
                copies[node].args = (copies[read], dim)
        graph.output((*(_handed_on(graph, copies[node]) for node in gives), *(copies[node] for node in more)))
        graph.lint()
        return graph

    def _need(self, wanted: Node) -> None:
        """Finds all that a value is computed from in this stage."""
        todo = [wanted]
        while todo:
            node = todo.pop()
            if node in self._own or node in self.takes or node in self.inputs or node in self._sizes:
                continue
            if self._is_taken(node):
                self._check_travels(node)
                self.takes[node] = None
            elif node.op == "placeholder":
                self.inputs[node] = None
            elif self._is_size_of_taken(node):
                self._sizes[node] = None
            else:
                self._own.add(node)
                todo.extend(node.all_input_nodes)

    def _is_taken(self, node: Node) -> bool:
        return node not in self.parts.everywhere and self.parts.home[node] < self.index

    def _is_size_of_taken(self, node: Node) -> bool:
        return node.target is aten.sym_size.int and self._is_taken(node.all_input_nodes[0])

    def _find_size(self, node: Node) -> None:
        """Reads a size from a value that is taken in any case; else the tensor whose size it is is taken too."""
        whole, dim = node.args[0], node.args[1]
        assert isinstance(whole, Node) and isinstance(dim, int)
        self._own.add(node)
        wanted = (written_shape(whole) or ())[dim]
        for taken in self.takes:
            if wanted in (sizes := written_shape(taken) or ()):
                self._size_of[node] = taken, sizes.index(wanted)
                return
        self._need(whole)

    def _check_travels(self, node: Node) -> None:
        if shape(node) is None:
            raise InputError(
                f"stages: %{node.name} ({source_line(node) or node.target}) crosses into stage {self.index}, and it is no "
                "tensor but a list or a number that depends on values; cut the graph elsewhere: stages=[...] takes the "
                "number of layers of each stage, or the modules that they begin with"
            )


HANDED_ON = (aten.alias.default, aten.contiguous.default)
"""What a value goes through before it is sent: it is contiguous, and no input, so that a gradient passes an op of the
stage."""


def _handed_on(graph: Graph, node: Node) -> Node:
    for op in HANDED_ON:
        meta = dict(node.meta)
        node = graph.call_function(op, (node,))
        node.meta = meta
    return node


def bytes_of(found: object) -> int:
    """The bytes of a tensor, 0 for what is no tensor."""
    return found.numel() * found.element_size() if isinstance(found, Tensor) else 0
