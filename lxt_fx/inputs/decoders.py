"""The decoder's own text of an encoder-decoder: the start token, or a given answer token by token (teacher forcing)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lxt_fx.base.errors import InputError
from lxt_fx.inputs.facts import Facts
from lxt_fx.inputs.text_rows import Row
from lxt_fx.inputs.texts import special_ids


def decoder_rows(facts: Facts, tokenizer: Any, answer: Any, count: int) -> list[Row]:
    """The decoder's input of each of `count` examples: its start tokens, then the answer without its last token. The last
    `len(row.answer)` tokens of a row predict the tokens of the answer, one each.

    `answer` is a text or what `generate` returned (its start token and its padding do not count), or a list of as many as
    there are examples; None for the start tokens alone. Raises InputError for an empty answer and for another number.
    """
    start = start_ids(facts, tokenizer)
    if answer is None:
        return [Row({"input_ids": list(start)}) for _ in range(count)]
    answers = _listed(answer)
    if len(answers) != count:
        raise InputError(
            f"{facts.function}: there are {len(answers)} answers and {count} inputs; give one answer for each input"
        )
    return [_row(facts, tokenizer, start, one) for one in answers]


def start_ids(facts: Facts, tokenizer: Any) -> list[int]:
    """The tokens that the decoder starts with. Some tokenizers name them all (Whisper: language and task)."""
    generation = getattr(facts.model, "generation_config", None)
    names = ("decoder_start_token_id", "bos_token_id")
    found = (getattr(config, name, None) for name in names for config in (facts.config, facts.text_config, generation))
    first = next((token for token in found if isinstance(token, int)), None)
    if first is None:
        raise InputError(
            f"{facts.function}: {facts.model_class} has a decoder, and its config names no decoder_start_token_id; set it, "
            "or give a dict with decoder_input_ids"
        )
    prefix = list(getattr(tokenizer, "prefix_tokens", None) or [])
    return prefix if prefix and prefix[0] == first else [first]


def _listed(answer: Any) -> list[Any]:
    if isinstance(answer, Tensor):
        return [answer] if answer.dim() < 2 else list(answer)
    if isinstance(answer, str) or hasattr(answer, "ndim"):
        return [answer] if isinstance(answer, str) else _listed(torch.as_tensor(answer))
    listed = list(answer)
    return [listed] if listed and isinstance(listed[0], int) else listed


def _row(facts: Facts, tokenizer: Any, start: Sequence[int], answer: Any) -> Row:
    if isinstance(answer, str):
        ids = _text_ids(facts, tokenizer, answer)
        ends = (getattr(tokenizer, "eos_token_id", None),)
        if len(ids) > 1 and ids[-1] in ends:
            ids = ids[:-1]
    else:
        ids = [int(token) for token in torch.as_tensor(answer).flatten().tolist()]
    if ids[: len(start)] == list(start):
        ids = ids[len(start) :]
    elif ids[:1] == list(start[:1]):  # the model was told another language or task than the tokenizer names
        given = _given_start(tokenizer, ids)
        start, ids = ids[:given], ids[given:]
    if not isinstance(answer, str):
        ids = _without_padding(facts, ids)
    if not ids:
        raise InputError(f"{facts.function}: the answer {answer!r} has no tokens; give one that has some, or None")
    return Row({"input_ids": [*start, *ids[:-1]]}, answer=tuple(ids))


def _given_start(tokenizer: Any, ids: list[int]) -> int:
    """How many special tokens stand at the start, that of the end of the text not counted."""
    special = special_ids(tokenizer) - {getattr(tokenizer, "eos_token_id", None)}
    return next((at for at, token in enumerate(ids) if at and token not in special), len(ids))


def _text_ids(facts: Facts, tokenizer: Any, answer: str) -> list[int]:
    if not answer.strip():
        raise InputError(f"{facts.function}: the answer {answer!r} is empty; give one that has words, or None")
    if not callable(tokenizer):
        raise InputError(f"{facts.function}: an answer as a text needs a tokenizer; give one, or the answer's token ids")
    return [int(token) for token in tokenizer(text_target=answer)["input_ids"]]


def _without_padding(facts: Facts, ids: list[int]) -> list[int]:
    pad = getattr(facts.text_config, "pad_token_id", None)
    pad = getattr(facts.config, "pad_token_id", None) if pad is None else pad
    while len(ids) > 1 and ids[-1] == pad and ids[-2] in (pad, getattr(facts.config, "eos_token_id", None)):
        ids = ids[:-1]
    return ids
