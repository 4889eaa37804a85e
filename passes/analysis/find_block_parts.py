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
    AttentionParts,
    find_attention_parts,
    is_attention,
    split_behind,
)
from lxt_fx.passes.analysis.find_groups import Groups
from lxt_fx.passes.analysis.mark_flow import Flow
from lxt_fx.rule_table.rule import Role

SUMS = aten_ops("add.Tensor sub.Tensor")
_POOLS = aten_ops("avg_pool1d avg_pool2d")
_MIXES = _POOLS | aten_ops("cumsum fft_fft fft_fft2 fft_fftn")
SCALES = MOVES | MASKS | POINTWISE_LINEAR | PRODUCTS | NORMS
"""What may stand between a part of a block and the residual stream."""
SCATTERS = aten_ops("index_add index_put scatter_add scatter.src sum.dim_IntList")
TOKENS = 2
"""The axis of the tokens, counted from the last one."""
_ALONE = POINTWISE | MOVES | NORMS | SELECTIONS | WEIGHTED | SCATTERS
"""Ops that read several values and mix no tokens."""


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
    """A sum of `before` and what is computed from it, or the tokens of both side by side."""

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
        if members and (_appends(reader, after, before) or after.target in SUMS and _skips(reader, after, before)):
            tips = list(_tips(reader, after, before, members))
            inner = set(_partial_sums(reader, after, before, members))
            if any(not inner.isdisjoint(_computed_from(reader, tip, before, members)) for tip in tips):
                continue  # what is added later reads what was added before, and yet the first value is read too
            branches = tuple(one for tip in tips for one in _branches(reader, tip, before, members, segment_of))
            if any(_computes(node) for branch in branches for node in branch.inside):
                yield Block(before, after, branches)


def joined_axis(node: Node) -> int:
    """The axis along which values are joined, counted from the last one, which is 1."""
    axis = arguments(node).get("dim", 0)
    return (-axis if axis < 0 else len(shape(node) or ()) - axis) if isinstance(axis, int) else 0


def _appends(reader: Reader, node: Node, before: Node) -> bool:
    """Whether tokens computed from the value `before` are appended to its own (X-CLIP)."""
    joins = node.target is aten.cat.default and joined_axis(node) == TOKENS
    return joins and len(reader.reads(node)) > 1 and before in reader.reads(node)


def _computes(node: Node) -> bool:
    """Whether the op is more than a norm, an activation or a scale."""
    return node.target in LINEAR_MAPS | _MIXES or node.target is aten.scaled_dot_product_attention.default


def _skips(reader: Reader, node: Node, before: Node) -> bool:
    """Whether the value `before` is a term of a sum as it is, or scaled, or pooled to fewer tokens (Funnel)."""
    shorter = written_shape(node) != written_shape(before)
    through = SUMS | PRODUCTS | MOVES | (_POOLS if shorter else frozenset())
    todo = [node]
    while todo:
        one = todo.pop()
        if one is before:
            return True
        if one.target in through and one not in reader.origin and len(found := reader.reads(one)) < 3:
            todo += found
    return False


def _tips(reader: Reader, node: Node, before: Node, members: frozenset[Node]) -> Iterator[Node]:
    """The terms of the sum that ends a block, or the tokens that it appends, but for the skip, and before scales and norms.
    A sum is one term unless it holds the skip, or one of its terms holds an attention and another does not (attention and
    MLP beside each other)."""
    found = reader.reads(node)
    inner = (node.target in SUMS or _appends(reader, node, before)) and len(found) > 1
    if inner and (_skips(reader, node, before) or _attends_in_part(reader, found, before, members)):
        for operand in found:
            yield from _tips(reader, operand, before, members)
    elif node in members and node.target in SCALES - SUMS and len(found) == 1:
        yield from _tips(reader, found[0], before, members)
    elif node in members and not _skips(reader, node, before):
        yield node


