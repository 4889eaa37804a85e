"""One call of a model that is to be explained: its task, the numbers that are asked for, and the module that answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.embeddings import as_called
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetFunction
from lxt_fx.attribution.target_entry import Reading
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.as_it_was import answer_of
from lxt_fx.compiler.call_capture import capture_for_call
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Options, Rules, table_named
from lxt_fx.inputs.facts import facts_of
from lxt_fx.inputs.given import Given
from lxt_fx.passes.capture.example import FEATURES
from lxt_fx.passes.capture.signature import by_position, named_signature
from lxt_fx.passes.positions.asked_positions import answers_by_token
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.choose_task import choose_task
from lxt_fx.tasks.decoding import Decoding
from lxt_fx.tasks.forced import Answered, ForcedNumbers, answered, asks_for_several
from lxt_fx.tasks.output_fields import dims_of, output_dims
from lxt_fx.tasks.rows import are_apart
from lxt_fx.tasks.task import Context, Task
from lxt_fx.tasks.task_numbers import TaskNumbers
from lxt_fx.tasks.token_logits import EntryNumbers, TokenLogits

Numbers = TaskNumbers | EntryNumbers | ForcedNumbers

MOST_POSITIONS = 8
"""A model is transformed for logits at so many positions at most; for more, all are computed."""


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedCall:
    """What answers, the inputs that it is called with and the numbers that are explained; `apart` says whether each example
    depends on its own entries of the batch only."""

    explained: Explained
    given: Given
    inputs: Mapping[str, Any]
    numbers: Numbers
    context: Context
    apart: bool


def explained_call(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    given: Given,
    asked: Sequence[Sequence[Asked | TargetFunction]],
    labels: Sequence[str] | None,
    rules: Rules | None,
    function: str,
) -> ExplainedCall:
    """The call that answers these targets. A model is transformed on the inputs, with logits at the positions that the
    targets read; an explained module stays as it is, or gets these rules.

    Raises InputError for targets that do not fit the model, and what `transform` raises.
    """
    reading, config = Reading.of(function, model, labels), getattr(model, "config", None)
    context = Context(reading, config, flat_inputs(given.inputs), tokenizer or NO_TOKENIZER)
    answer = _answer(model, given, asked, context)
    given = given if answer is None else answer.given
    context = replace(context, inputs=flat_inputs(given.inputs))
    inputs = as_called(model, called_as(model, given.inputs))
    if isinstance(model, Explained):
        explained = as_explained(model, (), inputs, function, rules)
        numbers = _numbers(_task(explained, asked, given, context), answer, asked, given, context)
    else:
        table = table_named("attnlrp" if rules is None else rules)
        capture = capture_for_call(model, *by_position(model, inputs))
        task = _task(capture.gm, asked, given, context)
        numbers = _numbers(task, answer, asked, given, context)
        explained = capture.module(table, Options(positions=_positions(numbers, capture.gm)))
    reading = replace(reading, positions=explained.record.positions)
    context = replace(context, reading=reading, plain_gradient=explained.record.table_name == "gradient")
    numbers.context = context
    return ExplainedCall(explained, given, inputs, numbers, context, are_apart(given.examples))


def _answer(
    model: nn.Module, given: Given, asked: Sequence[Sequence[Asked | TargetFunction]], context: Context
) -> Answered | None:
    """The inputs with a name of several tokens appended, for models that predict the next token; None if there is none. The
    model is called once to see what it returns, if a name is several tokens."""
    if not context.reading.predicts_next or not asks_for_several(asked, context) or _in_the_text(asked, given, context):
        return None

    def run(inputs: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return answer_of(model, lambda: model(**as_called(model, called_as(model, inputs))))

    task = choose_task(dims_of(run(given.inputs)), context, pairs=_are_pairs(given))
    if task.name not in ("causal", "encoder-decoder"):
        return None
    return answered(asked, given, context, run, facts_of(model, context.function).longest())


def _in_the_text(asked: Sequence[Sequence[Any]], given: Given, context: Context) -> bool:
    """Whether all names stand in the text that a decoder has written already."""
    decoding = Decoding("encoder-decoder")
    if not context.has("decoder_input_ids"):
        return False
    return all(
        isinstance(ask, Asked) and decoding.written(ask, index, example, context) is not None
        for index, (targets, example) in enumerate(zip(asked, given.examples, strict=True))
        for ask in targets
    )


def _task(gm: Any, asked: Sequence[Sequence[Any]], given: Given, context: Context) -> Task | None:
    """The task, if a target needs one."""
    if not any(isinstance(ask, Asked) for targets in asked for ask in targets):
        return None
    return choose_task(output_dims(gm), context, pairs=_are_pairs(given))


def _are_pairs(given: Given) -> bool:
    """Whether each example is two texts, each in an entry of the batch."""
    return all(len(one.places) == 2 and len({place.leaf for place in one.places}) == 1 for one in given.examples)


def _numbers(
    task: Task | None, answer: Answered | None, asked: Sequence[Sequence[Any]], given: Given, context: Context
) -> Numbers:
    if answer is not None:
        return ForcedNumbers(answer, context)
    plain = all(isinstance(ask, Asked) for targets in asked for ask in targets)
    if isinstance(task, TokenLogits) and plain and _one_each(given) and _are_entries(task, asked, given, context):
        return EntryNumbers(task, asked, given.examples, context)
    return TaskNumbers(task, asked, given.examples, context, are_apart(given.examples))


def _one_each(given: Given) -> bool:
    """Whether each example stands in its own entry of the batch, in order."""
    return all(place.within in (i, slice(i, i + 1)) for i, e in enumerate(given.examples) for place in e.places)


def _are_entries(task: TokenLogits, asked: Sequence[Sequence[Any]], given: Given, context: Context) -> bool:
    """Whether each target is an entry of the logits, and none a word of the decoder's text."""
    if not isinstance(task, Decoding):
        return True
    return not any(
        task.written(ask, index, example, context)
        for index, (targets, example) in enumerate(zip(asked, given.examples, strict=True))
        for ask in targets
    )


def _positions(numbers: Numbers, gm: Any) -> tuple[int, ...] | None:
    """The positions at which logits are needed, counted from the end; None for all of them."""
    if isinstance(numbers, EntryNumbers):
        columns, width = numbers.columns(), numbers.width
    elif isinstance(numbers, ForcedNumbers):
        columns, width = numbers.answer.columns, numbers.answer.width
    else:
        return None
    if len(columns) > MOST_POSITIONS or 2 * len(columns) > width or not answers_by_token(gm, width):
        return None
    return tuple(column - width for column in sorted(columns))


def called_as(model: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs as the model takes them: in one dict for a model whose forward takes a dict of features, as that of a
    SentenceTransformer does."""
    features = features_of(model)
    return inputs if features is None or features in inputs else {features: dict(inputs)}


def features_of(model: nn.Module) -> str | None:
    """The name of the one input of a model that takes a dict of features of a text; None for any other."""
    known = isinstance(model, Explained)
    names = model.record.called_with if isinstance(model, Explained) else _parameters(model)
    one = len(names) == 1 and names[0] in FEATURES
    return names[0] if one and (known or any(isinstance(part, nn.Embedding) for part in model.modules())) else None


def _parameters(model: nn.Module) -> tuple[str, ...]:
    parameters = named_signature(model).parameters.values()
    return tuple(each.name for each in parameters if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL))


def flat_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs by name, with those inside of a dict by their own names."""
    found: dict[str, Any] = {}
    for name, value in inputs.items():
        found |= flat_inputs(value) if isinstance(value, Mapping) else {name: value}
    return {name: value for name, value in found.items() if value is not None}
