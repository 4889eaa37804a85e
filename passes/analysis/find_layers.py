"""Analysis: the residual stream of a network, and what stands in each of its layers.

No name of a module is read. A value that every path from a leaf to the output goes through is a cut of the network: it
dominates the output. Between two cuts of a transformer lies a block: a sum of the first cut and of what is computed from
it. The cuts at the borders of the layers are the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import networkx as nx
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import operands
from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops.aten_kinds import CONTRACTIONS, CONVOLUTIONS, LINEAR_MAPS, MOVES, NORMS, POINTWISE_LINEAR, PRODUCTS
from lxt_fx.passes.analysis.find_roles import find_roles
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.rule_table.rule import Role

_SDPA = aten.scaled_dot_product_attention.default
_SUMS = aten_ops("add.Tensor sub.Tensor")
_MIXES_TOKENS = CONVOLUTIONS | aten_ops("cumsum fft_fft fft_fft2 fft_fftn")
_BEHIND_DOWN = MOVES | POINTWISE_LINEAR | PRODUCTS | NORMS
"""What may stand between the last linear map of a block and the residual stream: a norm, a scale, a reshape."""


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention. `queries`, `keys`, `values` and `heads`, its output before heads are merged, are [..., heads, tokens,
    size]; `pattern` [..., heads, queries, keys] is there if the graph has it; `output` is that of the output projection.
    `is_cross` says that the keys come from another stream."""

    queries: Node
    keys: Node
    values: Node
    heads: Node
    pattern: Node | None
    output: Node | None
    is_cross: bool


