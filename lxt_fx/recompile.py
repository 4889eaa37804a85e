"""One capture for many tables: copies of a captured graph, and the graph that an explained module was made from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from lxt_fx.errors import InputError
from lxt_fx.explained import Explained
from lxt_fx.inputs import Example
from lxt_fx.passes.capture import Captured, torch_state_kept
from lxt_fx.pipeline import Source


def copied(source: Source) -> Source:
    """The same with a graph of its own, which `compiled_by` may use up. Parameters are shared."""
    gm = source.captured.gm
    return replace(source, captured=replace(source.captured, gm=_module(gm, gm.graph, gm.graph._codegen)))


def source_of(explained: Explained, kwargs: dict[str, Any]) -> Source:
    """What the module was captured as, in one spelling and before its rules, with `kwargs` for the example.

    Raises InputError for a module that was loaded from a file, which holds no such graph.
    """
    record = explained.record
    if "canonical" not in record.stages:
        raise InputError(
            "tune: this module was loaded from a file, which does not hold the graph as it was before its rules; give the "
            "model that it was made from"
        )
    gm = _module(explained, record.stages["canonical"].graph, explained.graph._codegen)
    example = Example(explained._bind((), kwargs), dict(record.constants), record.optional)
    with torch_state_kept(), torch.no_grad():
        expected = explained.forward(**example.kwargs)
    return Source(explained, Captured(gm, example, record.method, record.specialised, record.guards), expected, {})


def _module(owner: nn.Module, graph: Graph, codegen: Any) -> GraphModule:
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    copy._codegen = codegen
    return GraphModule(owner, copy)
