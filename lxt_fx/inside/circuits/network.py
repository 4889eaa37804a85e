"""A decoder as writers to its residual stream and readers of it, under the names of its standard places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from lxt_fx.attribution.dictionary_places import without_dictionaries
from lxt_fx.attribution.place_axes import axes_of, unit_axis
from lxt_fx.attribution.split_head import logits_index
from lxt_fx.attribution.standard_places import kind_of, standard_places
from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import fixed_size, shape, with_nodes
from lxt_fx.base.torch_internals import pytree
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.analysis.find_dictionaries import find_dictionaries
from lxt_fx.passes.analysis.find_layers import Stream, find_layers
from lxt_fx.passes.analysis.find_writers import Read, Scales, Write, Written, find_writers
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves

EMBEDDING, LOGITS = "embedding", "logits"

_At = tuple[str, int | None, int]
"""Place, axis of heads or features, and number of units."""


@dataclass(frozen=True, slots=True)
class Writer:
    """One write, whose units are writers of their own: heads, features of a dictionary, or itself. `names` are those of the
    units, from the index `start` among all writers on. `scales` is what the stream was multiplied with before it was
    written. `axis` is that of heads or features."""

    write: Write
    place: str
    names: tuple[str, ...]
    start: int
    scales: Scales
    axis: int | None = None

    @property
    def by_features(self) -> bool:
        """Whether its units are features, of which there are too many to have what each of them adds."""
        return kind_of(self.place) == "features"

    @property
    def units(self) -> range:
        """The indices of its units among all writers."""
        return range(self.start, self.start + len(self.names))


@dataclass(frozen=True, slots=True)
class Reader:
    """One read, whose units are readers of their own: heads of queries, keys or values, or itself. `sees` are the writers
    of the sum that it reads, `scales` what the stream was multiplied with before."""

    read: Read
    place: str
    names: tuple[str, ...]
    start: int
    sees: tuple[Writer, ...]
    scales: Scales
    axis: int | None = None

    @property
    def units(self) -> range:
        """The indices of its units among all readers."""
        return range(self.start, self.start + len(self.names))

    def only(self, value: Tensor, unit: int) -> Tensor:
        """The part of the value at the end of the read, [..., heads, ...], that is this unit's; the rest is 0."""
        if self.axis is None:
            return value
        kept = torch.zeros_like(value)
        self.part(kept, unit).copy_(self.part(value, unit))
        return kept

    def part(self, value: Tensor, unit: int) -> Tensor:
        """The part of the value at the end of the read that is this unit's; a view."""
        return value if self.axis is None else value.narrow(self.axis, unit * self.read.shared, self.read.shared)


@dataclass(frozen=True)
class Network:
    """The writers and readers of the graph of a module, in graph order."""

    module: Explained
    graph: Graph
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]

    @cached_property
    def writer_names(self) -> tuple[str, ...]:
        """The names of all writers: `embedding`, `attention.0.heads:3`, `mlp.0.output`, ..."""
        return tuple(name for writer in self.writers for name in writer.names)

    @cached_property
    def reader_names(self) -> tuple[str, ...]:
        """The names of all readers: `attention.0.queries:3`, `mlp.0.input`, ..., `logits`."""
        return tuple(name for reader in self.readers for name in reader.names)

    @cached_property
    def edges(self) -> Tensor:
        """Whether the reader reads what the writer wrote, [writers, readers] bool."""
        found = torch.zeros(len(self.writer_names), len(self.reader_names), dtype=torch.bool)
        for reader in self.readers:
            for writer in reader.sees:
                found[writer.units.start : writer.units.stop, reader.units.start : reader.units.stop] = True
        return found

    @cached_property
    def feeds(self) -> tuple[tuple[str, str], ...]:
        """The pairs (reader, writer) of which the one makes the other: the queries of a head its output."""
        by_end = {reader.read.end: reader for reader in self.readers}
        found = []
        for writer in self.writers:
            for reader in (by_end[end] for end in writer.write.reads):
                for unit, name in enumerate(writer.names):
                    of = unit * len(reader.names) // len(writer.names)  # heads of keys are shared by neighbours
                    found.append((reader.names[of], name))
        return tuple(found)

    def name_in_module(self, node: Node) -> str:
        """The name of a node of the canonical graph in the graph that the module runs."""
        return self.module.record.renamed.get(node.name, node.name)


@dataclass(frozen=True, slots=True)
class _Known:
    """What was found in a canonical graph: `written` with names in place of nodes, which would keep the graph."""

    written: Any
    writes: tuple[_At, ...]
    reads: tuple[_At, ...]


_KNOWN: WeakKeyDictionary[Graph, _Known] = WeakKeyDictionary()