@dataclass(frozen=True, slots=True)
class Layer:
    """One layer: the residual stream before and after it, its attentions, `neurons`, which are what each down projection
    reads, the `outputs` of these projections, and the weights of its routers."""

    before: Node
    after: Node
    attentions: tuple[Attention, ...]
    neurons: tuple[Node, ...]
    outputs: tuple[Node, ...]
    routers: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Stream:
    """The layers that the values of one leaf go through, in order, and all cuts of its paths to the output."""

    leaf: Node
    cuts: tuple[Node, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """A sum of `before` and what is computed from it, by the nodes `inside`."""

    before: Node
    after: Node
    inside: frozenset[Node]
    kind: str


def find_layers(gm: GraphModule, flow: Flow, routers: Iterable[Node] = ()) -> tuple[Stream, ...]:
    """Analysis: the streams of a canonical graph, one for each leaf that has layers of its own. A block that the values of
    several leaves go through is in the stream that it continues."""
    roles = find_roles(gm, flow, (), ())
    carried, output = _carried(gm.graph, flow), _last_carrying(gm.graph, flow)
    ways: dict[Node, tuple[tuple[Node, ...], list[_Block]]] = {}
    for leaf in flow.leaves:
        if leaf in carried and output is not None:
            cuts, segment_of = _cuts(carried, leaf, output)
            ways[leaf] = cuts, list(_blocks(flow, roles, cuts, segment_of))
    owners = _owners(ways)
    streams = []
    for leaf, (cuts, found) in ways.items():
        blocks = [block for block in found if owners[block.after] is leaf]
        layers = tuple(_layer(flow, roles, routers, group, cuts, blocks) for group in _grouped(blocks))
        if layers:
            streams.append(Stream(leaf, cuts, layers))
    return tuple(streams)


def _owners(ways: Mapping[Node, tuple[tuple[Node, ...], list[_Block]]]) -> dict[Node, Node]:
    """The leaf of each block, by the sum that ends it: that in whose stream the block before is the nearest."""
    nearest: dict[Node, tuple[int, Node]] = {}
    for leaf, (cuts, blocks) in ways.items():
        place = {cut: index for index, cut in enumerate(cuts)}
        last = 0
        for block in blocks:
            steps, last = place[block.before] - last, place[block.after]
            if block.after not in nearest or steps <= nearest[block.after][0]:
                nearest[block.after] = steps, leaf
    return {after: leaf for after, (_, leaf) in nearest.items()}


def _carried(graph: Graph, flow: Flow) -> nx.DiGraph:
    """The edges producer -> consumer along which relevance flows."""
    found: nx.DiGraph = nx.DiGraph()
    for node in graph.nodes:
        if node in flow.carrying and node.op != "output":
            found.add_node(node)
            found.add_edges_from((operand.node, node) for operand in flow.carrying_operands(node))
    return found


def _last_carrying(graph: Graph, flow: Flow) -> Node | None:
    outputs = [node for node in graph.output_node().all_input_nodes if node in flow.carrying]
    order = {node: place for place, node in enumerate(graph.nodes)}
    return max(outputs, key=order.__getitem__, default=None)


def _cuts(carried: nx.DiGraph, leaf: Node, output: Node) -> tuple[tuple[Node, ...], Mapping[Node, Node]]:
    """The values that every path from the leaf to the output goes through, in order; and for each value behind the leaf the
    last of them before it."""
    above = nx.immediate_dominators(carried, leaf)
    cuts = [output]
    while output in above and cuts[-1] != leaf:
        cuts.append(above[cuts[-1]])
    cuts.reverse()
    known: dict[Node, Node] = {cut: cut for cut in cuts}
    for node in above:
        way = []
        while node not in known:
            way.append(node)
            node = above[node]
        known.update((passed, known[node]) for passed in way)
    return tuple(cuts), known


def _blocks(
    flow: Flow, roles: Mapping[Node, frozenset[Role]], cuts: tuple[Node, ...], segment_of: Mapping[Node, Node]
) -> Iterator[_Block]:
    """The residual blocks between neighbouring cuts."""
    inside: dict[Node, set[Node]] = {}
    for node, cut in segment_of.items():
        if node is not cut:
            inside.setdefault(cut, set()).add(node)
    for before, after in zip(cuts, cuts[1:], strict=False):
        members = frozenset(inside.get(before, ()))
        if members and after.target in _SUMS and _skips(flow, after, before):
            yield _Block(before, after, members, _kind(flow, roles, members, segment_of))


def _skips(flow: Flow, node: Node, before: Node) -> bool:
    """Whether the value `before` is added as it is, or scaled, to what the block computes."""
    todo = [operand.node for operand in flow.carrying_operands(node)]
    while todo:
        one = todo.pop()
        if one is before:
            return True
        if one.target in _SUMS | PRODUCTS | MOVES and len(found := flow.carrying_operands(one)) < 3:
            todo += [operand.node for operand in found]
    return False


def _kind(
    flow: Flow, roles: Mapping[Node, frozenset[Role]], members: frozenset[Node], segment_of: Mapping[Node, Node]
) -> str:
    """What a block does: `tokens` are mixed, those of `another` stream are read, or each token has `channels` mixed."""
    attentions = [node for node in members if _is_attention(node, roles)]
    if attentions:
        own = any(_parts(flow, node, roles)[1] in segment_of for node in attentions)
        return "tokens" if own else "another"
    mixes = any(
        node.target in _MIXES_TOKENS or (node.target in CONTRACTIONS and len(flow.carrying_operands(node)) > 1)
        for node in members
    )
    return "tokens" if mixes else "channels"


def _is_attention(node: Node, roles: Mapping[Node, frozenset[Role]]) -> bool:
    return node.target is _SDPA or Role.OUTPUT in roles.get(node, ())


def _grouped(blocks: list[_Block]) -> Iterator[list[_Block]]:
    """The blocks of each layer: the shortest period in which kinds of blocks come back; where there is none, a layer begins
    with each block that mixes its own tokens."""
    kinds = [block.kind for block in blocks]
    for size in range(1, len(kinds) // 2 + 1):
        periodic = len(kinds) % size == 0 and all(kind == kinds[place % size] for place, kind in enumerate(kinds))
        if periodic and ("tokens" in kinds[:size] or "tokens" not in kinds):
            yield from (blocks[start : start + size] for start in range(0, len(blocks), size))
            return
    group: list[_Block] = []
    for block in blocks:
        if group and block.kind == "tokens" and any(each.kind == "tokens" for each in group):
            yield group
            group = []
        group.append(block)
    if group:
        yield group


def _layer(
    flow: Flow,
    roles: Mapping[Node, frozenset[Role]],
    routers: Iterable[Node],
    group: list[_Block],
    cuts: tuple[Node, ...],
    blocks: list[_Block],
) -> Layer:
    members = frozenset().union(*(block.inside for block in group))
    attentions = [_attention(flow, roles, node, members) for node in members if _is_attention(node, roles)]
    projections = {attention.output for attention in attentions}
    downs = [down for block in group for down in _downs(flow, block) if down not in projections]
    return Layer(
        group[0].before,
        _behind(cuts, blocks, group[-1]),
        tuple(attentions),
        tuple(flow.carrying_operands(down)[0].node for down in downs),
        tuple(downs),
        tuple(node for node in routers if node in members),
    )


def _behind(cuts: tuple[Node, ...], blocks: list[_Block], block: _Block) -> Node:
    """The residual stream behind a block: the cut that the next block reads. Behind the last one, as many cuts behind the
    sum as behind the others: where the norm stands behind the sum, its output is the stream."""
    place = {cut: index for index, cut in enumerate(cuts)}
    follows = {one.after: place[two.before] - place[one.after] for one, two in zip(blocks, blocks[1:], strict=False)}
    steps = follows.get(block.after, max(follows.values(), default=0))
    return cuts[min(place[block.after] + steps, len(cuts) - 1)]


def _attention(
    flow: Flow, roles: Mapping[Node, frozenset[Role]], heads: Node, members: frozenset[Node]
) -> Attention:
    queries, keys, values, pattern = _parts(flow, heads, roles)
    return Attention(queries, keys, values, heads, pattern, _projection(flow, heads, members), keys not in members)


def _parts(
    flow: Flow, heads: Node, roles: Mapping[Node, frozenset[Role]]
) -> tuple[Node, Node, Node, Node | None]:
    """Queries, keys, values and the pattern of an attention, from its output."""
    if heads.target is _SDPA:
        found = {operand.name: operand.node for operand in operands(heads)}
        return found["query"], found["key"], found["value"], None
    by_role = {role: _behind_moves(flow, heads, role, roles) for role in (Role.WEIGHTS, Role.SCORES)}
    pattern, scores = by_role[Role.WEIGHTS], by_role[Role.SCORES]
    assert pattern is not None and scores is not None, "an attention output has both"
    queries, keys = (operand.node for operand in flow.carrying_operands(scores)[:2])
    values = next(o.node for o in flow.carrying_operands(heads) if not _leads_to(flow, o.node, pattern))
    return queries, _before_transpose(keys), values, pattern


def _behind_moves(flow: Flow, heads: Node, role: Role, roles: Mapping[Node, frozenset[Role]]) -> Node | None:
    """The nearest node of this role before the output of an attention."""
    seen, todo = {heads}, [heads]
    while todo:
        for operand in flow.carrying_operands(todo.pop(0)):
            node = operand.node
            if role in roles.get(node, ()):
                return node
            if node not in seen and node.target not in LINEAR_MAPS - CONTRACTIONS:
                seen.add(node)
                todo.append(node)
    return None


def _leads_to(flow: Flow, node: Node, pattern: Node) -> bool:
    while node is not pattern:
        found = flow.carrying_operands(node)
        if node.target not in MOVES | PRODUCTS | POINTWISE_LINEAR or len(found) != 1:
            return False
        node = found[0].node
    return True


def _before_transpose(keys: Node) -> Node:
    """The keys [..., tokens, size], where the product of the scores reads them turned."""
    turned = keys.target is aten.transpose.int and {d % 4 for d in keys.args[1:]} == {2, 3}  # type: ignore[operator]
    return keys.all_input_nodes[0] if turned else keys


def _projection(flow: Flow, heads: Node, members: frozenset[Node]) -> Node | None:
    """The linear map that merges the heads."""
    todo = [heads]
    seen = {heads}
    while todo:
        for user in todo.pop(0).users:
            if user not in members or user in seen:
                continue
            seen.add(user)
            if user.target in LINEAR_MAPS and len(flow.carrying_operands(user)) == 1:
                return user
            if user.target in _BEHIND_DOWN:
                todo.append(user)
    return None


def _downs(flow: Flow, block: _Block) -> Iterator[Node]:
    """The last linear maps of a block: those that nothing but norms, scales and moves separates from the sum."""
    seen, todo = {block.before, block.after}, [block.after]
    while todo:
        for operand in flow.carrying_operands(todo.pop(0)):
            node = operand.node
            if node in seen or node not in block.inside:
                continue
            seen.add(node)
            if node.target in LINEAR_MAPS and len(flow.carrying_operands(node)) == 1:
                yield node
            elif node.target in _BEHIND_DOWN:
                todo.append(node)
