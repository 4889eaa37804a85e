"""Token ids become embeddings: the floating-point leaf at which relevance is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lxt_fx.attribution.text_input import NOT_FOR_THE_MODEL, says_nothing
from lxt_fx.base.errors import InputError
from lxt_fx.base.one_capture import one_capture
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import token_embedding

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]
"""Inputs of an explained module: by name, the first input alone, or all in order."""


def embed(model: nn.Module, input_ids: Tensor | Mapping[str, Any]) -> Tensor:
    """The embeddings [batch, tokens, hidden] of `input_ids` [batch, tokens], as a leaf that requires a gradient.

    `model` is a transformers model or a module that `transform` made from one. For a model that quantises its input, give
    that input in place of ids; the result is the embeddings of its codes. If embeddings are computed from several inputs
    (ids and images, for example), give all inputs by name. Raises InputError if the model has no token embedding, or if
    `input_ids` is no tensor of whole numbers.
    """
    if isinstance(model, Explained):
        embedding: Any = model._embedding[0] if model._embedding else None
    else:
        embedding = token_embedding(model)
    if isinstance(input_ids, Mapping) and isinstance(embedding, GraphModule):
        taken = [str(node.target) for node in embedding.graph.nodes if node.op == "placeholder"]
        if missing := [name for name in taken if name not in input_ids]:
            raise InputError(f"embed: {', '.join(missing)} missing; the embeddings are made of {', '.join(taken)}")
        with one_capture(), torch.no_grad():
            made: Tensor = embedding(*(input_ids[name] for name in taken))
        return made.detach().clone().requires_grad_(True)
    quantised = isinstance(model, Explained) and "embeddings" in model.record.leaves
    if not isinstance(input_ids, Tensor) or (input_ids.is_floating_point() and not quantised):
        raise InputError("embed: input_ids must be a tensor of whole numbers [batch, tokens], as a tokenizer gives them")
    if embedding is None:
        raise InputError(f"embed: {type(model).__name__} has no token embedding")
    with one_capture(), torch.no_grad():  # while another thread captures the model, its parameters are placeholders
        embedded: Tensor = embedding(input_ids)
    return embedded.detach().clone().requires_grad_(True)


def with_embeddings(model: nn.Module, given: Mapping[str, Any], taken: Sequence[str]) -> dict[str, Any]:
    """Inputs by name, with `input_ids` replaced by `inputs_embeds` if the model accepts these. Other outputs of a tokenizer
    that are not among the model's inputs `taken` are dropped if the model computes the same without them. Raises InputError
    as `embed` does."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or "inputs_embeds" not in taken or "inputs_embeds" in given:
        return dict(given)
    used = {name: value for name, value in given.items() if name in taken or name not in NOT_FOR_THE_MODEL}
    used = {name: value for name, value in used.items() if name in taken or not says_nothing(name, value)}
    joined = isinstance(model, Explained) and any(isinstance(made, GraphModule) for made in model._embedding)
    return used | {"inputs_embeds": embed(model, given if joined else ids)}
