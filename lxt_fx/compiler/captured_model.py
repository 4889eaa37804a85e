"""A captured model: its graph before any rule, copies of that for several tables, and how to get it from an explained
module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule

from lxt_fx.base.errors import InputError
from lxt_fx.base.torch_internals import copy_io
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.model_changes import ModelState
from lxt_fx.passes.capture.capture import Captured, torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example, token_embedding
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof


@dataclass(frozen=True, slots=True)
class CapturedModel:
    """A model, its captured graph, the model's output on the example of the capture, and the seconds that took by step.
    `state` is what the model was when it was captured, None for a module that was loaded or copied. `proofs` gets the
    comparison of the gradients, which is made once for all copies."""

    model: nn.Module
    captured: Captured
    expected: Any
    seconds: Mapping[str, float]
    state: ModelState | None = None
    proofs: list[GradientProof] = field(default_factory=list)

    @property
    def model_class(self) -> str:
        """The class of the user's model, also if `model` is an explained module."""
        return self.model.record.model_class if isinstance(self.model, Explained) else type(self.model).__name__

    @property
    def called_with(self) -> tuple[str, ...]:
        """The names of the inputs that the user's model was captured with."""
        return self.model.record.called_with if isinstance(self.model, Explained) else tuple(self.captured.example.kwargs)

    @property
    def embedding(self) -> nn.Module | None:
        """The model's token embedding, if it has one."""
        if isinstance(self.model, Explained):
            return next(iter(self.model._embedding), None)
        embedding = token_embedding(self.model)
        return embedding if isinstance(embedding, nn.Embedding) else None


def copied(source: CapturedModel) -> CapturedModel:
    """The captured model with a copy of its graph, because `compiled_by` edits the graph. Parameters are shared."""
    gm = source.captured.gm
    return replace(source, captured=replace(source.captured, gm=_module(gm, gm.graph, gm.graph)))


def captured_model_of(explained: Explained, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> CapturedModel:
    """The canonical graph of the module, before its rules, with these inputs as the example.

    Raises InputError for a module that does not have this graph any more.
    """
    record = explained.record
    if record.table is None:
        raise InputError(
            "this module was loaded from a file, which has the graph before its rules as text only; give the model that it "
            "was made from"
        )
    if record.merged:
        raise InputError(
            f"this module's table merged batch norms into the layers before them ({', '.join(record.merged[:2])}, ...), "
            "and that cannot be undone for another table; give the model that it was made from"
        )
    explained, bound = explained._prepared(args, kwargs)
    record = explained.record
    gm = _module(explained, record.stages["canonical"].graph, explained.graph)
    example = Example(bound, dict(record.constants), record.optional, order=record.order)
    with torch_state_restored(), torch.no_grad():
        torch.manual_seed(SEED)  # a forward that draws random numbers must draw those of its check
        expected = explained.forward(**example.kwargs)
    proof = GradientProof(record.gradient_difference, note=record.gradient_note)
    captured = Captured(gm, example, record.method, record.specialised, record.guards)
    return CapturedModel(explained, captured, expected, {}, explained._model_state, [proof])


def _module(owner: nn.Module, graph: Graph, called_as: Graph) -> GraphModule:
    copy = Graph()
    copy.output(copy.graph_copy(graph, {}))
    copy_io(called_as, copy)
    return GraphModule(owner, copy)
