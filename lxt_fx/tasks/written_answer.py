"""The answer that a model writes behind its inputs: the likeliest token each time, whatever the settings are with which its
checkpoint generates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import steps
from lxt_fx.compiler.explained import Explained
from lxt_fx.inputs.facts import Facts
from lxt_fx.tasks.explained_call import flat_inputs
from lxt_fx.tasks.followed import followed_inputs, not_followed
from lxt_fx.tasks.own_text import OwnText, own_text
from lxt_fx.tasks.task import Context


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
    reading, tokens = Reading(facts.function, facts.model_class), tokenizer or NO_TOKENIZER
    context = Context(reading, facts.config, flat_inputs(inputs), tokens)
    text = own_text(context.inputs, tokens, 0)
    why = not_followed(inputs) if text is not None and text.text.ids_known else "its ids are not known"
    if text is None or why:
        raise InputError(
            f"{facts.function}: no answer can be written behind this text, since {why}; explain its next token, which "
            "needs no answer (lxt-fx explain, or 0 answer tokens on the page)"
        )
    ends, written = _ends(facts.model, tokenizer), list[int]()
    for token in steps("answer tokens", _next_tokens(model, inputs, text, context, facts, count), count):
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


def _next_tokens(
    model: nn.Module, inputs: Mapping[str, Any], text: OwnText, context: Context, facts: Facts, count: int
) -> Iterator[int]:
    """The likeliest token behind the text, `count` times, each behind those before it. What the model remembers of the
    tokens before (its cache) is used for a text alone, where the model has one."""
    cached = not isinstance(model, Explained) and all(map(facts.takes, ("use_cache", "past_key_values")))
    if cached and _is_alone(context.inputs):
        return _remembered(model, inputs["input_ids"], count)
    return _whole(model, inputs, text, context, count)


def _is_alone(inputs: Mapping[str, Any]) -> bool:
    """Whether these are the ids of a text without padding, and a mask that says so at most."""
    mask = inputs.get("attention_mask")
    return set(inputs) <= {"input_ids", "attention_mask"} and (mask is None or bool((mask == 1).all()))


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


def _whole(
    model: nn.Module, inputs: Mapping[str, Any], text: OwnText, context: Context, count: int
) -> Iterator[int]:
    """Everything is computed again for each token."""
    own, written = dict(inputs), list[int]()
    for _ in range(count):
        with torch.no_grad():
            output = model(**own)
        last = text.columns[-1] + len(written) - own["input_ids"].shape[1]
        token = int(output["logits"][0, last].argmax())
        yield token
        written.append(token)
        own = followed_inputs(inputs, [written], [text], context)
