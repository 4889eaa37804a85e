"""What token ids are looked up as, at which relevance is read; and the inputs of a call, from what a tokenizer gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lxt_fx.attribution.text_input import NOT_FOR_THE_MODEL, says_nothing
from lxt_fx.base.as_it_was import as_it_was
from lxt_fx.base.errors import InputError
from lxt_fx.base.one_capture import one_capture
from lxt_fx.base.streamed_weight import streamed_weights
from lxt_fx.base.warn_user import warn_user
from lxt_fx.compiler.explained import Explained
from lxt_fx.passes.capture.example import token_embedding
from lxt_fx.passes.capture.signature import named_signature

Inputs = Mapping[str, Any] | Tensor | tuple[Any, ...]
"""Inputs of a module: by name, the first input alone, or all in order."""


@overload
def embed(model: nn.Module, input_ids: Tensor) -> Tensor: ...
@overload
def embed(model: nn.Module, input_ids: Mapping[str, Any]) -> dict[str, Tensor]: ...
def embed(model: nn.Module, input_ids: Tensor | Mapping[str, Any]) -> Tensor | dict[str, Tensor]:
    """What token ids are looked up as, as leaves that require a gradient.

    For `input_ids` [batch, tokens] it is one tensor, [batch, tokens, hidden]: the first leaf, if the model looks its ids up
    several times (there is a warning, since the others get relevance too). `model` is a transformers model or a module
    that `transform` made from one. For a model that quantises its input, give that input in place of ids; the result is the
    embeddings of its codes.

    For all inputs of an explained module by name it is a dict with each leaf of a call with these inputs, as
    `explained.with_leaves` returns them. `explained(**inputs | leaves)` is then that call.

    Raises InputError if the model has no token embedding (a module that was captured by embeddings also where the model
    scales what it looks up outside of that), or if `input_ids` is no tensor of whole numbers.
    """
    if isinstance(input_ids, Mapping):
        if not isinstance(model, Explained):
            raise InputError("embed: inputs by name are for an explained module; give the token ids alone, [batch, tokens]")
        module, bound = model._prepared((), as_called(model, input_ids))
        return module._new_leaves(bound)
    if not isinstance(input_ids, Tensor):
        raise InputError("embed: input_ids must be a tensor of whole numbers [batch, tokens], as a tokenizer gives them")
    if isinstance(model, Explained) and model._fronts and "inputs_embeds" not in model.record.called_with:
        return _looked_up(model, input_ids)
    embedding = next(iter(model._embedding), None) if isinstance(model, Explained) else token_embedding(model)
    if input_ids.is_floating_point():
        raise InputError("embed: input_ids must be a tensor of whole numbers [batch, tokens], as a tokenizer gives them")
    if embedding is None and isinstance(model, Explained):
        raise InputError(
            f"embed: {model.record.model_class} was captured by {', '.join(model.record.called_with)}, and has no token "
            "embedding, or answers to ids in another way than to what that looks up; transform the model by its ids and "
            "call explained.with_leaves(input_ids=...)"
        )
    if embedding is None:
        raise InputError(f"embed: {type(model).__name__} has no token embedding")
    with one_capture(), torch.no_grad(), as_it_was(embedding):  # while another thread captures, parameters are placeholders
        weights = {name: weight.load() for name, weight in streamed_weights(embedding)}
        embedded: Tensor = functional_call(embedding, weights, (input_ids,)) if weights else embedding(input_ids)
    return embedded.detach().clone().requires_grad_(True)


def _looked_up(model: Explained, ids: Tensor) -> Tensor:
    reads = model._fronts[0].reads
    leaves = [front for front in model._fronts if front.reads[0] == reads[0]]
    if len(reads) > 1:
        raise InputError(
            f"embed: {model.record.model_class} makes {leaves[0].leaf} of {', '.join(reads)}; give all inputs by name, or "
            "call explained.with_leaves"
        )
    if ids.is_floating_point() and not leaves[0].reads_floats:
        raise InputError("embed: input_ids must be a tensor of whole numbers [batch, tokens], as a tokenizer gives them")
    if len(leaves) > 1:
        first, *others = (front.leaf for front in leaves)
        warn_user(
            f"embed: {model.record.model_class} looks {reads[0]} up as {first} and as {', '.join(others)}, and this is "
            f"{first}, with a part of each token's relevance; explained.with_leaves({reads[0]}=...) returns all of them"
        )
    return leaves[0]({reads[0]: ids}).clone().requires_grad_(True)


def as_called(model: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs as the model is called with them: without what a tokenizer returns for people (`offset_mapping`), and
    without inputs that the model does not take if they say nothing (a mask of ones). Token ids become embeddings only for a
    model that takes no ids."""
    taken = _names_taken(model)
    used = {name: value for name, value in given.items() if name in taken or name not in NOT_FOR_THE_MODEL}
    used = {name: value for name, value in used.items() if name in taken or not says_nothing(name, value)}
    ids = used.get("input_ids")
    if isinstance(ids, Tensor) and "input_ids" not in taken and "inputs_embeds" in taken and "inputs_embeds" not in used:
        del used["input_ids"]
        used["inputs_embeds"] = embed(model, ids)
    return used


def _names_taken(model: nn.Module) -> frozenset[str]:
    if not isinstance(model, Explained):
        return frozenset(named_signature(model).parameters)
    own = frozenset((*model.record.called_with, *model.record.inputs))
    return own if model._other_calls is None else own | model._other_calls.takes
