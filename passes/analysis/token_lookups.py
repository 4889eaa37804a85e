"""Analysis: where a graph looks up tokens in a table."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain

import networkx as nx
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import TensorType, is_float, module_path, operands, shape, value, written_shape
from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops.aten_kinds import (
    BAGS,
    CONVOLUTIONS,
    LOOK_UP,
    MOVES,
    ONE_HOT,
    PRODUCTS,
    SHAPE_READERS,
    SUMS,
    TIMES_TABLE,
)
from lxt_fx.ops.packed import packed_linear
from lxt_fx.passes.analysis.mark_flow import differentiable_graph, mark_flow

_FORGET = SHAPE_READERS | aten_ops(
    """
    argmax argmin max.dim min.dim sum sum.dim_IntList cumsum count_nonzero sort sort.stable argsort topk nonzero
    searchsorted.Tensor bucketize.Tensor unique_consecutive
    """
)
"""Ops on token ids that give counts and places, and not tokens. Comparisons give no whole numbers in any case."""

_JOINS = MOVES | SUMS | CONVOLUTIONS | PRODUCTS | {aten.linear.default, packed_linear}
"""Linear ops that join several lookups to one value."""
_VIEWS = aten_ops("view reshape unflatten.int")
_FACTORS = aten_ops("mul.Tensor div.Tensor")
_RENORM = aten_ops("embedding_renorm")

_CUTS = aten_ops("slice.Tensor select.int narrow squeeze.dim unsqueeze unbind.int to.dtype clone contiguous") | {
    operator.getitem
}
"""Ops that cut columns out of an input."""

_NO_TOKENS = re.compile(
    "position|pos_ids|(?<!geno)(?<!haplo)(?<!proto)type|segment|masks?(?![a-z])|label|bbox|boxes|grid|thw|size|length|cache|"
    "speaker|(?<![a-z])lang|(?<![a-z])(task|row|column)s?(?![a-z])",
    re.I,
)
"""Names of whole-number inputs that say where a token stands or of which kind it is, and not which token it is. Short ones
count as whole words only: a `browser` is no row."""

_Reads = dict[Node, frozenset[Node]]
"""For each node the inputs that it depends on."""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A value that is looked up by tokens: the node that gives it, and the inputs that it is computed from. The node stands
    behind a constant factor, if there is one, and has the dims of its tokens first where that is possible."""

    node: Node
    inputs: tuple[Node, ...]


def token_lookups(gm: GraphModule) -> list[Lookup]:
    """Analysis: every lookup of tokens whose value reaches the output by a differentiable path, whichever op looks up: an
    embedding, an index into a table, a product of one-hot vectors with a table.

    An input holds tokens if it has whole numbers, or columns that are cast to whole numbers, and its name does not say that
    they are positions, types or languages. A table is any value that depends on no input. Codes that are computed from
    floats (of an image that is quantised) are tokens where they are looked up in a table of tokens (Emu3): to the floats
    themselves no gradient goes. Several lookups of one input are one if only linear ops stand between them and the first
    value that all of them reach, and this has the dims of the tokens first (CANINE joins eight hashes of each token); else
    each is a lookup of its own (Gemma3n has one for each layer).
    """
    whole = [node for node in gm.graph.nodes if node.op == "placeholder" and _is_whole(value(node))]
    named = {node: frozenset({node}) for node in whole if _are_tokens(node)}
    held = _tokens(gm, named | _cast_to_tokens(gm))
    return _joined(gm, held | _codes(gm, held))


def _codes(gm: GraphModule, held: _Reads) -> _Reads:
    """The whole numbers that are computed from float inputs and looked up in a table that tokens are looked up in."""
    read = _inputs_read(gm)
    computed = {n: i for n, i in read.items() if n not in held and n.op != "placeholder" and _is_whole(value(n))}
    codes = {node: inputs for node, inputs in computed.items() if any(map(is_float, inputs))}
    if not codes:
        return {}
    tables = {table for node in gm.graph.nodes if _looks_up(node, held, read) for table in _tables(node, held)}
    looked_up = [n for n in gm.graph.nodes if _looks_up(n, codes, read) and not tables.isdisjoint(_tables(n, codes))]
    return {code: codes[code] for node in looked_up for code in node.all_input_nodes if code in codes}


