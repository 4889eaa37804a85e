"""Analysis: what a residual block adds: attentions, MLPs with their experts, and what else mixes tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import networkx as nx
from torch.fx import Node

from lxt_fx.base.nodes import arguments, fixed_size, shape, written_shape
from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops.aten_kinds import (
    CONVOLUTIONS,
    CURVED,
    LINEAR_MAPS,
    MASKS,
    MOVES,
    NORMS,
    POINTWISE,
    POINTWISE_LINEAR,
    PRODUCTS,
    SELECTIONS,
    WEIGHTED,
)
from lxt_fx.passes.analysis.find_attention_parts import (
    RESHAPES,
    AttentionParts,
    find_attention_parts,
    is_attention,
    split_before,
    split_behind,
)
from lxt_fx.passes.analysis.find_groups import Groups
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.rule_table.rule import Role

SUMS = aten_ops("add.Tensor sub.Tensor")
_CHOICES = aten_ops("topk sort argsort argmax max.dim")
_MIXES = aten_ops("cumsum fft_fft fft_fft2 fft_fftn avg_pool1d avg_pool2d")
_SCALES = MOVES | MASKS | POINTWISE_LINEAR | PRODUCTS | NORMS
"""What may stand between a part of a block and the residual stream."""
_SCATTERS = aten_ops("index_add index_put scatter_add scatter.src sum.dim_IntList")
_ALONE = POINTWISE | MOVES | NORMS | SELECTIONS | WEIGHTED | _SCATTERS
"""Ops that read several values and mix no tokens."""
_WEIGHTS = (CURVED - MASKS) | POINTWISE_LINEAR | RESHAPES | aten_ops("softmax.int")


@dataclass(frozen=True, slots=True)
class Mlp:
    """An MLP: `output` is what it adds to the residual stream before norms and scales, with experts the sum of theirs.
    `neurons` are what its down projections read, with experts those of all chosen ones in one value; empty where each
    expert has a value of its own. `routers` are the weights, or scores, over all experts."""

    output: Node
    neurons: tuple[Node, ...]
    routers: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """What a block adds to the residual stream, before norms and scales. `kind` says whether `attention` puts it together,
    it is another `mixer` of tokens, or each token is computed for itself (`mlp`). `is_cross` says that the keys come from
    another stream."""

    output: Node
    kind: str
    attentions: tuple[AttentionParts, ...]
    is_cross: bool
    inside: frozenset[Node]


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A sum of `before` and what is computed from it."""

    before: Node
    after: Node
    branches: tuple[Branch, ...]

    def mixes(self) -> bool:
        """Whether it mixes tokens."""
        return any(branch.kind != "mlp" for branch in self.branches)


@dataclass(frozen=True)
class Reader:
    """Reads the blocks of a graph."""

    flow: Flow
    groups: Groups
    order: Mapping[Node, int]

    @cached_property
    def origin(self) -> Mapping[Node, Node]:
        """What each norm that is written out reads, by the product that ends it."""
        return {root: group.origin for root, group in self.groups.by_root.items() if group.statistic is not None}

    def reads(self, node: Node) -> list[Node]:
        """The carrying values that a node reads; of a norm that is written out, the value that it norms."""
        if node in self.origin:
            return [self.origin[node]]
        found = [operand.node for operand in self.flow.carrying_operands(node)]
        if node.target is aten.sub.Tensor and len(found) == 2 and _is_mean_of(self.flow, found[1], found[0]):
            return found[:1]
        return list(dict.fromkeys(found))

    def is_attention(self, node: Node) -> bool:
        """Whether the node puts an attention together."""
        return is_attention(node, self.groups.roles)


def _is_mean_of(flow: Flow, node: Node, origin: Node) -> bool:
    """Whether a norm that is written out takes this from its input."""
    return node.target is aten.mean.dim and [operand.node for operand in flow.carrying_operands(node)] == [origin]


def blocks_between(reader: Reader, cuts: tuple[Node, ...], segment_of: Mapping[Node, Node]) -> Iterator[Block]:
    """The residual blocks between neighbouring cuts; `segment_of` has the cut before each value."""
    inside: dict[Node, set[Node]] = {}
    for node, cut in segment_of.items():
        if node is not cut:
            inside.setdefault(cut, set()).add(node)
    for before, after in zip(cuts, cuts[1:], strict=False):
        members = frozenset(inside.get(before, ()))
        if members and after.target in SUMS and _skips(reader, after, before):
            tips = list(_tips(reader, after, before, members))
            sums = (node for node in members if node.target in SUMS and len(reader.reads(node)) > 1)
            inner = {node for node in sums if _skips(reader, node, before)}
            if any(not inner.isdisjoint(_computed_from(reader, tip, before, members)) for tip in tips):
                continue  # what is added later reads what was added before, and yet the first value is read too
            branches = tuple(one for tip in tips for one in _branches(reader, tip, before, members, segment_of))
            if any(_computes(node) for branch in branches for node in branch.inside):
                yield Block(before, after, branches)


