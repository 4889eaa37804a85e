"""The step of `transform` that gives a canonical graph the tensors and moves of a placement."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import GraphModule

from lxt_fx.compiler.captured_model import CapturedModel, cut_by
from lxt_fx.compiler.compiled import Canonical
from lxt_fx.compiler.placement import Placement
from lxt_fx.compiler.step_checks import step_check
from lxt_fx.passes.analysis.mark_flow import mark_flow


def placed(gm: GraphModule, begun: Canonical, placement: Placement) -> Canonical:
    """Puts tensors and moves in their places, and the example that has values."""
    fronts = placement.put(gm, begun.fronts)
    example = begun.example if placement.example is None else cut_by(fronts, placement.example, gm)
    flow = mark_flow(gm, begun.flow.leaves)
    return replace(begun, example=example, fronts=fronts, flow=flow, check=step_check(gm, example))


def with_values(source: CapturedModel) -> CapturedModel:
    """A captured model with the example that has values, if it was captured without."""
    place = source.placement
    if place is None or place.example is None:
        return source
    return replace(source, captured=replace(source.captured, example=place.example), expected=place.expected)