def _tables(node: Node, held: _Reads) -> set[object]:
    """What a lookup reads beside tokens: the paths of parameters and buffers, else nodes."""
    return {x.target if x.op == "get_attr" else x for x in node.all_input_nodes if x not in held}


def _cast_to_tokens(gm: GraphModule) -> _Reads:
    """Parts of float inputs that are cast to whole numbers: the columns of a table that hold categories."""
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder" and is_float(node)]
    copied = {node: node for node in inputs if _holds_tokens(str(node.target))}
    found: _Reads = {}
    for node in gm.graph.nodes:
        source = copied.get(node.args[0]) if node.target in _CUTS and isinstance(node.args[0], Node) else None
        if source is not None and is_float(node):
            copied[node] = source
        elif source is not None and _is_whole(value(node)):
            found[node] = frozenset({source})
    return found


def no_tokens(gm: GraphModule) -> tuple[str, ...]:
    """Analysis: the inputs of whole numbers that look up a table as tokens do, and whose names say that they are none."""
    whole = [node for node in gm.graph.nodes if node.op == "placeholder" and _is_whole(value(node))]
    others = [node for node in whole if not _are_tokens(node)]
    reads = {node: frozenset({node}) for node in others}
    found = {node for lookup in _joined(gm, _tokens(gm, reads)) for node in lookup.inputs}
    return tuple(str(node.target) for node in others if node in found)


def _are_tokens(node: Node) -> bool:
    """Whether an input of whole numbers holds tokens, by its name. The `labels` of a text [batch, tokens] do: a decoder
    that is given no tokens of its own looks up its labels, shifted by one."""
    return node.target == "labels" and len(shape(node) or ()) == 2 or _holds_tokens(str(node.target))


def _holds_tokens(name: str) -> bool:
    """Whether an input of this name holds tokens: `tasks_input_ids` does, and `task_ids` does not."""
    return name.endswith("input_ids") or not _NO_TOKENS.search(name)


def other_lookups(gm: GraphModule) -> list[Lookup]:
    """Analysis: the lookups that relevance can start at in a graph without tokens and without a float input that reaches
    the output: by the codes of a quantised sound, or by positions."""
    return _joined(gm, {node: read for node, read in _inputs_read(gm).items() if read and _is_whole(value(node))})


def _is_whole(found: object) -> bool:
    """Whether this is a tensor of whole numbers, or a tuple that has one."""
    if isinstance(found, (list, tuple)):
        return any(_is_whole(item) for item in found)
    if not isinstance(found, (Tensor, TensorType)):
        return False
    return not found.is_floating_point() and not found.is_complex() and found.dtype != torch.bool


def _tokens(gm: GraphModule, given: Mapping[Node, frozenset[Node]]) -> _Reads:
    """The nodes that hold tokens, with the inputs whose tokens these are. One-hot vectors of tokens hold tokens too."""
    held: _Reads = dict(given)
    one_hot: set[Node] = set()
    for node in gm.graph.nodes:
        read = [operand for operand in node.all_input_nodes if operand in held]
        if node in given or node.op != "call_function" or not read or node.target in _FORGET:
            continue
        if node.target is aten.sym_size.int:
            continue
        beside = [operand for operand in node.all_input_nodes if operand not in one_hot and is_float(operand)]
        vectors = node.target in MOVES and any(operand in one_hot for operand in read) and not beside
        if vectors or node.target in ONE_HOT or _compares_with_all(node, held):
            one_hot.add(node)
        elif not _is_whole(value(node)):
            continue
        held[node] = _union(held, read)
    return held


def _compares_with_all(node: Node, held: _Reads) -> bool:
    """Whether the node is `tokens[..., None] == arange(vocabulary)`."""
    if node.target is not aten.eq.Tensor:
        return False
    sizes = [written_shape(operand) for operand in node.all_input_nodes if operand in held]
    return len(sizes) == 1 and written_shape(node) != sizes[0]


