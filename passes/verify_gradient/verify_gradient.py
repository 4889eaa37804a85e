"""Analysis: does the graph, before any rule, pass the gradient that the model passes?

The forward check cannot see a backward that capture lost: an `autograd.Function` with a backward of its own, a hook on a
gradient, a kernel that is traced into. So graph and model run backward once each on the example, from the same cotangents,
and their gradients are compared at every float input of the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from lxt_fx.base.errors import GradientMismatchError
from lxt_fx.base.on_meta import NOT_COMPARED, on_meta
from lxt_fx.base.torch_internals import pytree
from lxt_fx.base.warn_user import warn_user
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.verify import gradient_difference
from lxt_fx.passes.verify_gradient.both_gradients import (
    NO_READS,
    NotComparable,
    Reads,
    cotangents,
    gradients_of_graph,
    gradients_of_model,
    rounded_otherwise,
)
from lxt_fx.passes.verify_gradient.find_lost_gradient import find_lost_gradient

LIMIT, HALF_LIMIT = 0.05, 0.3
"""The largest difference of the gradients at a leaf, as a part of the norm of the model's: beyond the first, a graph in
float32 or float64 has lost a backward; in half precision rounding alone can come near the second."""

_HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class GradientProof:
    """The largest difference of the two gradients at a leaf, relative to the norm of the model's, and that leaf. `limit` is
    the largest that passes, `lost_in` says where the graph loses the model's gradient if it is larger. NaN: not compared,
    and `note` says why."""

    difference: float
    leaf: str = ""
    limit: float = LIMIT
    note: str = ""
    lost_in: str = ""

    @property
    def holds(self) -> bool:
        """Whether no difference beyond the limit was found."""
        return not self.difference > self.limit

    @property
    def said(self) -> str:
        """Why it was not compared, or where the graph loses a backward."""
        return self.note if self.holds else f"capture lost a backward in {self.lost_in}"

    @property
    def is_half(self) -> bool:
        """Whether the graph computes in half precision."""
        return self.limit == HALF_LIMIT


def verify_gradient(
    gm: GraphModule,
    inputs: Mapping[str, Any],
    leaves: Sequence[Node],
    model: nn.Module,
    example: Example,
    expected: Any,
    reads: Reads = NO_READS,
) -> GradientProof:
    """Analysis: compares the gradients of a graph, called by `inputs`, and of its model, called by `example`, at the
    leaves. A leaf that is no input of the model is a value that the model computes (embeddings of ids): there the model's
    run starts anew from the leaf. `expected` is the model's output, and `reads` are
    the inputs of the model that such a leaf is computed from. The model, the `grad` of its parameters and torch's
    state do not change."""
    if on_meta(model, (inputs, example.kwargs)):
        return GradientProof(math.nan, note=NOT_COMPARED)
    names = [str(leaf.target) for leaf in leaves]
    named = leaf_values(inputs)
    values = {name: named[name] for name in names}
    seeds = cotangents(expected)

    def again() -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        other = rounded_otherwise(values)
        return gradients_of_model(model, example, other, seeds, reads=reads), gradients_of_graph(gm, inputs, other, seeds)

    try:
        if not values or all(seed is None for seed in seeds):
            raise NotComparable("no floating-point tensor goes in, or none comes out")
        models = gradients_of_model(model, example, values, seeds, expected, reads)
        graphs = gradients_of_graph(gm, inputs, values, seeds, expected)
        proof = _compared(models, graphs, _limit(gm), again)
    except NotComparable as why:
        return GradientProof(math.nan, note=f"not compared: {why}")
    if proof.holds:
        return proof
    return replace(proof, lost_in=find_lost_gradient(gm, inputs, values, model, example, seeds, reads))


def _limit(gm: GraphModule) -> float:
    values = [x for node in gm.graph.nodes for x in pytree.tree_leaves(node.meta.get("val")) if isinstance(x, Tensor)]
    return HALF_LIMIT if any(x.dtype in _HALF for x in values) else LIMIT


def _compared(
    models: Mapping[str, Tensor],
    graphs: Mapping[str, Tensor],
    limit: float,
    again: Callable[[], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
) -> GradientProof:
    """The leaf at which the gradients differ most. A leaf where one of them moves as much when the leaves are rounded
    otherwise proves nothing: there the gradient is 0 but for rounding, or the example lies on the edge of a branch."""
    found = {name: gradient_difference(models[name], graphs[name]) for name in models}
    unproven = [name for name, difference in found.items() if math.isnan(difference)]
    if beyond := [name for name, difference in found.items() if difference > limit]:
        others, same = again()
        unproven += [name for name in beyond if _moves(models[name], graphs[name], others[name], same[name])]
    why = "the gradient is not finite there, or nothing but rounding"
    compared = {name: difference for name, difference in found.items() if name not in unproven}
    if not compared:
        raise NotComparable(why)
    leaf = max(compared, key=lambda name: compared[name])
    note = f"not compared at {', '.join(unproven)}: {why}" if unproven else ""
    return GradientProof(compared[leaf], leaf, limit, note)


def _moves(models: Tensor, graphs: Tensor, models_again: Tensor, graphs_again: Tensor) -> bool:
    """Whether one of the gradients changed by half of the difference between them, or more."""
    pairs = (models, models_again), (graphs, graphs_again), (models, graphs)
    *moved, apart = (float(torch.nan_to_num(a - b).norm()) for a, b in pairs)
    return not 2 * max(moved) < apart


def check_gradient(proof: GradientProof, name: str, *, strict: bool) -> None:
    """Raises GradientMismatchError where the graph has lost the model's gradient. In half precision, and where strict is
    False, it warns."""
    if proof.holds:
        return
    text = (
        f"transform: the graph of {name} passes another gradient than the model: before any rule, that of {proof.leaf} is "
        f"off by {proof.difference:.0%} on the example (relative L2; allowed: {proof.limit:.0%}). Capture lost a backward "
        f"in {proof.lost_in}. It traces what forward() does, and no backward that is written elsewhere: in an "
        "autograd.Function, a gradient hook, a kernel"
    )
    if strict and not proof.is_half:
        raise GradientMismatchError(
            f"{text}. To go on: write that module so that its forward has the gradient, or transform(..., strict=False) to "
            "explain the graph with the gradient of its forward; the certificate will say so"
        )
    warn_user(text)
