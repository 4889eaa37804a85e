"""The relevance matrix of a generated answer: how much every earlier token speaks for each answer token, from one
forward."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.made_results import of_answer, origin_of
from lxt_fx.attribution.many_targets import values_and_relevance
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import Target, Wanted
from lxt_fx.attribution.text_input import NO_TOKENIZER, Text, read_text
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.options import Rules
from lxt_fx.passes.capture.opened_model import opened
from lxt_fx.results.explanation import Explanation

Answer = str | SupportsIndex | Sequence[SupportsIndex]
"""A text, or token ids in a list, a tensor or an array."""


def answer_relevance(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    prompt: Text,
    answer: Answer,
    *,
    rules: Rules | None = None,
    chunk: int | None = None,
) -> Explanation:
    """The relevance of every token of an answer from every token before it, from one forward over prompt and answer.

    The result has one explained number for each token of the answer (`logits`), and `relevance` [answer, prompt + answer]:
    its row i explains the logit of answer token i, which the model gives one position earlier. Only earlier tokens can have
    relevance: all other entries are exactly 0. `prompt` is the number of tokens of the prompt.

    `model` is a causal language model of transformers, or what `transform` made from one; transform once to explain many
    answers. `prompt` is a string, its token ids, or what the tokenizer returns, with its mask. `answer` is a string, which
    is tokenised without special tokens, or the ids that `generate` gave after the prompt; a single id such as
    `logits.argmax()` is accepted too. If both are ids, the tokenizer may be None, and tokens are shown as numbers. `rules`
    is as in `explain`, `chunk` as in `relevance_of`.

    Raises InputError for an empty answer and for a model that is not causal (an answer token got relevance from itself or a
    later token), and what `transform` and `relevance_of` raise.
    """
    model = opened(model, "answer_relevance")
    start = time.perf_counter()
    names = tokenizer or NO_TOKENIZER
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    asked = read_text(names, prompt, device, "answer_relevance")
    whole = asked.followed_by(_answer_ids(names, answer, device)[0].tolist(), "answer_relevance")
    ids, count, total = whole.ids, asked.count, whole.count
    inputs = {"input_ids": ids, **whole.extras}
    with gradients_on():
        explained = as_explained(model, (), inputs, "answer_relevance", rules)
    # the logit of a token is at the position before it
    tokens = [Wanted(int(ids[0, position]), position=position - 1) for position in range(count, total)]
    logits, relevance = values_and_relevance(explained, inputs, tokens, chunk, "answer_relevance")
    matrix = relevance[:, 0].cpu()
    _check_causal(matrix, count, explained.record.model_class)
    origin = origin_of(explained.record, time.perf_counter() - start)
    return of_answer(whole, matrix, logits[:, 0].tolist(), origin)


def _answer_ids(tokenizer: Tokenizer, answer: Answer, device: torch.device) -> Tensor:
    """[1, answer]."""
    if isinstance(answer, (Target, tuple)) or callable(answer):
        raise InputError(
            f"answer_relevance: the answer is a text or token ids, each of which is explained, got {answer!r}; "
            "lxt_fx.relevance_of takes targets of other kinds"
        )
    listed = tokenizer.encode(answer, add_special_tokens=False) if isinstance(answer, str) else answer
    ids = torch.as_tensor(listed).to(device)
    if ids.dtype == torch.bool or ids.is_floating_point() and ids.numel():
        raise InputError(f"answer_relevance: the answer must be a string or token ids, got values of {ids.dtype}")
    ids = ids.reshape(1, -1) if ids.dim() < 2 else ids
    if ids.dim() != 2 or len(ids) != 1 or ids.shape[1] == 0:
        raise InputError(
            f"answer_relevance: one answer of at least one token is explained, got {list(ids.shape)} token ids"
        )
    return ids.long()


def _check_causal(matrix: Tensor, prompt: int, model_class: str) -> None:
    """Raises InputError where a token got relevance from itself or a later one."""
    columns = torch.arange(matrix.shape[1])
    later = columns >= torch.arange(prompt, matrix.shape[1])[:, None]
    if bool(matrix[later].any()):
        raise InputError(
            f"answer_relevance: {model_class} looks ahead: an answer token got relevance from itself or a later token, so "
            "its logit one position earlier already knew it; this needs a causal language model"
        )
