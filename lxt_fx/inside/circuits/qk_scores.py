"""The scores of one attention and what flows back to them, from a run in which that attention is written out."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from lxt_fx.attribution.tapped import Tapped, tapped_as
from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import TensorType, arguments, dtype, shape
from lxt_fx.base.torch_internals import aten, schema_of
from lxt_fx.compiler.explained import Explained
from lxt_fx.inside.circuits.graph_run import GraphRun
from lxt_fx.inside.circuits.network import Network
from lxt_fx.ops import products
from lxt_fx.ops.scores import attention_with_scores
from lxt_fx.passes.analysis.find_scores import Meeting

_OF_RULE = ("query_share", "key_share", "value_share", "mask_share", "temperature")
"""What `lxt_fx.sdpa` has beside the arguments of torch's attention."""


def with_scores(network: Network, meeting: Meeting, place: str, function: str) -> Tapped:
    """The module that also returns the scores of one attention. A fused attention is written out in it, under its rule; the
    module itself does not change.

    Raises InputError where the table lets nothing flow back to the scores.
    """
    module = network.module
    if meeting.scores is not None:
        node = module._values().by_name[network.name_in_module(meeting.scores)]
        if not module._values().carries(node):
            raise held(module, place, function)
        name = module._values().at(node).name
        return tapped_as(module, (name,), lambda graph: [name])
    node = module._values().by_name[network.name_in_module(meeting.product)]
    settings = _settings(module, node, place, function)
    return tapped_as(module, ("scores of", node.name), lambda graph: [_written_out(graph, node.name, settings)])


def held(module: Explained, place: str, function: str) -> InputError:
    """The error for a table that holds the weights of attentions."""
    return InputError(
        f"{function}: under the table {module.record.table_name!r} the weights of {place} are held constant, so nothing "
        'flows back to its scores and each pair would be 0; take a table that goes through them, such as rules="attnlrp", '
        '"gradient" or "gim"'
    )


def _settings(module: Explained, node: Node, place: str, function: str) -> dict[str, Any]:
    """Shares and temperature of a fused attention. Raises InputError for one that has no scores."""
    given = arguments(node)
    if node.target is products.sdpa_held:
        raise held(module, place, function)
    if node.target is products.sdpa:
        of_op = {argument.name: argument.default_value for argument in schema_of(node.target).arguments}
        shares = {name: given.get(name, of_op[name]) for name in _OF_RULE}
    elif node.target is aten.scaled_dot_product_attention.default:
        shares = {}
    else:
        raise InputError(
            f"{function}: {place} runs as {node.target}, whose scores cannot be read; load the model with "
            'attn_implementation="eager"'
        )
    if shares.get("mask_share") == 0 or (shares and not module._values().carries(node)):
        raise held(module, place, function)
    return shares


def _written_out(graph: Graph, name: str, shares: dict[str, Any]) -> str:
    """Writes the attention out, and returns the name of its scores."""
    fused = next(node for node in graph.nodes if node.name == name)
    with graph.inserting_before(fused):
        both = graph.call_function(attention_with_scores, fused.args, {**fused.kwargs, **shares})
        out = graph.call_function(operator.getitem, (both, 0))
        scores = graph.call_function(operator.getitem, (both, 1))
    query, key = fused.args[:2]
    assert isinstance(query, Node) and isinstance(key, Node), "an attention of two values"
    sizes = (*(shape(query) or ())[:-1], (shape(key) or ())[-2])
    wide = torch.promote_types(dtype(query) or torch.float32, torch.float32)
    out.meta, scores.meta = dict(fused.meta), {"val": TensorType(wide, sizes)}
    both.meta = {"val": (out.meta.get("val"), scores.meta["val"])}
    fused.replace_all_uses_with(out)
    graph.erase_node(fused)
    return scores.name


def pattern_of(run: GraphRun, meeting: Meeting, pattern: Node | None) -> Tensor:
    """The weights [..., heads, queries, keys] of the attention in a run: those of the graph, or of its fused attention."""
    if pattern is not None:
        found: Tensor = run.values[pattern]
        return found
    op = arguments(meeting.product)
    given = {name: run.values[each] if isinstance(each, Node) else each for name, each in op.items()}
    with torch.no_grad():
        return attention_with_scores(**given)[2]
