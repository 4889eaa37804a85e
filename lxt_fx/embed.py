"""Token ids become the float leaf that relevance is read at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.errors import InputError
from lxt_fx.explained import Explained
from lxt_fx.inputs import token_embedding


def embed(model: nn.Module, input_ids: Tensor) -> Tensor:
    """The embeddings [batch, tokens, hidden] of `input_ids` [batch, tokens], as a leaf that asks for a gradient.

    `model` is a transformers model or a module that `transform` made from one. Raises InputError where it has no token
    embedding, or where `input_ids` is no tensor of whole numbers.
    """
    if not isinstance(input_ids, Tensor) or input_ids.is_floating_point():
        raise InputError("embed: input_ids must be a tensor of whole numbers [batch, tokens], as a tokenizer gives them")
    if isinstance(model, Explained):
        embedding: Any = model._embedding[0] if model._embedding else None
    else:
        embedding = token_embedding(model)
    if embedding is None:
        raise InputError(f"embed: {type(model).__name__} has no token embedding")
    with torch.no_grad():
        embedded: Tensor = embedding(input_ids)
    return embedded.detach().clone().requires_grad_(True)