def _computes(node: Node) -> bool:
    """Whether the op is more than a norm, an activation or a scale."""
    return node.target in LINEAR_MAPS | _MIXES or node.target is aten.scaled_dot_product_attention.default


def _skips(reader: Reader, node: Node, before: Node) -> bool:
    """Whether the value `before` is a term of a sum as it is, or scaled."""
    todo = [node]
    while todo:
        one = todo.pop()
        if one is before:
            return True
        if one.target in SUMS | PRODUCTS | MOVES and one not in reader.origin and len(found := reader.reads(one)) < 3:
            todo += found
    return False


def _tips(reader: Reader, node: Node, before: Node, members: frozenset[Node]) -> Iterator[Node]:
    """The terms of the sum that ends a block, but for the skip, and before scales and norms. A sum is one term unless it
    holds the skip, or one of its terms holds an attention and another does not (attention and MLP beside each other)."""
    found = reader.reads(node)
    inner = node.target in SUMS and len(found) > 1
    if inner and (_skips(reader, node, before) or _attends_in_part(reader, found, before, members)):
        for operand in found:
            yield from _tips(reader, operand, before, members)
    elif node in members and node.target in _SCALES - SUMS and len(found) == 1:
        yield from _tips(reader, found[0], before, members)
    elif node in members and not _skips(reader, node, before):
        yield node


def _attends_in_part(reader: Reader, terms: list[Node], before: Node, members: frozenset[Node]) -> bool:
    attends = {any(map(reader.is_attention, _computed_from(reader, term, before, members))) for term in terms}
    return len(attends) == 2


def _computed_from(reader: Reader, tip: Node, before: Node, members: frozenset[Node]) -> frozenset[Node]:
    """The values between `before` and the tip of a branch, with the tip."""
    seen, todo = set(), [tip]
    while todo:
        node = todo.pop()
        if node in members and node is not before and node not in seen:
            seen.add(node)
            todo += [operand.node for operand in reader.flow.carrying_operands(node)]
    return frozenset(seen)


def _branches(
    reader: Reader, tip: Node, before: Node, members: frozenset[Node], segment_of: Mapping[Node, Node]
) -> list[Branch]:
    """The branch that ends with the tip. Where an attention is followed by more than its output projection (Zamba), or
    where residual blocks are inside of the branch (MobileBERT), these are branches too."""
    whole = _branch(reader, tip, before, members, segment_of)
    if whole.kind == "mlp":
        return [whole]
    inner = whole.inside | {before}
    reads = [(one.node, node) for node in whole.inside for one in reader.flow.carrying_operands(node)]
    cuts, cut_of = cuts_between(nx.DiGraph([edge for edge in reads if edge[0] in inner]), before, tip)
    found = [branch for block in blocks_between(reader, cuts, cut_of) for branch in block.branches]
    projections = {_projection(reader, parts.heads, whole) for parts in whole.attentions}
    if whole.kind == "attention" and all(branch.kind != "attention" for branch in found):
        last = projections.pop() if len(projections) == 1 else None
        if last is not None and not _only_scaled(reader, tip, last, whole):
            found.append(replace(whole, output=split_behind(reader.flow, last, len(shape(before) or ()))))
    return [*found, replace(whole, kind="mlp", attentions=())] if found else [whole]


def _projection(reader: Reader, heads: Node, branch: Branch) -> Node | None:
    """The nearest linear map behind the heads."""
    seen, todo = {heads}, [heads]
    while todo:
        for user in todo.pop(0).users:
            if user in branch.inside and user not in seen:
                seen.add(user)
                if user.target in LINEAR_MAPS and len(reader.flow.carrying_operands(user)) == 1:
                    return user
                todo.append(user)
    return None


def _only_scaled(reader: Reader, tip: Node, projection: Node, branch: Branch) -> bool:
    """Whether nothing but sums, scales, norms and moves stands between a linear map and the tip of its branch."""
    seen, todo = {tip}, [tip]
    while todo:
        node = todo.pop()
        if node is projection:
            return True
        if node.target in _SCALES | _SCATTERS:
            new = [one for one in reader.reads(node) if one in branch.inside and one not in seen]
            seen.update(new)
            todo += new
    return False


def cuts_between(carried: nx.DiGraph, leaf: Node, output: Node) -> tuple[tuple[Node, ...], Mapping[Node, Node]]:
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