def _joined(gm: GraphModule, held: _Reads) -> list[Lookup]:
    read = _inputs_read(gm)
    found = [node for node in gm.graph.nodes if _looks_up(node, held, read)]
    carrying = mark_flow(gm, found).carrying
    groups: dict[frozenset[Node], list[Node]] = {}
    for node in found:
        if node in carrying:
            groups.setdefault(read[node], []).append(node)
    lookups = []
    for inputs, nodes in groups.items():
        given = tuple(node for node in gm.graph.nodes if node in inputs)
        join = _join(gm, nodes, carrying)
        joined = join is not None and (len(nodes) == 1 or _starts_with(join, given[0]))
        lookups += [Lookup(_scaled(node, given[0], read), given) for node in ([join] if join and joined else nodes)]
    return lookups


def _inputs_read(gm: GraphModule) -> _Reads:
    """For each node the inputs that its value depends on; sizes do not count, and of a table whose rows are shortened to
    `max_norm` only those of the table."""
    read: _Reads = {}
    for node in gm.graph.nodes:
        if node.op == "placeholder":
            read[node] = frozenset({node})
        elif node.target is aten.sym_size.int:
            read[node] = frozenset()
        elif node.target in _RENORM:
            read[node] = read[node.args[0]]
        else:
            read[node] = _union(read, node.all_input_nodes)
    return read


def _union(found: _Reads, nodes: Iterable[Node]) -> frozenset[Node]:
    return frozenset(chain.from_iterable(found[node] for node in nodes))


def _looks_up(node: Node, held: _Reads, read: _Reads) -> bool:
    """Whether the node looks tokens up: it reads tokens, or one-hot vectors of them, and a table, which is a float value
    that depends on no input."""
    if node.op != "call_function" or node in held or not is_float(node) or shape(node) is None:
        return False
    bag = node.args[0] if node.target is operator.getitem and node.args[1] == 0 else None
    looking = bag if isinstance(bag, Node) and bag.target in BAGS else node
    operated = [operand.node for operand in operands(looking)]
    tables = [operand for operand in operated if is_float(operand) and operand not in held]
    if not tables or any(read[table] for table in tables):
        return False
    vectors = [is_float(operand) for operand in operated if operand in held]
    return bool(vectors) and looking.target in (TIMES_TABLE if any(vectors) else LOOK_UP | BAGS)


def _join(gm: GraphModule, lookups: Sequence[Node], carrying: frozenset[Node]) -> Node | None:
    """The first node that all of these lookups reach, if they reach everything else through it, and only linear ops stand
    in between."""
    if len(lookups) == 1:
        return lookups[0]
    graph = differentiable_graph(gm).subgraph(carrying)
    behind = [nx.descendants(graph, node) for node in lookups]
    reached = set.union(*behind) | set(lookups)
    join = next((node for node in gm.graph.nodes if all(node in found for found in behind)), None)
    if join is None:
        return None
    between = (nx.ancestors(graph, join) | {join}) & reached
    past = (user for node in between - {join} for user in graph.successors(node) if user not in between)
    linear = all(_is_linear(node, reached) for node in between - set(lookups))
    return join if linear and next(past, None) is None else None


def _is_linear(node: Node, reached: Set[Node]) -> bool:
    """Whether the node is linear in all that it reads of what the lookups reach."""
    if node.target in PRODUCTS or node.target in (aten.linear.default, packed_linear):
        return sum(operand.node in reached for operand in operands(node)) == 1
    return node.target in _JOINS


def _scaled(node: Node, tokens: Node, read: _Reads) -> Node:
    """The last node that only multiplies the lookup by constants or gives it the dims of the tokens: a model that takes
    embeddings takes them there, as a rule."""
    while len(node.users) == 1:
        user = next(iter(node.users))
        others = [operand for operand in user.all_input_nodes if operand is not node]
        scales = user.target in _FACTORS and user.args[0] is node and not any(read[other] for other in others)
        casts = user.target is aten.to.dtype and is_float(user) and module_path(user) == module_path(node)
        fits = user.target in _VIEWS and not _starts_with(node, tokens) and _starts_with(user, tokens)
        if not (fits or ((scales or casts) and written_shape(user) == written_shape(node))):
            return node
        node = user
    return node


def _starts_with(node: Node, tokens: Node) -> bool:
    """Whether the first dims of the node are those of the tokens."""
    wanted = written_shape(tokens) or ()
    return (written_shape(node) or ())[: len(wanted)] == wanted
