"""What a model writes behind its inputs, token by token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.inputs.facts import Facts

FUNCTION = "serve"

_GROWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "input_ids": lambda ids: ids,
    "attention_mask": torch.ones_like,
    "position_ids": lambda ids: torch.arange(ids.shape[1], device=ids.device)[None],
}
"""What an input is for one text without padding, by its ids [1, tokens]."""


def next_tokens(model: nn.Module, inputs: Mapping[str, Any], facts: Facts, count: int) -> Iterator[int]:
    """The likeliest token behind the text, `count` times, each behind those before it. What the model remembers of the
    tokens before (its cache) is used for a text alone, where the model has one. Raises InputError where an input beside the
    text has an entry for each token, of which the next one is not known."""
    cached = not isinstance(model, Explained) and all(map(facts.takes, ("use_cache", "past_key_values")))
    if cached and not set(inputs) - {"input_ids", "attention_mask", "position_ids"}:
        return _remembered(model, inputs["input_ids"], count)
    return _whole(model, inputs, count)


def _remembered(model: nn.Module, ids: Tensor, count: int) -> Iterator[int]:
    past = None
    for _ in range(count):
        with torch.no_grad():
            output = model(input_ids=ids, use_cache=True, past_key_values=past)
        token = int(output["logits"][0, -1].argmax())
        yield token
        following = torch.tensor([[token]], device=ids.device)
        past = output.get("past_key_values")
        ids = following if past is not None else torch.cat([ids, following], 1)


def _whole(model: nn.Module, inputs: Mapping[str, Any], count: int) -> Iterator[int]:
    """Everything is computed again for each token."""
    own = dict(inputs)
    ids = own["input_ids"]
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        grows = name in _GROWS and torch.equal(value, _GROWS[name](ids))
        if not grows and (name == "position_ids" or value.shape[:2] == ids.shape):
            raise InputError(
                f"{FUNCTION}: no answer can be written behind this text, since what {name} is for further tokens is not "
                "known; set the answer tokens to 0"
            )
    for _ in range(count):
        with torch.no_grad():
            output = model(**own)
        token = int(output["logits"][0, -1].argmax())
        yield token
        ids = torch.cat([ids, torch.tensor([[token]], device=ids.device)], 1)
        own |= {name: grow(ids) for name, grow in _GROWS.items() if isinstance(own.get(name), Tensor)}
