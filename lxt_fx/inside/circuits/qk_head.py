"""One head of an attention: its writer, the readers of its queries and keys, and where these meet."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from lxt_fx.attribution.places import nearest
from lxt_fx.attribution.standard_places import kind_of, standard_places
from lxt_fx.base.errors import InputError, UnknownNameError
from lxt_fx.base.nodes import arguments
from lxt_fx.base.wide import at_least_float32
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network, Reader, Writer
from lxt_fx.inside.circuits.qk_parts import HeadRead, Sources
from lxt_fx.inside.circuits.qk_scores import held, pattern_of
from lxt_fx.passes.analysis.find_scores import Meeting, find_meeting
from lxt_fx.passes.analysis.mark_flow import Flow, mark_flow
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A head of an attention: its writer with its unit, the readers of its queries and keys, and where these meet."""

    network: Network
    flow: Flow
    name: str
    writer: Writer
    unit: int
    queries: Reader
    keys: Reader
    meeting: Meeting


def head_of(network: Network, name: str, function: str) -> Head:
    """The head of this name. Raises UnknownNameError for one that there is not, InputError where its scores cannot be
    read."""
    heads = _heads(network)
    if not heads:
        raise InputError(
            f"{function}: {network.module.record.model_class} has no heads that write to the stream, as its attentions are "
            "written in a way that hides them; lxt_fx.places(explained) lists what was found"
        )
    if name not in heads:
        raise UnknownNameError(f"{function}: there is no head {name!r}; {nearest(str(name), heads)}")
    writer = heads[name]
    gm = GraphModule(network.module, network.graph)
    flow = mark_flow(gm, relevance_leaves(network.graph))
    by_end = {reader.read.end: reader for reader in network.readers}
    queries, keys = (by_end[end] for end in writer.write.reads[:2])
    meeting = find_meeting(flow, queries.read.end, keys.read.end)
    if meeting is None:
        raise InputError(
            f"{function}: {writer.place} writes its scores in another way than as one product of queries and keys, so they "
            'are no sum over pairs; load the model with attn_implementation="eager" or "sdpa"'
        )
    values = network.module._values()
    if not values.carries(values.by_name[network.name_in_module(queries.read.end)]):
        raise held(network.module, writer.place, function)
    return Head(network, flow, name, writer, writer.names.index(name), queries, keys, meeting)


def _heads(network: Network) -> dict[str, Writer]:
    """The writer of each head."""
    return {name: writer for writer in network.writers if kind_of(writer.place) == "heads" for name in writer.names}


def split_heads(head: Head, sources: str | Sequence[str], function: str) -> dict[str, Writer]:
    """The heads that are split by source token. Raises UnknownNameError for a name that is none of an earlier head."""
    seen = {*head.queries.sees, *head.keys.sees}
    heads = {name: writer for name, writer in _heads(head.network).items() if writer in seen}
    found: dict[str, Writer] = {}
    for pattern in (sources,) if isinstance(sources, str) else sources:
        fitting = [name for name in heads if fnmatch.fnmatchcase(name, str(pattern))]
        if not fitting:
            raise UnknownNameError(
                f"{function}: sources={pattern!r} names no head that {head.name} reads; {nearest(str(pattern), heads)}"
            )
        found |= {name: heads[name] for name in fitting}
    return found


def reads_of(head: Head, run: GraphRun) -> tuple[HeadRead, HeadRead]:
    """The maps from the stream to the queries and to the keys of the head."""
    meeting, heads = head.meeting, len(head.writer.names)

    def read(reader: Reader, operand: Node, behind: tuple[Node, ...], turned: bool) -> HeadRead:
        own = run.values[operand].shape[:-2].numel()
        nodes = (*reader.read.between, *behind)
        return HeadRead(run, reader, nodes, operand, head.unit * own // heads, turned)

    return (
        read(head.queries, meeting.queries, meeting.from_queries, False),
        read(head.keys, meeting.keys, meeting.from_keys, meeting.scores is not None),
    )


def scale_of(run: GraphRun, meeting: Meeting, function: str) -> float:
    """What the product of a query and a key is multiplied with. Raises InputError where pairs have factors of their own."""
    if meeting.scores is None:
        scale = arguments(meeting.product).get("scale")
        return 1 / math.sqrt(run.values[meeting.queries].shape[-1]) if scale is None else float(scale)
    ones = torch.ones_like(at_least_float32(run.values[meeting.product]))
    factors = run.through(meeting.factors, meeting.product, ones)
    if not bool((factors == factors.flatten()[0]).all()):
        raise InputError(f"{function}: %{meeting.factors[-1].name} gives scores factors that differ from pair to pair")
    return float(factors.flatten()[0])


def pattern_node(network: Network, writer: Writer) -> Node | None:
    """The node of the pattern of an attention, if the graph has it."""
    name = standard_places(network.module).get(f"{writer.place.removesuffix('heads')}pattern")
    return next((node for node in network.graph.nodes if network.name_in_module(node) == name), None)


def sources_of(head: Head, run: GraphRun, writer: Writer, name: str, function: str) -> Sources:
    """The weights and values of a head that is split by source token."""
    queries, keys, values = writer.write.reads
    meeting, unit = find_meeting(head.flow, queries, keys), writer.names.index(name)
    pattern = pattern_node(head.network, writer)
    if meeting is None:
        raise InputError(f"{function}: the pattern of {writer.place} cannot be read; leave {name} out of sources")
    weights = at_least_float32(pattern_of(run, meeting, pattern)).flatten(0, -3)[unit]
    each = at_least_float32(run.values[values]).flatten(0, -3)
    return Sources(weights, each[unit * len(each) // len(writer.names)])
