"""The step of `transform` that gives a canonical graph the tensors and moves of a placement."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule

from lxt_fx.base.torch_internals import copied_graph
from lxt_fx.compiler.captured_model import CapturedModel, cut_by, gradient_proof
from lxt_fx.compiler.compiled import Canonical
from lxt_fx.compiler.placement import Placement
from lxt_fx.compiler.step_checks import step_check
from lxt_fx.passes.analysis.mark_flow import mark_flow
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof


def placed(gm: GraphModule, begun: Canonical, placement: Placement) -> Canonical:
    """Puts tensors and moves in their places, and the example that has values."""
    fronts = placement.put(gm, begun.fronts)
    example = begun.example if placement.example is None else cut_by(fronts, placement.example, gm)
    flow = mark_flow(gm, begun.flow.leaves)
    return replace(begun, example=example, fronts=fronts, flow=flow, check=step_check(gm, example))


def proof_in_place(source: CapturedModel, begun: Canonical) -> GradientProof:
    """The comparison of the gradient of a canonical graph with the model's. A graph that was captured without values is
    compared as it will be placed, by a copy."""
    gm, place = source.captured.gm, source.placement
    if place is None or place.example is None:
        return gradient_proof(gm, begun.fronts, begun.example, source.model, source.captured.example, source.expected)
    copy = GraphModule(gm, copied_graph(gm.graph, gm.graph))
    fronts = place.put(copy, begun.fronts)
    cut = cut_by(fronts, place.example, copy)
    return gradient_proof(copy, fronts, cut, source.model, place.example, place.expected)


def with_values(source: CapturedModel) -> CapturedModel:
    """A captured model with the example that has values, if it was captured without."""
    place = source.placement
    if place is None or place.example is None:
        return source
    return replace(source, captured=replace(source.captured, example=place.example), expected=place.expected)
