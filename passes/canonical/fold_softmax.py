"""Transform: a softmax that a model writes out in exponentials and their sum becomes one op."""

from __future__ import annotations

from typing import Any

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import arguments, shape, value
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.products import mask_limit
from lxt_fx.passes.drop_dead import drop_dead

_SAME_VALUE = frozenset({aten.expand.default, aten.expand_as.default, aten.detach.default, aten.contiguous.default})


def fold_softmax(gm: GraphModule) -> int:
    """Transform: exp(x) / sum(exp(x), dim) is softmax(x, dim), and so is softmax(x - largest x, dim): the subtraction,
    which would be done twice, goes. (It also leaves an exact 0, from which no relevance could return.) Values change by
    rounding. A sum to which something is added (an epsilon, a one) is left as it is."""
    edits = 0
    for node in list(gm.graph.nodes):
        if node.target is aten.softmax.int:
            edits += _drop_shift(node)
            continue
        found = _written_out(node)
        if found is None:
            continue
        with gm.graph.inserting_before(node):
            folded = gm.graph.call_function(aten.softmax.int, found)
        folded.meta = dict(node.meta)
        node.replace_all_uses_with(folded)
        gm.graph.erase_node(node)
        edits += 1
    if edits:
        drop_dead(gm)
    return edits


def _written_out(node: Node) -> tuple[Node, int] | None:
    """x and dim, where the node is exp(x - max) / sum(exp(x - max), dim)."""
    if node.target is not aten.div.Tensor or not all(isinstance(operand, Node) for operand in node.args):
        return None
    powers, total = _behind(node.args[0]), _behind(node.args[1])
    dim = _reduced(total, powers, (aten.sum.dim_IntList,))
    if dim is None or powers.target is not aten.exp.default or shape(powers) != shape(node):
        return None
    x: Any = powers.args[0]
    return _unshifted(x, dim), dim


def _drop_shift(softmax: Node) -> int:
    reader, dim = softmax, arguments(softmax)["dim"] % len(shape(softmax) or (1,))
    x: Any = softmax.args[0]
    while x.target is aten.masked_fill.Scalar and len(x.users) == 1 and x.args[2] <= mask_limit(value(x).dtype):
        reader, x = x, x.args[0]  # masked either way
    unshifted = _unshifted(x, dim)
    if unshifted is x:
        return 0
    reader.replace_input_with(x, unshifted)
    return 1


def _unshifted(x: Node, dim: int) -> Node:
    """x, or what its largest value along the dim was subtracted from to give it."""
    if x.target is not aten.sub.Tensor or not isinstance(x.args[1], Node) or x.kwargs:
        return x
    scores, largest = x.args[0], _behind(x.args[1])
    if getattr(largest.target, "__name__", "") == "getitem":
        largest = _behind(largest.args[0])
    if isinstance(scores, Node) and _reduced(largest, _behind(scores), (aten.amax.default, aten.max.dim)) == dim:
        return scores
    return x


def _behind(node: Any) -> Node:
    """The node that this one repeats."""
    while node.target in _SAME_VALUE:
        node = node.args[0]
    found: Node = node
    return found


def _reduced(node: Node, of: Node, ops: tuple[Any, ...]) -> int | None:
    """The one dim that the node reduces and keeps, counted from the front, where it is one of these reductions of `of`."""
    if node.target not in ops or _behind(node.args[0]) is not of:
        return None
    named = arguments(node)
    dims = named.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or ())
    if len(dims) != 1 or not named.get("keepdim", False) or named.get("dtype") is not None:
        return None
    return int(dims[0]) % len(shape(of) or (1,))
