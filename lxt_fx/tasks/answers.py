"""The relevance matrix of answers: how much every token, pixel and moment before it speaks for each answer token."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.attributed import Attributed, attributed, call_at_all_leaves, leaf_inputs
from lxt_fx.attribution.embeddings import as_called
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.inputs.decoders import decoder_rows
from lxt_fx.inputs.facts import Facts, facts_of
from lxt_fx.inputs.given import Example, Given
from lxt_fx.inputs.text_batches import with_decoder
from lxt_fx.inputs.tools import Tools, tools_of
from lxt_fx.results.account import Account
from lxt_fx.results.explanation import ExplainedNumber, Explanation, Origin
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.part import Part
from lxt_fx.results.readings import TextReading
from lxt_fx.tasks.accounts import account_by
from lxt_fx.tasks.answer_numbers import AnswerAt, AnswerNumbers, answer_at
from lxt_fx.tasks.explain import transformers_version
from lxt_fx.tasks.explained_call import called_as, flat_inputs
from lxt_fx.tasks.followed import followed, with_answer
from lxt_fx.tasks.given_answers import Answers, answers_of, by_token, contrasts_of, fillers_of
from lxt_fx.tasks.own_text import DECODER, OwnText, own_text
from lxt_fx.tasks.reading import opened_with, read
from lxt_fx.tasks.rows import are_apart, of_input, row_of
from lxt_fx.tasks.task import Context
from lxt_fx.version import __version__

FUNCTION = "answer_relevance"


def answer_relevance(
    model: nn.Module | Any,
    processor: Any,
    prompt: Any,
    answer: Any,
    *,
    contrast: Any = None,
    with_prompt: bool | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    sampling_rate: int | None = None,
) -> Explanation | Explanations:
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
    True where the prompt must be there. A text is always the answer alone.

    `contrast` explains the logit of each answer token minus that of another one: a text or an id of one token
    (`" London"`), which is subtracted everywhere, or a second answer of as many tokens, each of which is weighed against
    the token in its place, after the first answer's own beginning; for a list of prompts one for all, or a list.

    `rules` and `chunk` are as in `explain`: `chunk` tokens of the answers run backward at once for all prompts. With
    `account=True` each explanation says what reached the inputs and what took the rest, for the sum of the explained
    numbers.

    Raises InputError for a prompt or answer that does not fit the model or is longer than its positions, for an empty
    answer, and for a model that is not causal (an answer token got relevance from itself or a later token), NonFiniteError
    where relevance is not finite, and what `transform` raises. The model does not change.
    """
    module, processor = opened_with(model, processor, FUNCTION)
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
        raise InputError(f"{FUNCTION}: chunk must be a whole number of at least 1, or None, got {chunk!r}")
    with gradients_on():
        asked = _asked(module, processor, prompt, answer, contrast, with_prompt, sampling_rate)
        given, numbers = asked.given, asked.numbers
        inputs = as_called(module, called_as(module, given.inputs))
        explained = as_explained(module, (), inputs, FUNCTION, rules)
        reading = replace(numbers.context.reading, positions=explained.record.positions)
        numbers.context = replace(numbers.context, reading=reading)
        leaves = call_at_all_leaves(explained, inputs, FUNCTION)
        found = attributed(leaves, numbers, FUNCTION, chunk=chunk, units=False)
        numbers.check_causal(found.relevance)
        made_of = {leaf: name for leaf, (name, _) in leaf_inputs(leaves).items()}
        explanations = []
        for index in range(len(given.examples)):
            own = _account(explained, inputs, asked, made_of, index) if account else None
            explanations.append(_explanation(explained, found, asked, index, own))
    return Explanations(explanations) if given.batched else explanations[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Asked:
    """The inputs of the call that holds prompts and answers, and the numbers that are explained."""

    given: Given
    numbers: AnswerNumbers


def _asked(
    module: nn.Module, processor: Any, prompt: Any, answer: Any, contrast: Any, with_prompt: bool | None, rate: int | None
) -> _Asked:
    facts, tools = facts_of(module, FUNCTION), tools_of(processor, prompt, FUNCTION)
    reading = Reading.of(FUNCTION, module, None)
    if not (facts.reads_text or facts.decodes) or not reading.predicts_next:
        raise InputError(
            f"{FUNCTION}: {facts.model_class} writes no text, so it has no answers; lxt_fx.explain explains what it says"
        )
    if facts.decodes and isinstance(prompt, Mapping) and any(str(name).startswith(f"{DECODER}in") for name in prompt):
        raise InputError(f"{FUNCTION}: the answer is given, and the decoder's own inputs too; leave out the latter")
    given, tokenizer = read(module, processor, prompt, FUNCTION, answer=None, sampling_rate=rate)
    if not are_apart(given.examples):
        raise InputError(f"{FUNCTION}: the prompts share an input, so they are no batch; explain them one at a time")
    context = Context(reading, facts.config, flat_inputs(given.inputs), tokenizer or NO_TOKENIZER)
    answers = answers_of(answer, len(given.examples), given.batched, FUNCTION)
    others = None
    if facts.decodes:
        if with_prompt:
            raise InputError(
                f"{FUNCTION}: {facts.model_class} has a decoder of its own, whose output never holds the prompt; leave "
                "with_prompt out"
            )
        given, found = _decoded(facts, tools, given, answers)
        if contrast is not None:
            others = by_token(_plain_contrasts(facts, tools, given, contrast, found), found)
    else:
        texts = _prompts(given, context)
        found = _behind_prompts(facts, tools, answers, given, texts, with_prompt).ids
        if contrast is not None:
            raw = contrasts_of(contrast, found, given.batched, FUNCTION)
            others = by_token(_behind_prompts(facts, tools, raw, given, texts, with_prompt), found)
        _check_length(facts, [text.text.count for text in texts], found, facts.longest())
        given = followed(given, found, texts, context)
    context = replace(context, inputs=flat_inputs(given.inputs))
    at = [
        answer_at(index, example, ids, None if others is None else others[index], context)
        for index, (example, ids) in enumerate(zip(given.examples, found, strict=True))
    ]
    return _Asked(given, AnswerNumbers(at, context))


# A model that goes on with the prompt


def _prompts(given: Given, context: Context) -> list[OwnText]:
    """The prompts without padding."""
    found = []
    for index, example in enumerate(given.examples):
        text = own_text(context.inputs, context.tokenizer, row_of(example, index, "input_ids"))
        if text is None or not text.text.ids_known:
            raise InputError(f"{FUNCTION}: the answer is appended to the prompt, which must be given as text or input_ids")
        found.append(text)
    return found


def _behind_prompts(
    facts: Facts, tools: Tools, answers: Answers, given: Given, texts: Sequence[OwnText], with_prompt: bool | None
) -> Answers:
    """The tokens of the answers, without prompts and filling."""
    pads, ends = fillers_of(facts.model, tools.tokenizer)
    whole = [[int(token) for token in flat_inputs(given.inputs)["input_ids"][row]] for row in range(len(texts))]
    own = [text.text.id_list() for text in texts]
    cut = answers.behind(whole, own, pads, with_prompt).ended(pads, ends).encoded(_encoder(tools.tokenizer))
    return cut.checked(facts.vocabulary(), facts.model_class, facts.placeholders())


def _encoder(tokenizer: Any) -> Callable[[str], Sequence[int]] | None:
    if tokenizer is None:
        return None

    def encode(text: str) -> Sequence[int]:
        found: Sequence[int] = tokenizer.encode(text, add_special_tokens=False)
        return found

    return encode


def _check_length(facts: Facts, before: Sequence[int], answers: Sequence[Sequence[int]], longest: int | None) -> None:
    for count, ids in zip(before, answers, strict=True):
        if longest is not None and count + len(ids) > longest:
            raise InputError(
                f"{FUNCTION}: the prompt has {count} tokens and the answer {len(ids)}, but {facts.model_class} has "
                f"positions for {longest}; shorten one of them"
            )


# A model with a decoder of its own


def _decoded(facts: Facts, tools: Tools, given: Given, answers: Answers) -> tuple[Given, list[list[int]]]:
    """The inputs with the answers given to the decoder, and the tokens of the answers."""
    pads, ends = fillers_of(facts.model, tools.tokenizer)
    ended = answers.ended(pads, ends).checked(facts.vocabulary(), facts.model_class, frozenset())
    rows = decoder_rows(facts, tools.tokenizer, list(ended.each), len(given.examples))
    found = [list(row.answer) for row in rows]
    Answers(tuple(found), False, "answer", FUNCTION).checked(facts.vocabulary(), facts.model_class, frozenset())
    starts = [len(row.ids) + 1 - len(row.answer) for row in rows]
    _check_length(facts, starts, [ids[:-1] for ids in found], _decoder_positions(facts))
    called = {name: value for name, value in given.inputs.items() if not name.startswith(DECODER)}
    places = [[place for place in example.places if not place.leaf.startswith(DECODER)] for example in given.examples]
    called, ids = with_decoder(facts, tools, called, places, rows)
    examples = tuple(Example(tuple(own), each) for own, each in zip(places, ids, strict=True))
    return Given(called, examples, given.batched), found


def _decoder_positions(facts: Facts) -> int | None:
    names = ("max_target_positions", "max_position_embeddings")
    found = (getattr(config, name, None) for name in names for config in (facts.config, facts.text_config))
    return next((most for most in found if isinstance(most, int) and most > 0), None)


def _plain_contrasts(
    facts: Facts, tools: Tools, given: Given, contrast: Any, answers: Sequence[Sequence[int]]
) -> Answers:
    """The contrasts by token: a text as the decoder's tokenizer reads it, ids without the decoder's start."""
    pads, ends = fillers_of(facts.model, tools.tokenizer)
    raw = contrasts_of(contrast, answers, given.batched, FUNCTION).ended(pads, ends)
    found = [
        list(decoder_rows(facts, tools.tokenizer, [each], 1)[0].answer) if isinstance(each, str) or len(each) > 1 else each
        for each in raw.each
    ]
    return replace(raw, each=tuple(found)).checked(facts.vocabulary(), facts.model_class, frozenset())


# What is returned


def _explanation(
    explained: Explained, found: Attributed, asked: _Asked, index: int, account: Account | None
) -> Explanation:
    example, at = asked.given.examples[index], asked.numbers.answers[index]
    parts = []
    for place in example.places:
        name = of_input(found.relevance, place.leaf)
        if name is not None:
            part = replace(place.part(found.relevance[name][: len(at.ids), place.within]), units=None)
            parts.append(_with_last(part, at) if place.leaf.startswith(DECODER) else part)
    if not parts:
        raise InputError(
            f"{FUNCTION}: no relevance reaches {', '.join(place.name for place in example.places)}; "
            f"{explained.record.model_class} carries it from {', '.join(found.relevance)}"
        )
    numbers = tuple(
        ExplainedNumber(each.said, float(each.value.detach()), each.label) for each in asked.numbers.numbers[index]
    )
    record, context = explained.record, asked.numbers.context
    checkpoint = str(getattr(context.config, "_name_or_path", "") or "")
    versions = {"lxt_fx": __version__, "torch": torch.__version__, **transformers_version()}
    origin = Origin(record.table_name, record.model_class, checkpoint, versions, found.seconds)
    return Explanation(tuple(parts), numbers, origin, account)


def _with_last(part: Part, at: AnswerAt) -> Part:
    """The decoder's text with the last token of the answer behind it, which it is not given: no token can have relevance
    from it."""
    assert isinstance(part.reading, TextReading), "a decoder reads text"
    values = torch.cat([part.values, part.values.new_zeros(len(part.values), 1)], 1)
    reading = with_answer(part.reading, at.shown[-1:], at.ids[-1:])
    return replace(part, values=values, reading=reading)


def _account(
    explained: Explained, inputs: Mapping[str, Any], asked: _Asked, made_of: Mapping[str, str], index: int
) -> Account:
    """The account of the sum of one example's numbers."""
    again = AnswerNumbers(asked.numbers.answers, asked.numbers.context)

    def number(output: Any) -> Tensor:
        again.totals(output)
        return torch.stack([each.value for each in again.numbers[index]]).sum()

    return account_by(explained, inputs, number, asked.given.examples[index], made_of)
