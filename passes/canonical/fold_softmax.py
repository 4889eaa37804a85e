"""Transform: a softmax written out as exponentials divided by their sum becomes one op."""

from __future__ import annotations

import operator

from torch.fx import GraphModule, Node

from lxt_fx.base.nodes import value, written_shape
from lxt_fx.base.pattern import Found, Op, Part, any_of, exactly, match, through
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops.dtype_limits import mask_limit
from lxt_fx.passes.drop_dead import drop_dead

_exp, _sum, _softmax = Op(aten.exp.default), Op(aten.sum.dim_IntList), Op(aten.softmax.int)
_amax, _max, _getitem = Op(aten.amax.default), Op(aten.max.dim), Op(operator.getitem)

_COPIES = frozenset({aten.contiguous.default})
_REPEATS = _COPIES | {aten.expand.default, aten.expand_as.default}
_REPEATS_OR_HOLDS = _REPEATS | {aten.detach.default}


def _written_out(x: Part, dim: Part) -> Part:
    """exp(x) / sum(exp(x), dim)."""
    powers = through(_COPIES, _exp(x))
    return powers / through(_REPEATS, _sum(powers, [dim], keepdim=True))


def _shifted(x: Part, dim: Part) -> Part:
    """x - max(x, dim). Softmax does not depend on the maximum, so it may also be held constant."""
    same = through(_REPEATS_OR_HOLDS, x)
    largest = any_of(_amax(same, [dim], keepdim=True), _getitem(_max(same, dim, keepdim=True), 0))
    return x - through(_REPEATS_OR_HOLDS, largest)


def _softmax_itself(x: Part, dim: Part, dtype: Part) -> Part:
    """The op itself."""
    return _softmax(x, dim, dtype)


def fold_softmax(gm: GraphModule) -> int:
    """Transform: exp(x) / sum(exp(x), dim) becomes softmax(x, dim), and so does softmax(x - largest x, dim). The
    subtraction goes, as softmax does it too; besides, it leaves an exact 0, through which relevance (value * gradient)
    cannot flow. Values change by rounding. A sum that is held constant, or to which something is added (an epsilon, a one),
    stays as it is."""
    edits = 0
    for node in list(gm.graph.nodes):
        edits += _drop_shift(node)
        found = match(_written_out, node)
        if not isinstance(found, Found) or written_shape(found["x"]) != written_shape(node):
            continue
        with gm.graph.inserting_before(node):
            folded = gm.graph.call_function(aten.softmax.int, (_unshifted(found["x"], found["dim"]), found["dim"]))
        folded.meta = dict(node.meta)
        node.replace_all_uses_with(folded)
        gm.graph.erase_node(node)
        edits += 1
    if edits:
        drop_dead(gm)
    return edits


def _drop_shift(node: Node) -> int:
    found = match(_softmax_itself, node)
    if not isinstance(found, Found):
        return 0
    reader, x = node, found["x"]
    while x.target is aten.masked_fill.Scalar and len(x.users) == 1 and x.args[2] <= mask_limit(value(x).dtype):
        reader, x = x, x.args[0]  # masked either way
    unshifted = _unshifted(x, found["dim"])
    if unshifted is x:
        return 0
    reader.replace_input_with(x, unshifted)
    return 1


def _unshifted(x: Node, dim: int) -> Node:
    """x, or what its largest value along the dim was subtracted from to give it."""
    found = match(_shifted, x, dim=exactly(dim))
    if isinstance(found, Found) and written_shape(found["x"]) == written_shape(x):
        x = found["x"]
    return x
