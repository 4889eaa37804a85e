"""Transform: a batch norm is merged into the linear layer or convolution before it, where the rule of that layer needs
it."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node

from lxt_fx.base.nodes import arguments, module_path, shape, value
from lxt_fx.base.torch_internals import aten, base_name, rename
from lxt_fx.ops.aten_kinds import CONVOLUTIONS, TRANSPOSED
from lxt_fx.ops.contributions import BY_CONTRIBUTION
from lxt_fx.passes.analysis.assign_rules import Assignment, Plan
from lxt_fx.passes.drop_dead import drop_dead
from lxt_fx.rule_table.rule import Conserves

_LAYERS = CONVOLUTIONS | {aten.linear.default}


def merge_batch_norm(gm: GraphModule, plan: Plan) -> tuple[str, ...]:
    """Transform: (W x + b - mean) s + c becomes (s W) x + (b - mean) s + c, with s = weight / sqrt(variance + eps) and c
    the bias of the batch norm.

    This happens where the rule of W x weighs contributions or has an epsilon, since such a rule gives another relevance to
    two maps in sequence than to the merged one. The batch norm must be the only reader of W x, and its own rule must treat
    it as a linear map. s W and the new bias are computed in the graph from the model's parameters. Returns the module of
    each merged batch norm; if there are any, rules must be assigned again.
    """
    merged: list[str] = []
    for node, assignment in plan.assignments.items():
        while _needs_it(assignment) and (batch_norm := _behind(node, plan)) is not None:
            merged.append(module_path(batch_norm) or f"%{batch_norm.name}")
            node = _merge(gm.graph, node, batch_norm)
    drop_dead(gm)
    return tuple(merged)


def _needs_it(assignment: Assignment) -> bool:
    """Without epsilon, eq. 8 of AttnLRP gives the merged map the same relevance as the two maps in sequence."""
    rule, site = assignment.rule, assignment.site
    return site.kind in _LAYERS and (rule.op(site) in BY_CONTRIBUTION or bool(rule.epsilon))


def _behind(layer: Node, plan: Plan) -> Node | None:
    """The batch norm that is the only reader of the layer and normalises its output channels. Without a batch dimension, or
    with tokens before features, it normalises another dimension."""
    reader = next(iter(layer.users))
    found = plan.assignments.get(reader)
    if len(layer.users) > 1 or found is None or found.site.kind is not aten.batch_norm.default:
        return None
    linear = found.rule.op(found.site) is None and found.rule.conserves is Conserves.ALL_BUT_CONSTANTS
    by_output = len(shape(layer) or ()) == len(shape(arguments(layer)["weight"]) or ())
    return reader if linear and by_output and found.site.carries("input") else None


def _merge(graph: Graph, layer: Node, batch_norm: Node) -> Node:
    """The merged layer, which replaces both nodes and has the name of the layer."""
    with graph.inserting_before(batch_norm):
        weight, bias = _Parameters(graph, layer, batch_norm).merged()
        args = (arguments(layer)["input"], weight, bias, *layer.args[3:])
        kwargs = {name: v for name, v in layer.kwargs.items() if name not in ("input", "weight", "bias")}
        merged = graph.create_node("call_function", layer.target, args, kwargs)
    merged.meta = dict(layer.meta)
    batch_norm.replace_all_uses_with(merged)
    graph.erase_node(batch_norm)
    graph.erase_node(layer)
    merged.name = layer.name
    return merged


class _Parameters:
    """Arithmetic with the parameters of both, in float32 where they are narrower."""

    def __init__(self, graph: Graph, layer: Node, batch_norm: Node) -> None:
        self.graph, self.layer = graph, layer
        self.of_layer, self.of_norm = arguments(layer), arguments(batch_norm)
        self.dtype = value(self.of_layer["weight"]).dtype
        kinds = self.dtype, value(self.of_norm["running_var"]).dtype
        self.wide = torch.promote_types(torch.promote_types(*kinds), torch.float32)

    def merged(self) -> tuple[Node, Node]:
        """s W and (b - mean) s + c, in the dtype of W."""
        scale, weight = self._scale(), self._wide(self.of_layer["weight"])
        scaled = self._call(aten.mul.Tensor, weight, self._by_output(scale))
        mean, bias = self._wide(self.of_norm["running_mean"]), self.of_layer.get("bias")
        if bias is None:
            centred = self._call(aten.neg.default, mean)
        else:
            centred = self._call(aten.sub.Tensor, self._wide(bias), mean)
        shifted = self._call(aten.mul.Tensor, centred, scale)
        if self.of_norm["bias"] is not None:
            shifted = self._call(aten.add.Tensor, shifted, self._wide(self.of_norm["bias"]))
        return self._named("merged_weight", scaled), self._named("merged_bias", shifted)

    def _scale(self) -> Node:
        """s, [channels]."""
        variance = self._call(aten.add.Tensor, self._wide(self.of_norm["running_var"]), self.of_norm["eps"])
        inverse = self._call(aten.rsqrt.default, variance)
        weight = self.of_norm["weight"]
        return inverse if weight is None else self._call(aten.mul.Tensor, self._wide(weight), inverse)

    def _by_output(self, scale: Node) -> Node:
        """s for W [out, in / groups, ...], or [in, out / groups, ...] of a transposed convolution."""
        weight: Any = shape(self.of_layer["weight"])
        ones, groups = [1] * (len(weight) - 2), self.of_layer.get("groups", 1)
        if self.layer.target not in TRANSPOSED and not self.of_layer.get("transposed"):
            return self._call(aten.view.default, scale, [-1, 1, *ones])
        by_group = self._call(aten.view.default, scale, [groups, -1])
        by_input = self._call(aten.repeat_interleave.self_int, by_group, weight[0] // groups, 0)
        return self._call(aten.view.default, by_input, [*weight[:2], *ones])

    def _wide(self, tensor: Node) -> Node:
        return self._cast(tensor, self.wide)

    def _cast(self, tensor: Node, dtype: torch.dtype) -> Node:
        return tensor if value(tensor).dtype is dtype else self._call(aten.to.dtype, tensor, dtype)

    def _named(self, name: str, tensor: Node) -> Node:
        found = self._cast(tensor, self.dtype)
        rename(found, name)
        return found

    def _call(self, target: Any, *args: Any) -> Node:
        node = self.graph.create_node("call_function", target, args, name=base_name(target))
        with torch.no_grad():
            node.meta = {**self.layer.meta, "val": target(*torch.fx.map_arg(args, value))}
        return node
