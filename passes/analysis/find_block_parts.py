"""Analysis: what a residual block adds: attentions, MLPs with their experts, and what else mixes tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.fx import Node

from lxt_fx.base.nodes import arguments, fixed_size, shape, written_shape
from lxt_fx.base.torch_internals import aten, aten_ops
from lxt_fx.ops.aten_kinds import (
    CONTRACTIONS,
    CONVOLUTIONS,
    CURVED,
    LINEAR_MAPS,
    MASKS,
    MOVES,
    NORMS,
    POINTWISE_LINEAR,
    PRODUCTS,
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
            branches = tuple(_branch(reader, tip, before, members, segment_of) for tip in tips)
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


def _branch(reader: Reader, tip: Node, before: Node, members: frozenset[Node], segment_of: Mapping[Node, Node]) -> Branch:
    inside = _computed_from(reader, tip, before, members)
    heads = sorted(filter(reader.is_attention, inside), key=reader.order.__getitem__)
    kind = "attention" if heads else "mixer" if any(_mixes(reader, node) for node in inside) else "mlp"
    found = [find_attention_parts(reader.flow, node, reader.groups.roles) for node in heads]
    parts = tuple(each for each in found if each is not None)
    is_cross = bool(parts) and all(each.keys not in segment_of for each in parts)
    return Branch(split_behind(reader.flow, tip, len(shape(before) or ())), kind, parts, is_cross, inside)


def _mixes(reader: Reader, node: Node) -> bool:
    """Whether an op mixes tokens: a sum along them, a convolution of more than one place, a product of two values, a step of
    a recurrence, or a linear map along another axis than the last of its block."""
    if node.target in CONVOLUTIONS:
        weight = arguments(node).get("weight")
        kernel = shape(weight) if isinstance(weight, Node) else None
        return kernel is None or any(fixed_size(size) != 1 for size in kernel[2:])
    several = node.target in CONTRACTIONS and len(reader.flow.carrying_operands(node)) > 1
    return (
        node.target in _MIXES or several or Role.RECURRENCE in reader.groups.roles.get(node, ()) or _is_turned(reader, node)
    )


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
