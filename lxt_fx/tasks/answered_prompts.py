"""Prompts with their answers, as the inputs of one call and the numbers that are explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.decoders import decoder_rows
from lxt_fx.inputs.facts import Facts, facts_of
from lxt_fx.inputs.given import Example, Given
from lxt_fx.inputs.text_batches import with_decoder
from lxt_fx.inputs.tools import Tools, tools_of
from lxt_fx.results.readings import TextReading
from lxt_fx.tasks.answer_numbers import AnswerNumbers, answer_at
from lxt_fx.tasks.explained_call import flat_inputs
from lxt_fx.tasks.followed import followed
from lxt_fx.tasks.given_answers import Answers, answers_of, by_token, contrasts_of, fillers_of
from lxt_fx.tasks.own_text import DECODER, OwnText, own_text
from lxt_fx.tasks.reading import read
from lxt_fx.tasks.rows import are_apart, row_of
from lxt_fx.tasks.task import Context

FUNCTION = "answer_relevance"


@dataclass(frozen=True, slots=True, eq=False)
class AnsweredPrompts:
    """The inputs of the call that holds prompts and answers, and the numbers that are explained."""

    given: Given
    numbers: AnswerNumbers


def answered_prompts(
    module: nn.Module, processor: Any, prompt: Any, answer: Any, contrast: Any, with_prompt: bool | None, rate: int | None
) -> AnsweredPrompts:
    """What `answer_relevance` was given, as the inputs of one call. Raises InputError for what does not fit the model."""
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
    if not facts.decodes and with_prompt is None:
        answers.check_texts([_text_of(example, index, prompt) for index, example in enumerate(given.examples)])
    answering = _decoded if facts.decodes else _continued
    given, found, others = answering(facts, tools, given, context, answers, contrast, with_prompt)
    context = replace(context, inputs=flat_inputs(given.inputs))
    at = [
        answer_at(index, example, ids, None if others is None else others[index], context)
        for index, (example, ids) in enumerate(zip(given.examples, found, strict=True))
    ]
    return AnsweredPrompts(given, AnswerNumbers(at, context))


Answered = tuple[Given, list[list[int]], list[tuple[int, ...]] | None]
"""The inputs with the answers, the tokens of the answers, and those that are subtracted, if there are any."""


# A model that goes on with the prompt


def _continued(
    facts: Facts, tools: Tools, given: Given, context: Context, answers: Answers, contrast: Any, with_prompt: bool | None
) -> Answered:
    """The answers behind their prompts."""
    texts = _prompts(given, context)
    found, others = _behind_prompts(facts, tools, answers, given, texts, with_prompt).ids, None
    if contrast is not None:
        raw = contrasts_of(contrast, found, given.batched, FUNCTION)
        pairs = zip(raw.each, found, strict=True)
        fits = not raw.generated and all(isinstance(each, str) or len(each) in (1, len(ids)) for each, ids in pairs)
        others = by_token(_behind_prompts(facts, tools, raw, given, texts, False if fits else None), found)
    _check_length(facts, "prompt", [text.text.count for text in texts], found, facts.longest())
    if len({len(ids) for ids in found}) > 1 and not facts.takes("attention_mask"):
        raise InputError(
            f"{FUNCTION}: answers of different lengths are padded, and {facts.model_class} takes no attention_mask that "
            "says where; explain them one at a time"
        )
    return followed(given, found, texts, context), found, others


def _prompts(given: Given, context: Context) -> list[OwnText]:
    """The prompts without padding."""
    found = []
    for index, example in enumerate(given.examples):
        text = own_text(context.inputs, context.tokenizer, row_of(example, index, "input_ids"))
        if text is None or not text.text.ids_known:
            raise InputError(f"{FUNCTION}: the answer is appended to the prompt, which must be given as text or input_ids")
        found.append(text)
    return found


def _text_of(example: Example, index: int, prompt: Any) -> str | None:
    """The text of a prompt as a person gave it, if they gave a text or a chat."""
    own = prompt[index] if isinstance(prompt, list) and index < len(prompt) else prompt
    if isinstance(own, str):
        return own
    readings = (getattr(place, "reading", None) for place in example.places if place.leaf == "input_ids")
    return next((reading.text for reading in readings if isinstance(reading, TextReading)), None)


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


def _check_length(
    facts: Facts, name: str, before: Sequence[int], answers: Sequence[Sequence[int]], longest: int | None
) -> None:
    for count, ids in zip(before, answers, strict=True):
        if longest is not None and count + len(ids) > longest:
            raise InputError(
                f"{FUNCTION}: the {name} has {count} tokens, behind it stand {len(ids)} of the answer, and "
                f"{facts.model_class} has positions for {longest}; shorten one of them"
            )


# A model with a decoder of its own


def _decoded(
    facts: Facts, tools: Tools, given: Given, context: Context, answers: Answers, contrast: Any, with_prompt: bool | None
) -> Answered:
    """The answers given to the decoder."""
    if with_prompt:
        raise InputError(
            f"{FUNCTION}: {facts.model_class} has a decoder of its own, whose output never holds the prompt; leave "
            "with_prompt out"
        )
    pads, ends = fillers_of(facts.model, tools.tokenizer)
    ended = answers.ended(pads, ends).checked(facts.vocabulary(), facts.model_class, frozenset())
    rows = decoder_rows(facts, tools.tokenizer, list(ended.each), len(given.examples))
    found = [list(row.answer) for row in rows]
    replace(answers, each=tuple(found)).checked(facts.vocabulary(), facts.model_class, frozenset())
    starts = [len(row.ids) + 1 - len(row.answer) for row in rows]
    _check_length(facts, "decoder's start", starts, [ids[:-1] for ids in found], _decoder_positions(facts))
    others = None
    if contrast is not None:
        others = by_token(_plain_contrasts(facts, tools, given, contrast, found), found)
    called = {name: value for name, value in given.inputs.items() if not name.startswith(DECODER)}
    places = [[place for place in example.places if not place.leaf.startswith(DECODER)] for example in given.examples]
    called, ids = with_decoder(facts, tools, called, places, rows)
    examples = tuple(Example(tuple(own), each) for own, each in zip(places, ids, strict=True))
    return Given(called, examples, given.batched), found, others


def _decoder_positions(facts: Facts) -> int | None:
    names = ("max_target_positions", "max_decoder_position_embeddings", "max_position_embeddings")
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
