"""A captured model: its graph before any rule, copies of that for several tables, and how to get it from an explained
module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lxt_fx.base.errors import InputError
from lxt_fx.base.on_meta import on_meta
from lxt_fx.base.torch_internals import copied_graph, io_of
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.model_changes import ModelState
from lxt_fx.compiler.placement import Placement
from lxt_fx.compiler.record import Stage
from lxt_fx.compiler.short_check import Checked, short_check
from lxt_fx.compiler.steered_module import unsteered
from lxt_fx.passes.analysis.relevance_leaves import relevance_leaves
from lxt_fx.passes.canonical.cut_at_lookups import Front
from lxt_fx.passes.capture.called_by_leaf import leaf_values
from lxt_fx.passes.capture.capture import Captured, torch_state_restored
from lxt_fx.passes.capture.example import SEED, Example, token_embedding, usual_tokens
from lxt_fx.passes.capture.export_once import Copied
from lxt_fx.passes.capture.packed_layers import PackedLayers
from lxt_fx.passes.capture.refused_inputs import SAME, answer_or_error
from lxt_fx.passes.capture.signature import named_signature
from lxt_fx.passes.verify import forward_difference
from lxt_fx.passes.verify_gradient.verify_gradient import GradientProof, verify_gradient


@dataclass(frozen=True, slots=True)
class Begun:
    """What is known of a canonical graph beside the graph: what computes its leaves from tokens, the inputs that look up a
    table and are no tokens, and the graph as it was captured, to be printed."""

    fronts: tuple[Front, ...]
    no_tokens: tuple[str, ...]
    capture: Stage

    def cut(self, example: Example, gm: GraphModule) -> Example:
        """The example with the inputs that the canonical graph has."""
        return cut_by(self.fronts, example, gm)


def cut_by(fronts: Sequence[Front], example: Example, gm: GraphModule) -> Example:
    """An example of the model with the inputs of a graph whose leaves these fronts compute."""
    if not fronts:
        return example
    values = leaf_values(example.kwargs)
    for front in fronts:
        values[front.leaf] = front(values).clone()
    return replace(example, kwargs={name: values[name] for name in io_of(gm.graph).names})


Store = Callable[[GraphModule, Begun], None]
"""Gets the canonical graph of a capture once it passes the model's gradient."""


@dataclass(frozen=True, slots=True)
class CapturedModel:
    """A model, its captured graph, the model's output on the example of the capture, and the seconds that took by step.
    `state` is what the model was when it was captured, None for a module that was loaded or copied. `proofs` gets the
    comparison of the gradients, which is made once for all copies. `packed` are the packed layers. `embedding` is what
    `embed` looks tokens up in, for a module that is called by embeddings. With `begun` the graph is canonical already;
    without, the `stores` get it as soon as it is. `fresh` captures a model anew whose capture came from a file, or was made
    for other inputs. `narrowed` is called where compiling it has put conditions on free sizes: its copies share these.
    `finished` gets the module that passed all checks. If the example is a long text cut short, `whole` is all of it.
    `not_kept` says why the next call captures the model again. A `placement` says what the graph gets in the place of its
    tensors: of a dispatched model, a twin without values was captured."""

    model: nn.Module
    captured: Captured
    expected: Any
    seconds: Mapping[str, float]
    state: ModelState | None = None
    proofs: list[GradientProof] = field(default_factory=list)
    embedding: nn.Module | None = None
    packed: PackedLayers = field(default_factory=lambda: PackedLayers({}))
    begun: Begun | None = None
    stores: tuple[Store, ...] = ()
    fresh: Callable[[], CapturedModel] | None = None
    narrowed: Callable[[], None] | None = None
    finished: Callable[[Explained], None] | None = None
    whole: Checked | None = None
    not_kept: str = ""
    placement: Placement | None = None

    @property
    def model_class(self) -> str:
        """The class of the user's model, also if `model` is an explained module."""
        return self.model.record.model_class if isinstance(self.model, Explained) else type(self.model).__name__

    @property
    def called_with(self) -> tuple[str, ...]:
        """The names of the inputs that the user's model was captured with."""
        return self.model.record.called_with if isinstance(self.model, Explained) else tuple(self.captured.example.kwargs)


def embedding_of(model: nn.Module, example: Example) -> nn.Embedding | None:
    """The model's token embedding for an example by `inputs_embeds`, if the model answers to ids as to what it looks up for
    them. Some models scale that outside of the embedding (Marian), or read the ids for more. To be called inside
    `torch_state_restored`."""
    embeds, embedding = example.kwargs.get("inputs_embeds"), token_embedding(model)
    if not isinstance(embeds, Tensor) or embeds.dim() != 3 or not isinstance(embedding, nn.Embedding):
        return None
    if "input_ids" not in named_signature(model).parameters or on_meta(model, example.kwargs):
        return embedding
    size, generator = (embeds.shape[0], embeds.shape[1]), torch.Generator().manual_seed(SEED)
    ids = usual_tokens(model, embedding.num_embeddings, size, generator).to(embeds.device)
    by_embeddings = answer_or_error(model, replace(example, kwargs={**example.kwargs, "inputs_embeds": embedding(ids)}))
    others = example.without(("inputs_embeds",))
    by_ids = answer_or_error(model, replace(others, kwargs={"input_ids": ids, **others.kwargs}))
    if isinstance(by_embeddings, Exception) or isinstance(by_ids, Exception):
        return None
    return embedding if forward_difference(by_ids, by_embeddings) <= SAME else None


def on_short_texts(source: CapturedModel, sizes: Mapping[str, tuple[int | None, ...]], asked: Checked) -> CapturedModel:
    """The captured model with its example cut short, if it is a long text. `sizes` are those of the inputs of the captured
    graph, and `asked` is the example of the call."""
    short = short_check(source.model, source.captured.example, source.captured, sizes)
    if short is None:
        return source
    captured = replace(source.captured, example=short.example)
    return replace(source, captured=captured, expected=short.expected, whole=asked)


def copied(source: CapturedModel) -> CapturedModel:
    """The captured model with a copy of its graph, because `compiled_by` edits the graph. Parameters are shared."""
    gm = source.captured.gm
    return replace(source, captured=replace(source.captured, gm=_module(gm, gm.graph, gm.graph)))


def gradient_proof(
    gm: GraphModule, fronts: Sequence[Front], cut: Example, model: nn.Module, example: Example, expected: Any
) -> GradientProof:
    """The comparison of the gradient of a canonical graph, called by the `cut` example, with that of its model."""
    leaves, reads = relevance_leaves(gm.graph), {front.leaf: front.reads for front in fronts}
    return verify_gradient(gm, cut.kwargs, leaves, model, example, expected, reads)


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
    with unsteered():
        explained, bound = explained._prepared(args, kwargs)
    record = explained.record
    gm = _module(explained, record.stages["canonical"].graph, explained.graph)
    example = Example(bound, dict(record.constants), record.optional, order=record.order)
    with torch_state_restored(), torch.no_grad():
        torch.manual_seed(SEED)  # a forward that draws random numbers must draw those of its check
        expected = explained.forward(**example.kwargs)
    proof = GradientProof(record.gradient_difference, note=record.gradient_note)
    embedding = next(iter(explained._embedding), None)
    copied = Copied(record.copied_layers, record.traced_layers)
    captured = Captured(gm, example, record.method, record.specialised, record.guards, copied)
    return CapturedModel(explained, captured, expected, {}, explained._model_state, [proof], embedding)


def _module(owner: nn.Module, graph: Graph, called_as: Graph) -> GraphModule:
    return GraphModule(owner, copied_graph(graph, called_as))
