"""Analysis: the residual stream of a network, and what stands in each of its layers.

No name of a module is read. A value that every path from a leaf to the output goes through is a cut of the network: it
dominates the output. Between two cuts of a transformer lies a block: a sum of the first cut and of what is computed from
it. The cuts at the borders of the layers are the residual stream. What a block adds is found in `find_block_parts.py`, and
in `find_mlp.py` what an MLP is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import shape, written_shape
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.aten_kinds import LINEAR_MAPS
from lxt_fx.passes.analysis.carried_edges import carried_edges
from lxt_fx.passes.analysis.find_attention_parts import AttentionParts
from lxt_fx.passes.analysis.find_block_parts import (
    Block,
    Reader,
    blocks_between,
    cuts_before,
    last_of_stream,
)
from lxt_fx.passes.analysis.find_groups import find_groups
from lxt_fx.passes.analysis.find_mlp import Mlp, find_mlp
from lxt_fx.passes.analysis.mark_flow import Flow


@dataclass(frozen=True, slots=True)
class Attention:
    """What attends in a layer: `output` is what it adds to the residual stream before norms and scales, that of the output
    projection where there is one; `parts` are its attentions, of which it may have several (windows of several sizes).
    `is_cross` says that the keys come from another stream."""

    output: Node
    parts: tuple[AttentionParts, ...]
    is_cross: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the residual stream before and after it, its attentions and MLPs, and the outputs of what mixes tokens in
    other ways (recurrences, convolutions)."""

    before: Node
    after: Node
    attentions: tuple[Attention, ...]
    mlps: tuple[Mlp, ...]
    mixers: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """The layers that the values of one leaf go through, in order, and all cuts of its paths to the output."""

    leaf: Node
    cuts: tuple[Node, ...]
    layers: tuple[Layer, ...]


def find_layers(gm: GraphModule, flow: Flow) -> tuple[Stream, ...]:
    """Analysis: the streams of a canonical graph, one for each leaf that has layers of its own. A block that the values of
    several leaves go through is in the stream that it continues."""
    reader = Reader(flow, find_groups(gm, flow), {node: place for place, node in enumerate(gm.graph.nodes)})
    carried, output = carried_edges(reader, gm.graph), _last_carrying(gm.graph, flow)
    ways: dict[Node, _Way] = {}
    for leaf in flow.leaves:
        if leaf in carried and output is not None:
            above = nx.immediate_dominators(carried, leaf)
            cuts, segment_of = cuts_before(above, leaf, last_of_stream(reader, above, leaf, output))
            ways[leaf] = _Way(cuts, segment_of, tuple(blocks_between(reader, cuts, segment_of)))
    owners = _owners(reader.order, ways)
    streams = []
    for leaf, way in ways.items():
        blocks = [block for block in way.blocks if owners[block.after] is leaf]
        groups = list(_grouped(_one_kind(reader, blocks)))
        if groups:
            behind = _behind(flow, way.cuts, groups)
            layers = tuple(_layer(reader, group, after) for group, after in zip(groups, behind, strict=True))
            streams.append(Stream(leaf, way.cuts, layers))
    return tuple(streams)


@dataclass(frozen=True, slots=True)
class _Way:
    """The way from a leaf to the output: its cuts, the last of them before each value behind the leaf, and its blocks."""

    cuts: tuple[Node, ...]
    segment_of: Mapping[Node, Node]
    blocks: tuple[Block, ...]


def _owners(order: Mapping[Node, int], ways: Mapping[Node, _Way]) -> dict[Node, Node]:
    """The leaf of each block, by the sum that ends it: that in whose stream the block before is the nearest, and where two
    are as near, that which has the block before."""
    near: dict[Node, list[tuple[int, Node, Node | None]]] = {}
    for leaf, way in ways.items():
        place = {cut: index for index, cut in enumerate(way.cuts)}
        last: Node | None = None
        for block in way.blocks:
            steps = place[block.before] - (place[last] if last is not None else 0)
            near.setdefault(block.after, []).append((steps, leaf, last))
            last = block.after
    owners: dict[Node, Node] = {}
    for after in sorted(near, key=order.__getitem__):
        least = min(steps for steps, _, _ in near[after])
        nearest = [(leaf, last) for steps, leaf, last in near[after] if steps == least]
        going_on = [leaf for leaf, last in nearest if last is not None and owners[last] is leaf]
        owners[after] = going_on[-1] if going_on else nearest[-1][0]
    return owners


