"""The relevance matrix of answers: how much every token, pixel and moment before it speaks for each answer token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.attributed import Attributed, attributed, call_at_all_leaves, leaf_inputs
from lxt_fx.attribution.embeddings import as_called
from lxt_fx.attribution.many_targets import check_chunk
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, steps
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.inputs.given import Place, part_of
from lxt_fx.inputs.texts import are_special
from lxt_fx.results.account import Account
from lxt_fx.results.answer_places import check_without
from lxt_fx.results.answer_weights import Of, Weights, of_each, weights_of
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.look import Muted, checked_mute
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading
from lxt_fx.results.recursive_answer import RecursiveAnswer
from lxt_fx.tasks.accounts import account_by
from lxt_fx.tasks.answer_numbers import AnswerAt, AnswerNumbers
from lxt_fx.tasks.answer_rows import attributed_in
from lxt_fx.tasks.answered_prompts import FUNCTION, AnsweredPrompts, answered_prompts
from lxt_fx.tasks.explained_call import called_as
from lxt_fx.tasks.followed import with_answer
from lxt_fx.tasks.made_explanation import made_explanation
from lxt_fx.tasks.own_text import DECODER
from lxt_fx.tasks.reading import opened_with
from lxt_fx.tasks.task import Context


@overload
def answer_relevance(
    model: nn.Module | Any,
    processor: Any,
    prompt: Any,
    answer: Any,
    *,
    through: None = None,
    contrast: Any = None,
    with_prompt: bool | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    folder: str | Path | None = None,
    sampling_rate: int | None = None,
    progress: bool | None = None,
) -> Explanation | Explanations: ...


@overload
def answer_relevance(
    model: nn.Module | Any,
    processor: Any,
    prompt: Any,
    answer: Any,
    *,
    through: Literal["answer"],
    of: Of | list[Of] = None,
    without: Muted | Iterable[Muted] = (),
    contrast: Any = None,
    with_prompt: bool | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    folder: str | Path | None = None,
    sampling_rate: int | None = None,
    progress: bool | None = None,
) -> RecursiveAnswer | tuple[RecursiveAnswer, ...]: ...


@lasting
def answer_relevance(
    model: nn.Module | Any,
    processor: Any,
    prompt: Any,
    answer: Any,
    *,
    through: Literal["answer"] | None = None,
    of: Of | list[Of] = None,
    without: Muted | Iterable[Muted] = (),
    contrast: Any = None,
    with_prompt: bool | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    folder: str | Path | None = None,
    sampling_rate: int | None = None,
    progress: bool | None = None,
) -> Explanation | Explanations | RecursiveAnswer | tuple[RecursiveAnswer, ...]:
    """The relevance of every token of an answer from everything before it, from one forward over prompt and answer.

    The result has one explained number for each token of the answer, its logit, and the axes "target" and "position":
    `relevance` [answer, prompt + answer] of a causal language model, whose row i explains the logit of answer token i,
    which the model gives one position earlier. Only earlier tokens can have relevance: all other entries are exactly 0.
    `prompt` is the number of tokens of the prompt. A picture is a part of its own, with a map for each answer token. Of an
    encoder-decoder the parts are the source ("text", "sound") and the "answer" itself, behind the decoder's start tokens.
    Padding is left out.

    `model` is a model of transformers that writes text, what `transform` made from one (transform once to explain many
    answers), or a pipeline; `processor` its tokenizer or processor, None where prompt and answer are ids. `prompt` is what
    `explain` takes: a text, a chat, ids, what the processor returned, {"text": ..., "images": ...}; or a list of these,
    which are explained in one forward, and then there is one explanation for each.

    `answer` is a text (tokenised as it is, without special tokens), token ids, or what `generate` returned, for a list of
    prompts one for each. What `generate` fills a batch up with behind the first end-of-text token does not count. Of a
    model without a decoder of its own `generate` returns prompt and answer, and the prompt is cut off: where `answer` has
    `sequences`, and of plain ids where all of them start with exactly the ids of their prompts (with padding before them)
    and go on. Ids of an answer that begins by repeating its prompt look the same, so say `with_prompt=False` for these, and
    True where the prompt must be there. A text is always the answer alone, and may only begin with the text of the prompt
    where `with_prompt=False` says that it repeats it.

    `contrast` explains the logit of each answer token minus that of another one: a text or an id of one token
    (`" London"`), which is subtracted everywhere, or a second answer of as many tokens, each of which is weighed against
    the token in its place, after the first answer's own beginning; for a list of prompts one for all, or a list.

    A long answer is made of its own earlier tokens first of all. With `through="answer"` their relevance goes on to what
    they were made of, by any number of hops, until it is in the prompt: a `RecursiveAnswer`, which has the single pass
    beside it (after FlashTrace, arXiv 2602.01914, with all hops in closed form). `of` says whose relevance: a text in the
    answer, a slice of its tokens, a weight for each; for a list of prompts one for all, or a list. `without="special"` lets
    nothing flow through special tokens. Of a list of prompts there is a tuple.

    `rules` and `chunk` are as in `explain`: `chunk` tokens of the answers run backward at once for all prompts. `folder`
    names one that the rows of the matrix are written to, chunk by chunk; the same call with the same folder goes on where
    one was stopped. With `account=True` each explanation says what reached the inputs and what took the rest, for the sum
    of the explained numbers; through the answer, that of the single pass. `progress` is as in `lxt_fx.progress`, for this
    call.

    Raises InputError for a prompt or answer that does not fit the model or is longer than its positions, for an empty
    answer, for `of` and `without` that do not fit the answer, for a folder of another call, and for a model that is not
    causal (an answer token got relevance from itself or a later token), NonFiniteError where relevance is not finite, and
    what `transform` raises. The model does not change.
    """
    module, processor = opened_with(model, processor, FUNCTION)
    check_chunk(chunk, FUNCTION)
    _check_through(through, of, without)
    with gradients_on():
        asked = answered_prompts(module, processor, prompt, answer, contrast, with_prompt, sampling_rate)
        batched, count = asked.given.batched, len(asked.given.examples)
        each = of_each(of, count, batched, FUNCTION)
        without = without if isinstance(without, str) or not isinstance(without, Iterable) else tuple(without)
        weights = _weights(asked, each, checked_mute(without, FUNCTION, "without"))
        run = _run(module, asked, rules, chunk, folder)
        matrices, recursive = [], []
        for index in steps("explanations", range(count), count):
            own = _account(run, asked, index, weights[index] if through else None) if account else None
            matrix = _explanation(run, asked, index, None if through else own)
            if through:
                one = RecursiveAnswer.of(matrix, each[index], without=without, where=FUNCTION)
                recursive.append(replace(one, single=replace(one.single, account=own)))
            matrices.append(matrix)
    if through:
        return tuple(recursive) if batched else recursive[0]
    return Explanations(matrices) if batched else matrices[0]


def _check_through(through: object, of: object, without: object) -> None:
    if through not in (None, "answer"):
        raise InputError(f'{FUNCTION}: through must be "answer", or None for the matrix of the answer, got {through!r}')
    if through is None and (of is not None or without != ()):
        raise InputError(f'{FUNCTION}: of and without say what flows through the answer; give through="answer" too')


def _weights(asked: AnsweredPrompts, each: Sequence[Of], without: Sequence[str | int]) -> list[Weights]:
    """The weights on each answer, known before any work. Raises InputError for tokens that an answer or its text does not
    have, and for special tokens where no tokenizer says which these are."""
    if "special" in without and asked.numbers.context.tokenizer is NO_TOKENIZER:
        raise InputError(
            f"{FUNCTION}: without='special' needs the tokenizer, which says what is special; give it, or positions"
        )
    found = []
    for at, of in zip(asked.numbers.answers, each, strict=True):
        check_without(without, len(at.shown) - at.hidden, FUNCTION)
        found.append(weights_of(of, at.shown[-len(at.ids) :], FUNCTION))
    return found


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """The call of prompts and answers with the relevance of its inputs. `made_of` names the input that each leaf is made
    of."""

    explained: Explained
    inputs: Mapping[str, Any]
    found: Attributed
    made_of: Mapping[str, str]


def _run(
    module: nn.Module, asked: AnsweredPrompts, rules: Rules | None, chunk: int | None, folder: str | Path | None
) -> _Run:
    numbers = asked.numbers
    inputs = as_called(module, called_as(module, asked.given.inputs))
    explained = as_explained(module, (), inputs, FUNCTION, rules)
    reading = replace(numbers.context.reading, positions=explained.record.positions)
    numbers.context = replace(numbers.context, reading=reading)
    leaves = call_at_all_leaves(explained, inputs, FUNCTION)
    if folder is None:
        found = attributed(leaves, numbers, FUNCTION, chunk=chunk, units=False)
    else:
        found = attributed_in(folder, leaves, numbers, FUNCTION, chunk=chunk)
    numbers.check_causal(found.relevance)
    return _Run(explained, inputs, found, {leaf: name for leaf, (name, _) in leaf_inputs(leaves).items()})


def _explanation(run: _Run, asked: AnsweredPrompts, index: int, account: Account | None) -> Explanation:
    at = asked.numbers.answers[index]

    def part(place: Place, relevance: Tensor) -> Part:
        own = replace(part_of(place, relevance[: len(at.ids)]), units=None)
        return _with_last(own, at, asked.numbers.context) if place.leaf.startswith(DECODER) else own

    return made_explanation(
        run.explained.record, asked.numbers.context, asked.given.examples[index], asked.numbers.numbers[index],
        run.found.relevance, part, run.found.seconds, account,
    )  # fmt: skip


def _with_last(part: Part, at: AnswerAt, context: Context) -> Part:
    """The decoder's text with the last token of the answer behind it, which it is not given: no token can have relevance
    from it."""
    assert isinstance(part.reading, TextReading), "a decoder reads text"
    values = torch.cat([part.values, part.values.new_zeros(len(part.values), 1)], 1)
    special = are_special(context.tokenizer, at.ids[-1:])
    reading = with_answer(part.reading, at.shown[-1:], at.ids[-1:], special)
    return replace(part, values=values, reading=reading)


def _account(run: _Run, asked: AnsweredPrompts, index: int, weights: Weights | None) -> Account:
    """The account of the sum of one example's numbers, with these weights."""
    again = AnswerNumbers(asked.numbers.answers, asked.numbers.context)

    def number(output: Any) -> Tensor:
        again.totals(output)
        values = torch.stack([each.value for each in again.numbers[index]])
        return values.sum() if weights is None else (values * weights.each.to(values)).sum()

    return account_by(run.explained, run.inputs, number, asked.given.examples[index], run.made_of)