def network_of(module: Explained, function: str, per_head: bool = False) -> Network:
    """The writers and readers of a decoder, found by the structure of its graph. With `per_head`, keys and values that
    several heads share are a reader for each of these heads, which reads its own copy of them.

    Raises InputError, in the name of `function`, for a module in explicit form, for a network whose residual stream is no
    plain sum of what attentions and MLPs add (norms behind the sums, several streams, gates on heads), and for dictionaries
    elsewhere than in the stream: it says what stands in the way.
    """
    if module.record.form != "gradient":
        raise InputError(
            f"{function}: this module is in explicit form, in which relevance flows back and no gradient; transform with "
            'form="gradient"'
        )
    graph = module.record.stages["canonical"].graph
    if graph not in _KNOWN:
        found = _found(module, graph, function)
        at = _Placed(module, {name: place for place, name in standard_places(module).items()}, function)
        named = with_nodes(found, lambda one: getattr(one, "name", one))
        _KNOWN[graph] = _Known(named, tuple(map(at.write, found.writes)), tuple(map(at.read, found.reads)))
    known = _KNOWN[graph]
    nodes: dict[object, Node] = {node.name: node for node in graph.nodes}
    written: Written = with_nodes(known.written, lambda one: nodes.get(one, one))
    writers, readers = list[Writer](), list[Reader]()
    for write, (place, axis, count) in zip(written.writes, known.writes, strict=True):
        start = writers[-1].units.stop if writers else 0
        writers.append(Writer(write, place, _numbered(place, count), start, written.scales[write.added], axis))
    for read, (place, axis, count) in zip(written.reads, known.reads, strict=True):
        start = readers[-1].units.stop if readers else 0
        sees = tuple(writers[index] for index in written.sums[read.stream])
        if per_head and read.shared > 1:
            read, count = replace(read, shared=1), count * read.shared
        readers.append(Reader(read, place, _numbered(place, count), start, sees, written.scales[read.stream], axis))
    network = Network(module, graph, tuple(writers), tuple(readers))
    if per_head:
        _check_per_head(network, function)
    return network


def _check_per_head(network: Network, function: str) -> None:
    """Raises InputError where heads share keys or values of which the graph has no copy for each of them."""
    by_end = {reader.read.end: reader for reader in network.readers}
    for writer in network.writers:
        for reader in (by_end[end] for end in writer.write.reads):
            if writer.axis is not None and not writer.by_features and len(reader.names) != len(writer.names):
                raise InputError(
                    f"{function}: {reader.place} has {len(reader.names)} heads for the {len(writer.names)} of "
                    f"{writer.place}, and the graph copies none of them, so no head has a reader of its own; leave out "
                    "per_head and by_token"
                )


def _found(module: Explained, graph: Graph, function: str) -> Written:
    gm, dictionaries = GraphModule(module, graph), find_dictionaries(graph)
    plain, node_of = without_dictionaries(graph, dictionaries)
    before = gm if plain is graph else GraphModule(module, plain)
    streams = find_layers(before, mark_flow(before, relevance_leaves(plain)))
    index, model = logits_index(module), module.record.model_class
    logits = None if index is None else pytree.tree_leaves(graph.output_node().args[0])[index]
    if len(streams) != 1 or not isinstance(logits, Node):
        lacks = f"{len(streams)} residual streams" if len(streams) != 1 else "no logits"
        raise InputError(f"{function}: {model} has {lacks}, and circuits are found in decoders with one stream and logits")
    stream: Stream = with_nodes(streams[0], lambda one: node_of.get(one, one))
    try:
        return find_writers(gm, mark_flow(gm, relevance_leaves(graph)), stream, logits, dictionaries)
    except InputError as error:
        raise InputError(
            f"{function}: {model} is no plain sum of writers: {error}; lxt_fx.show(explained, 'canonical') shows these "
            "nodes, and lxt_fx.latent reads relevance at the places of any network"
        ) from error


@dataclass(frozen=True, slots=True)
class _Placed:
    """The names and units of reads and writes."""

    module: Explained
    names: Mapping[str, str]
    function: str

    def write(self, write: Write) -> _At:
        """Where a write is. What enters the first layer is the embedding."""
        if write.parts is not None:
            return self._by_parts(write.parts, 1)
        return (self._name(write.output) if write.reads else EMBEDDING), None, 1

    def read(self, read: Read) -> _At:
        """Where a read is. An MLP reads at its input."""
        name = self._name(read.end)
        if kind_of(name) in ("queries", "keys", "values"):
            return self._by_parts(read.end, read.shared)
        return (name if name == LOGITS else f"{name.removesuffix('.output')}.input"), None, 1

    def _name(self, node: Node) -> str:
        return self.names[self.module.record.renamed.get(node.name, node.name)]

    def _by_parts(self, node: Node, shared: int) -> _At:
        name, values = self._name(node), self.module._values().by_name
        axes = axes_of(self.module, name, values[self.module.record.renamed.get(node.name, node.name)]).names
        axis = unit_axis(axes)
        count = fixed_size((shape(node) or (0,))[axis])
        if axes[:1] != ("batch",) or axes[axis] not in ("heads", "features") or not count or count % shared:
            raise InputError(f"{self.function}: {name} has the axes {', '.join(axes)}, and no fixed number of heads")
        return name, axis, count // shared


def _numbered(place: str, count: int) -> tuple[str, ...]:
    """The names of the units of a place; that of a place without heads is its own."""
    by_units = kind_of(place) in ("heads", "queries", "keys", "values", "features")
    return tuple(f"{place}:{unit}" for unit in range(count)) if by_units else (place,)


def index_of(names: Sequence[str]) -> dict[str, int]:
    """The index of each name."""
    return {name: index for index, name in enumerate(names)}
