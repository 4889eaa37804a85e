"""Analysis: neurons, output and routers of an MLP, with experts or without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch.fx import Node

from lxt_fx.base.nodes import shape, written_shape
from lxt_fx.base.torch_internals import aten_ops
from lxt_fx.ops.aten_kinds import CONVOLUTIONS, CURVED, LINEAR_MAPS, MASKS, POINTWISE_LINEAR
from lxt_fx.passes.analysis.find_attention_parts import RESHAPES, split_before
from lxt_fx.passes.analysis.find_block_parts import SCALES, SCATTERS, Branch, Reader

_CHOICES = aten_ops("topk sort argsort argmax max.dim")
_WEIGHTS = (CURVED - MASKS) | POINTWISE_LINEAR | RESHAPES | aten_ops("softmax.int")


@dataclass(frozen=True, slots=True)
class Mlp:
    """An MLP: `output` is what it adds to the residual stream before norms and scales, with experts the sum of theirs.
    `neurons` are what its down projections read, with experts those of all chosen ones in one value; empty where each
    expert has a value of its own. `routers` are the weights, or scores, over all experts."""

    output: Node
    neurons: tuple[Node, ...]
    routers: tuple[Node, ...]


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
        elif node.target in SCALES | SCATTERS:
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