def _branch(reader: Reader, tip: Node, before: Node, members: frozenset[Node], segment_of: Mapping[Node, Node]) -> Branch:
    inside = _computed_from(reader, tip, before, members)
    heads = sorted(filter(reader.is_attention, inside), key=reader.order.__getitem__)
    kind = "attention" if heads else "mixer" if any(_mixes(reader, node) for node in inside) else "mlp"
    found = [find_attention_parts(reader.flow, node, reader.groups.roles) for node in heads]
    parts = tuple(each for each in found if each is not None)
    is_cross = bool(parts) and all(each.keys not in segment_of for each in parts)
    return Branch(split_behind(reader.flow, tip, len(shape(before) or ())), kind, parts, is_cross, inside)


def _mixes(reader: Reader, node: Node) -> bool:
    """Whether an op mixes tokens: a sum along them, a convolution of more than one place, a product of two values, a step
    of a recurrence, or a linear map along another axis than the last of its block."""
    if node.target in CONVOLUTIONS:
        weight = arguments(node).get("weight")
        kernel = shape(weight) if isinstance(weight, Node) else None
        return kernel is None or any(fixed_size(size) != 1 for size in kernel[2:])
    several = len(reader.flow.carrying_operands(node)) > 1 and node.target not in _ALONE
    recurs = Role.RECURRENCE in reader.groups.roles.get(node, ())
    return node.target in _MIXES or several or recurs or _is_turned(reader, node)


def _is_turned(reader: Reader, node: Node) -> bool:
    """Whether a linear map reads a value whose last axis was another one: that of tokens, in an MLP-mixer."""
    if node.target not in LINEAR_MAPS - CONVOLUTIONS or len(found := reader.reads(node)) != 1:
        return False
    before = found[0]
    while before.target in _SCALES and len(read := reader.reads(before)) == 1:
        if before.target is aten.transpose.int:
            dims = len(shape(before) or ())
            turned: tuple[Any, ...] = before.args[1:]
            return dims - 1 in {dim % dims for dim in turned} and not _is_turned_back(reader, read[0])
        before = read[0]
    return False


def _is_turned_back(reader: Reader, node: Node) -> bool:
    """Whether the value that is turned came out of a convolution, which has channels before places."""
    while node.target in _SCALES and len(read := reader.reads(node)) == 1:
        node = read[0]
    return node.target in CONVOLUTIONS


def find_mlp(reader: Reader, branch: Branch) -> Mlp:
    """Analysis: neurons, output and routers of a branch that computes each token for itself."""
    downs = _downs(reader, branch)
    dims = len(shape(branch.output) or ())
    neurons = [split_before(reader.flow, reader.reads(down)[0], dims) for down in downs]
    return Mlp(branch.output, tuple(neurons) if len(neurons) <= 2 else (), tuple(_routers(reader, branch)))


def _downs(reader: Reader, branch: Branch) -> list[Node]:
    """The last linear maps of a branch: those that give values as wide as its output, and that only sums, scales, norms and
    moves separate from it."""
    wide = _width(branch.output)
    seen, todo, found = {branch.output}, [branch.output], list[Node]()
    while todo:
        node = todo.pop(0)
        reads = [one for one in reader.reads(node) if one in branch.inside]
        if node.target in LINEAR_MAPS and len(reader.reads(node)) == 1:
            if wide in _widths(node):
                found.append(node)
        elif node.target in _SCALES | _SCATTERS:
            todo += [one for one in reads if one not in seen]
            seen.update(reads)
    return found


def _width(node: Node) -> str:
    return (written_shape(node) or ("",))[-1]


def _widths(node: Node) -> tuple[str, ...]:
    """The size of the last axis; of a convolution, that of its channels."""
    sizes = written_shape(node) or ("",)
    return (sizes[-1], *sizes[1:2]) if node.target in CONVOLUTIONS else (sizes[-1],)


def _routers(reader: Reader, branch: Branch) -> Iterator[Node]:
    """The weights over all experts, of which some are chosen: the last value with an entry for each expert that the chosen
    ones are taken of. Where the weights of the chosen ones are computed later, these are scores."""
    choices = [node for node in branch.output.graph.nodes if node.target in _CHOICES]
    scores = [linear for node in choices for linear in _chosen_of(node) if linear in branch.inside]
    yield from dict.fromkeys(_weights(reader, linear) for linear in scores)


def _chosen_of(node: Node) -> Iterator[Node]:
    """The linear maps whose scores are compared."""
    seen, todo = {node}, list(node.all_input_nodes[:1])
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        if one.target in LINEAR_MAPS:
            yield one
        elif one.op == "call_function":
            todo += one.all_input_nodes


def _weights(reader: Reader, scores: Node) -> Node:
    """What becomes of the scores while there is one for each expert."""
    while True:
        behind = [
            user
            for user in scores.users
            if user in reader.flow.carrying
            and user.target in _WEIGHTS
            and len(reader.flow.carrying_operands(user)) == 1
            and _width(user) == _width(scores)
        ]
        if len(behind) != 1:
            return scores
        scores = behind[0]
