"""The answer that a model writes behind its inputs: the likeliest token each time, whatever the settings are with which its
checkpoint generates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.target_entry import Reading
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import steps
from lxt_fx.compiler.explained import Explained
from lxt_fx.inputs.facts import Facts

_GROWS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "input_ids": lambda ids: ids,
    "attention_mask": torch.ones_like,
    "position_ids": lambda ids: torch.arange(ids.shape[1], device=ids.device)[None],
}
"""What an input is for one text without padding, by its ids [1, tokens]."""


def writes(facts: Facts, reading: Reading) -> bool:
    """Whether the model goes on with its text: a decoder without an encoder."""
    generates = getattr(facts.model, "can_generate", None)
    able = reading.model_class.endswith(("ForCausalLM", "LMHeadModel")) if generates is None else generates()
    return bool(able) and reading.predicts_next and not facts.decodes and reading.positions is None


def written_answer(model: nn.Module, inputs: Mapping[str, Any], count: int, facts: Facts, tokenizer: Any) -> list[int]:
    """What the model writes behind a text: at most `count` tokens, up to the first that ends a text, which is left out
    unless it is all that there is. `model` is the one that `facts` are of, or what was made of it.

    Raises InputError where an input beside the text has an entry for each token, of which the next one is not known.
    """
    ends, written = _ends(facts.model, tokenizer), list[int]()
    for token in steps("answer tokens", _next_tokens(model, inputs, facts, count), count):
        written.append(token)
        if token in ends:
            break
    return written[:-1] if len(written) > 1 and written[-1] in ends else written


def _ends(model: nn.Module, tokenizer: Any) -> set[int]:
    """The tokens that end a text, as the model or the tokenizer names them."""
    settings, found = getattr(model, "generation_config", None), set[int]()
    for own in (getattr(settings, "eos_token_id", None), getattr(tokenizer, "eos_token_id", None)):
        found.update([own] if isinstance(own, int) else own or ())
    return found


def _next_tokens(model: nn.Module, inputs: Mapping[str, Any], facts: Facts, count: int) -> Iterator[int]:
    """The likeliest token behind the text, `count` times, each behind those before it. What the model remembers of the
    tokens before (its cache) is used for a text alone, where the model has one."""
    cached = not isinstance(model, Explained) and all(map(facts.takes, ("use_cache", "past_key_values")))
    if cached and not set(inputs) - set(_GROWS):
        return _remembered(model, inputs["input_ids"], count)
    return _whole(model, inputs, facts.function, count)


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


def _whole(model: nn.Module, inputs: Mapping[str, Any], function: str, count: int) -> Iterator[int]:
    """Everything is computed again for each token."""
    own = dict(inputs)
    ids = own["input_ids"]
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        grows = name in _GROWS and torch.equal(value, _GROWS[name](ids))
        if not grows and (name == "position_ids" or value.shape[:2] == ids.shape):
            raise InputError(
                f"{function}: no answer can be written behind this text, since what {name} is for further tokens is not "
                "known; give the answer, or ask for none"
            )
    for _ in range(count):
        with torch.no_grad():
            output = model(**own)
        token = int(output["logits"][0, -1].argmax())
        yield token
        ids = torch.cat([ids, torch.tensor([[token]], device=ids.device)], 1)
        own |= {name: grow(ids) for name, grow in _GROWS.items() if isinstance(own.get(name), Tensor)}
