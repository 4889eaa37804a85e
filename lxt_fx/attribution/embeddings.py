"""Token ids become the float leaf that relevance is read at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lxt_fx.attribution.text_input import NOT_FOR_THE_MODEL, says_nothing
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import token_embedding

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]
"""Inputs of an explained module: by name, the first of them, or in order."""


def embed(model: nn.Module, input_ids: Tensor | Mapping[str, Any]) -> Tensor:
    """The embeddings [batch, tokens, hidden] of `input_ids` [batch, tokens], as a leaf that asks for a gradient; of a model
    that quantises its input, what it makes of the codes of that input. Where that takes several inputs (ids and images,
    say), give all inputs by name.

    `model` is a transformers model or a module that `transform` made from one. Raises InputError where it has no token
    embedding, or where `input_ids` is no tensor of whole numbers.
    """
    if isinstance(model, Explained):
        embedding: Any = model._embedding[0] if model._embedding else None
    else:
        embedding = token_embedding(model)
    if isinstance(input_ids, Mapping) and isinstance(embedding, GraphModule):
        taken = [str(node.target) for node in embedding.graph.nodes if node.op == "placeholder"]
        if missing := [name for name in taken if name not in input_ids]:
            raise InputError(f"embed: {', '.join(missing)} missing; the embeddings are made of {', '.join(taken)}")
        with torch.no_grad():
            made: Tensor = embedding(*(input_ids[name] for name in taken))
        return made.detach().clone().requires_grad_(True)
    quantised = isinstance(model, Explained) and "embeddings" in model.record.leaves
    if not isinstance(input_ids, Tensor) or (input_ids.is_floating_point() and not quantised):
        raise InputError("embed: input_ids must be a tensor of whole numbers [batch, tokens], as a tokenizer gives them")
    if embedding is None:
        raise InputError(f"embed: {type(model).__name__} has no token embedding")
    with torch.no_grad():
        embedded: Tensor = embedding(input_ids)
    return embedded.detach().clone().requires_grad_(True)


def with_embeddings(model: nn.Module, given: Mapping[str, Any], taken: Sequence[str]) -> dict[str, Any]:
    """Inputs by name with `input_ids` as `inputs_embeds`, where the model takes these, less what else a tokenizer gives
    and a model that takes `taken` has no use for. Raises InputError as `embed` does."""
    ids = given.get("input_ids")
    if not isinstance(ids, Tensor) or "inputs_embeds" not in taken or "inputs_embeds" in given:
        return dict(given)
    kept = {name: value for name, value in given.items() if name in taken or name not in NOT_FOR_THE_MODEL}
    kept = {name: value for name, value in kept.items() if name in taken or not says_nothing(name, value)}
    joined = isinstance(model, Explained) and any(isinstance(made, GraphModule) for made in model._embedding)
    return kept | {"inputs_embeds": embed(model, given if joined else ids)}
