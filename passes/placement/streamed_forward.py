"""A graph that runs part by part: each part reads its weights when it runs, in the forward and again in the backward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import nn
from torch.fx import Graph

from lxt_fx.base.errors import CallError
from lxt_fx.base.one_capture import is_compiling
from lxt_fx.base.streamed_weight import streamed_weights
from lxt_fx.passes.placement.read_ahead import ReadAhead
from lxt_fx.passes.segments.by_segments import Segment, Segments, forward_by_segments, forward_of
from lxt_fx.passes.segments.recompute import recomputed_in_backward


def streamed_forward(owner: nn.Module, graph: Graph, segments: Segments | None) -> Callable[..., Any]:
    """The forward of a graph that has tensors of `owner`. Its parts are the segments, what stands before the first and
    after the last of them, or the whole graph if there are none.

    A part is computed again in the backward, from its inputs alone. So no weight, nor what an op made of one, is saved for
    the backward of another part, and the largest part and the one that is read ahead are in memory. Raises CallError where
    code is compiled: a compiled function would hold the weights.
    """
    weights, ahead = dict(streamed_weights(owner)), ReadAhead()

    def called(segment: Segment) -> Callable[..., Any]:
        part = forward_of(segment.graph)
        if not segment.weights:
            return recomputed_in_backward(lambda *values: part(None, *values), segment)
        number = ahead.add([weights[name] for name in segment.weights])

        def run(*values: Any) -> Any:
            runs = count()

            def with_weights(*values: Any) -> Any:
                following = ahead.before(number) if next(runs) else ahead.after(number)
                return part(None, *values, *ahead.take(number, following))

            asks = torch.is_grad_enabled() and any(getattr(value, "requires_grad", False) for value in values)
            (ahead.in_backward.add if asks else ahead.in_backward.discard)(number)
            return recomputed_in_backward(with_weights, segment)(*values)

        run.__name__ = f"part_{number}"
        return run

    by_parts = forward_by_segments(graph, _whole(graph, segments), called, frozenset(weights))

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_compiling():
            raise CallError(
                "a module whose weights are read for each use cannot be compiled: what is compiled would hold them all; "
                "call it as it is, or load the model into memory"
            )
        return by_parts(self, *args, **kwargs)

    return forward


def _whole(graph: Graph, segments: Segments | None) -> Segments:
    """The segments, with what is before and after them as segments too."""
    nodes = [node.name for node in graph.nodes if node.op == "call_function"]
    starts, places = (segments.starts, segments.places) if segments is not None else ((), ())
    if nodes and nodes[0] not in starts:
        starts, places = (nodes[0], *starts), ("before the layers", *places)
    if segments is not None and segments.end in nodes:
        starts, places = (*starts, segments.end), (*places, "after the layers")
    return replace(segments or Segments((), "output", ()), starts=starts, places=places, end="output")
