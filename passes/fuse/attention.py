"""Transform: fused attention reads grouped keys and values without copies, and the simplest mask that hides the same."""

from __future__ import annotations

import operator
from collections.abc import Set
from typing import Any

import torch
from torch.fx import Graph, Node

from lxt_fx.base.nodes import arguments, dtype, shape, written_shape
from lxt_fx.base.pattern import Found, Op, Part, any_of, match_alone
from lxt_fx.base.torch_internals import aten
from lxt_fx.ops import fused, products

_reshape, _view, _expand = Op(aten.reshape.default), Op(aten.view.default), Op(aten.expand.default)
_unsqueeze, _interleave = Op(aten.unsqueeze.default), Op(aten.repeat_interleave.self_int)


def _repeated(narrow: Part, wide: Part, whole: Part, times: Part, size: Part) -> Part:
    """`reshape(expand(unsqueeze(k, 2)))`, as transformers repeats keys and values, or `repeat_interleave(k, n, 1)`."""
    column = _expand(_unsqueeze(narrow, 2), wide)
    return any_of(_reshape(column, whole), _view(column, whole), _interleave(narrow, times, 1, output_size=size))


def fuse_attention(graph: Graph, carrying: Set[Node]) -> int:
    """Transform: where keys and values are repeated for the queries of a group, and only `lxt_fx.sdpa` reads them, it reads
    them before they are repeated. A boolean mask is inspected once per call for all attentions that read it."""
    edits = 0
    for node in list(graph.nodes):
        if node.target is products.sdpa and node in carrying:
            edits += _group(node)
    masks: dict[Node, tuple[Node, Node]] = {}
    for node in list(graph.nodes):
        if node.target in (products.sdpa, products.sdpa_held, fused.grouped_sdpa):
            edits += _simplify(graph, node, masks)
    return edits


def _group(attention: Node) -> int:
    query, key, value_, *rest = attention.args
    narrow = [_unrepeated(operand) for operand in (key, value_)]
    if None in narrow or arguments(attention).get("enable_gqa"):
        return 0
    groups = {(written_shape(operand) or ("", ""))[1] for operand in narrow if operand is not None}
    if len(groups) != 1:
        return 0
    attention.target, attention.args = fused.grouped_sdpa, (query, *narrow, *rest)
    return 1


def _unrepeated(repeated: Any) -> Node | None:
    """The keys or values [batch, groups, tokens, width] before they are repeated for the queries of each group; None where
    more than one node reads what comes of it."""
    if not isinstance(repeated, Node) or len(repeated.users) != 1:
        return None
    found = match_alone(_repeated, repeated)
    if not isinstance(found, Found):
        return None
    narrow: Node = found["narrow"]
    if "wide" not in found.values:
        return narrow if len(shape(repeated) or ()) == 4 else None
    size, wide, whole = (written_shape(node) or () for node in (narrow, found.nodes[1], repeated))
    if (len(size), len(wide), len(whole)) != (4, 5, 4) or not (wide[1].isdigit() and wide[2].isdigit()):
        return None
    heads = str(int(wide[1]) * int(wide[2]))
    fits = (*wide[:2], *wide[3:]) == size and whole == (size[0], heads, *size[2:])
    return narrow if fits else None


def _simplify(graph: Graph, attention: Node, masks: dict[Node, tuple[Node, Node]]) -> int:
    given = arguments(attention)
    mask = given.get("attn_mask")
    if not isinstance(mask, Node) or dtype(mask) is not torch.bool or given.get("is_causal"):
        return 0
    if mask not in masks:
        with graph.inserting_after(mask):
            simplest = graph.call_function(fused.simplest_mask, (mask,))
        with graph.inserting_after(simplest):
            causal = graph.call_function(operator.getitem, (simplest, 1))
            masks[mask] = graph.call_function(operator.getitem, (simplest, 0)), causal
        masks[mask][0].meta = dict(mask.meta)
    simpler, causal = masks[mask]
    operands = list(attention.args[:3])
    dropout = given.get("dropout_p", 0.0)
    attention.args = (*operands, simpler, dropout, causal)
    kwargs = dict(attention.kwargs)
    for name in ("attn_mask", "dropout_p", "is_causal"):
        kwargs.pop(name, None)
    attention.kwargs = kwargs
    return 1