def _partial_sums(reader: Reader, node: Node, before: Node, members: frozenset[Node]) -> Iterator[Node]:
    """The sums with the skip that are terms of the sum that ends a block."""
    for operand in reader.reads(node):
        if operand in members and operand.target in SUMS | SCALES and _skips(reader, operand, before):
            if operand.target in SUMS and len(reader.reads(operand)) > 1:
                yield operand
            yield from _partial_sums(reader, operand, before, members)


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
    above = nx.immediate_dominators(nx.DiGraph([edge for edge in reads if edge[0] in inner]), before)
    cuts, cut_of = cuts_before(above, before, tip)
    found = [branch for block in blocks_between(reader, cuts, cut_of) for branch in block.branches]
    projections = {_projection(reader, parts.heads, whole) for parts in whole.attentions}
    if whole.kind == "attention" and all(branch.kind != "attention" for branch in found):
        last = projections.pop() if len(projections) == 1 else None
        if last is not None and not _only_scaled(reader, tip, last, whole):
            found.append(replace(whole, output=split_behind(reader.flow, last, len(shape(before) or ()))))
    if not found:
        return [whole]
    behind = whole.inside.difference(*(_computed_from(reader, branch.output, before, members) for branch in found))
    kind = "mixer" if any(_mixes(reader, node) for node in behind) else "mlp"
    return [*found, replace(whole, kind=kind, attentions=())]


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
        if node.target in SCALES | SCATTERS:
            new = [one for one in reader.reads(node) if one in branch.inside and one not in seen]
            seen.update(new)
            todo += new
    return False


def last_of_stream(reader: Reader, above: Mapping[Node, Node], leaf: Node, output: Node) -> Node:
    """The output, or where it lies behind fewer sums with a skip than another value does, that value. Sums inside of a
    branch do not count. `above` has the immediate dominator of each value behind the leaf."""
    depth: dict[Node, int] = {leaf: 0}
    behind = frozenset(above)
    sums = [node for node in sorted(above, key=reader.order.__getitem__) if node.target in SUMS and above[node] is not node]
    blocks = {node for node in sums if len(reader.reads(node)) > 1 and _skips(reader, node, above[node])}
    for node in sorted(blocks, key=reader.order.__getitem__, reverse=True):
        if node in blocks:
            inside = _computed_from(reader, node, above[node], behind) - {node}
            blocks -= {one for one in inside if one not in _on_skip(above, above[node])}
    for node in sorted(above, key=reader.order.__getitem__):
        if node is not leaf:
            depth[node] = depth.get(above[node], 0) + (node in blocks)
    deepest = max(blocks, key=lambda node: (depth[node], -reader.order[node]), default=output)
    return output if depth.get(output, 0) >= depth[deepest] else deepest


def _on_skip(above: Mapping[Node, Node], node: Node) -> set[Node]:
    """The dominators of a value, and it."""
    found = {node}
    while above.get(node, node) is not node:
        node = above[node]
        found.add(node)
    return found


def cuts_before(
    above: Mapping[Node, Node], leaf: Node, output: Node
) -> tuple[tuple[Node, ...], Mapping[Node, Node]]:
    """The values that every path from the leaf to the output goes through, in order; and for each value behind the leaf the
    last of them before it. `above` has the immediate dominator of each value."""
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
    while before.target in SCALES and len(read := reader.reads(before)) == 1:
        if before.target is aten.transpose.int:
            dims = len(shape(before) or ())
            turned: tuple[Any, ...] = before.args[1:]
            return dims - 1 in {dim % dims for dim in turned} and not _is_turned_back(reader, read[0])
        before = read[0]
    return False


def _is_turned_back(reader: Reader, node: Node) -> bool:
    """Whether the value that is turned came out of a convolution, which has channels before places."""
    while node.target in SCALES and len(read := reader.reads(node)) == 1:
        node = read[0]
    return node.target in CONVOLUTIONS