def _before_constants(flow: Flow, node: Node) -> Node:
    """What the layer before gives, where its successor reads it with a constant for each token added (YOLOS: positions). A
    bias, which all tokens share, belongs to a norm."""
    while node.target is aten.add.Tensor and len(found := flow.carrying_operands(node)) == 1:
        added = [one for one in node.all_input_nodes if one is not found[0].node]
        if not added or len(shape(added[0]) or ()) < 2:
            return node
        node = found[0].node
    return node


def _last_carrying(graph: Graph, flow: Flow) -> Node | None:
    outputs = [node for node in graph.output_node().all_input_nodes if node in flow.carrying]
    order = {node: place for place, node in enumerate(graph.nodes)}
    return max(outputs, key=order.__getitem__, default=None)


def _kind(block: Block) -> str:
    """What a block does: `tokens` are mixed, those of `another` stream are read, or each token has `channels` mixed."""
    if not block.mixes():
        return "channels"
    return "another" if all(branch.is_cross for branch in block.branches if branch.kind != "mlp") else "tokens"


def _one_kind(reader: Reader, blocks: list[Block]) -> list[Block]:
    """The blocks of the network itself: where some attend, not those of a stem or a head in which none does. A stem
    or head is parted from the others by a linear map between two blocks."""
    runs: list[list[Block]] = []
    for block in blocks:
        if not runs or not _continues(reader, runs[-1][-1].after, block.before):
            runs.append([])
        runs[-1].append(block)
    attending = [run for run in runs if any(branch.kind == "attention" for one in run for branch in one.branches)]
    return [block for run in attending or runs for block in run]


def _continues(reader: Reader, after: Node, before: Node) -> bool:
    """Whether a block reads what the last one gives: as it is, or scaled and normed."""
    seen, todo = {after}, [before]
    while todo:
        node = todo.pop()
        if node.target in LINEAR_MAPS and node not in seen:
            return False
        if node not in seen:
            seen.add(node)
            todo += reader.reads(node)
    return True


def _grouped(blocks: list[Block]) -> Iterator[list[Block]]:
    """The blocks of each layer: the shortest period in which kinds of blocks come back; where there is none, a layer begins
    with each block that mixes its own tokens."""
    kinds = [_kind(block) for block in blocks]
    for size in range(1, len(kinds) // 2 + 1):
        periodic = len(kinds) % size == 0 and all(kind == kinds[place % size] for place, kind in enumerate(kinds))
        if periodic and ("tokens" in kinds[:size] or "tokens" not in kinds):
            yield from (blocks[start : start + size] for start in range(0, len(blocks), size))
            return
    group: list[Block] = []
    mixed = False
    for block, kind in zip(blocks, kinds, strict=True):
        if mixed and kind == "tokens":
            yield group
            group = []
        mixed = mixed or kind == "tokens"
        group.append(block)
    if group:
        yield group


def _layer(reader: Reader, group: list[Block], after: Node) -> Layer:
    branches = [branch for block in group for branch in block.branches]
    attending = [branch for branch in branches if branch.kind == "attention"]
    return Layer(
        group[0].before,
        after,
        tuple(Attention(branch.output, branch.attentions, branch.is_cross) for branch in attending),
        tuple(find_mlp(reader, branch) for branch in branches if branch.kind == "mlp"),
        tuple(branch.output for branch in branches if branch.kind == "mixer"),
    )


def _behind(flow: Flow, cuts: tuple[Node, ...], groups: list[list[Block]]) -> list[Node]:
    """The residual stream behind each layer: the cut that the next one reads. Behind the last one, as many cuts behind the
    sum as behind the others: where a norm stands behind the sum, its output is the stream."""
    place = {cut: index for index, cut in enumerate(cuts)}
    found = [_before_constants(flow, following[0].before) for following in groups[1:]]
    steps = [place[node] - place[group[-1].after] for node, group in zip(found, groups, strict=False)]
    if not steps:
        blocks = groups[-1]
        steps = [place[two.before] - place[one.after] for one, two in zip(blocks, blocks[1:], strict=False)]
    last = groups[-1][-1].after
    behind = cuts[min(place[last] + min(steps, default=0), len(cuts) - 1)]
    return [*found, behind if written_shape(behind) == written_shape(last) else last]
