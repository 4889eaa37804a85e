"""A name of several tokens after the text: the sum of their log-probabilities, each given those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lxt_fx.attribution.readable_tokens import readable_tokens
from lxt_fx.attribution.target_entry import logits_of, position_of
from lxt_fx.attribution.target_names import TokenNames
from lxt_fx.attribution.text_input import NO_TOKENIZER
from lxt_fx.base.errors import InputError
from lxt_fx.inputs.given import Example, Given
from lxt_fx.tasks.asked import Asked
from lxt_fx.tasks.followed import followed
from lxt_fx.tasks.own_text import OwnText, own_text, prefix_of
from lxt_fx.tasks.rows import of_input, row_of
from lxt_fx.tasks.task import Context, Number
from lxt_fx.tasks.task_numbers import OfWholeOutput
from lxt_fx.tasks.token_logits import place_of, shown_positions

AHEAD = 1e-6
"""Relevance of a later token below this share of the largest is rounding (of models that mix tokens by Fourier transforms,
for example)."""

Run = Callable[[Mapping[str, Any]], Any]
"""The output of the model for inputs by name, without gradients."""


@dataclass(frozen=True, slots=True, eq=False)
class Answered:
    """The inputs with the tokens of each example's name appended, all but its last; `names` are the tokens of the names and
    `texts` the texts without them, by example."""

    given: Given
    names: tuple[tuple[int, ...], ...]
    texts: tuple[OwnText, ...]

    @property
    def width(self) -> int:
        """How many columns the texts have with the names."""
        return self.texts[0].width + max(map(len, self.names)) - 1

    @property
    def columns(self) -> set[int]:
        """The columns of the batch at which the tokens of the names are predicted."""
        starts = [text.columns[-1] for text in self.texts]
        return {start + step for start, name in zip(starts, self.names, strict=True) for step in range(len(name))}


def asks_for_several(asked: Sequence[Sequence[Any]], context: Context) -> bool:
    """Whether a target is a name of several tokens of the tokenizer, if there is one."""
    return any(_is_several(target, context) for targets in asked for target in targets)


def answered(
    asked: Sequence[Sequence[Any]], given: Given, context: Context, run: Run, longest: int | None = None
) -> Answered:
    """The inputs with the names that are asked for appended. A name is tried with and without a leading space, and the
    likelier spelling is taken. `longest` is how many tokens the model has positions for.

    Raises InputError where such a name is one of several targets, its position is not the end of the text, or it makes the
    text too long.
    """
    if len(asked[0]) > 1:
        raise InputError(
            f"{context.function}: a name of several tokens is explained alone, because its tokens are appended to the "
            "text; explain each target in a call of its own"
        )
    texts = [_text(index, example, context) for index, example in enumerate(given.examples)]
    spelled = [_spelled(targets[0], text, context) for targets, text in zip(asked, texts, strict=True)]
    whole = max(text.text.count + len(ids) - 1 for text, found in zip(texts, spelled, strict=True) for ids in found)
    if longest is not None and whole > longest:
        raise InputError(
            f"{context.function}: the tokens of a name are appended to the text, all but the last, which makes {whole} "
            f"tokens, but {context.model_class} has positions for {longest}; shorten the text, or give its first token"
        )
    tried = []
    for spelling in range(max(map(len, spelled))):
        names = [found[min(spelling, len(found) - 1)] for found in spelled]
        tried.append(Answered(_all_but_the_last(given, names, texts, context), tuple(names), tuple(texts)))
    if len(tried) == 1:
        return tried[0]
    likely = torch.stack([_log_probabilities(run(each.given.inputs), each, given, context) for each in tried])
    names = [tried[best].names[index] for index, best in enumerate(likely.argmax(0).tolist())]
    return Answered(_all_but_the_last(given, names, texts, context), tuple(names), tuple(texts))


def _is_several(target: Any, context: Context) -> bool:
    if not isinstance(target, Asked) or not isinstance(target.entry, str) or target.minus is not None:
        return False
    if context.tokenizer is NO_TOKENIZER or target.entry in context.labels:
        return False
    return TokenNames(context.tokenizer, context.function).single(target.entry) == (None, None)


def _text(index: int, example: Example, context: Context) -> OwnText:
    prefix = prefix_of(context.inputs)
    row = row_of(example, index, f"{prefix}input_ids")
    found = own_text(context.inputs, context.tokenizer, row, prefix)
    if found is None or f"{prefix}input_ids" not in context.inputs:
        raise InputError(
            f"{context.function}: a name of several tokens is appended to the text, and the call has no "
            f"{prefix}input_ids; give the text as ids, or a name of one token"
        )
    return found


def _spelled(target: Any, text: OwnText, context: Context) -> list[tuple[int, ...]]:
    function = context.function
    if not isinstance(target, Asked) or not isinstance(target.entry, str) or target.minus is not None:
        raise InputError(
            f"{function}: one target of the batch is a name of several tokens, which is explained by its log-probability, "
            f"and another is {target!r}; explain them in calls of their own"
        )
    position = position_of(context.reading, target.at_position(function), text.text)
    if position != text.text.count - 1:
        raise InputError(
            f"{function}: {target.entry!r} is several tokens, explained only after the last token of the text, and "
            f"position {position} is not the last of {text.text.count}; give the text up to that position"
        )
    spelled = TokenNames(context.tokenizer, function).several(target.entry, text.text.id_list()[-1])
    count = _vocabulary(context.config)
    known = [ids for ids in spelled if count is None or max(ids) < count]
    if not known:
        raise InputError(
            f"{function}: {target.entry!r} has tokens {list(spelled[0])} of the tokenizer, and {context.model_class} has "
            f"{count} (0 to {(count or 0) - 1}); is it the tokenizer of this model?"
        )
    return known


def _vocabulary(config: Any) -> int | None:
    """How many tokens the model has; None if its config does not say."""
    get = getattr(config, "get_text_config", None)
    found = getattr(get() if callable(get) else config, "vocab_size", None)
    return found if isinstance(found, int) else None


def _all_but_the_last(
    given: Given, names: Sequence[tuple[int, ...]], texts: Sequence[OwnText], context: Context
) -> Given:
    """The inputs with each name but its last token appended."""
    return followed(given, [name[:-1] for name in names], texts, context)


def _log_probabilities(output: Any, answer: Answered, given: Given, context: Context) -> Tensor:
    """log p(name | text) of each example, [examples]."""
    return torch.stack([by_token(output, answer, index, example, context).sum()
                        for index, example in enumerate(given.examples)])  # fmt: skip


def by_token(output: Any, answer: Answered, index: int, example: Example, context: Context) -> Tensor:
    """The log-probability of each token of the name of example `index`, in at least float32."""
    name = answer.names[index]
    logits = _of_name(output, answer, index, example, context)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide.log_softmax(-1)[torch.arange(len(name)), list(name)]


def likeliest(output: Any, answer: Answered, index: int, example: Example, context: Context) -> str:
    """The token that is likeliest after the text of example `index`."""
    first = _of_name(output, answer, index, example, context)[0]
    return readable_tokens(context.tokenizer, [int(first.argmax())])[0]


def _of_name(output: Any, answer: Answered, index: int, example: Example, context: Context) -> Tensor:
    """The logits that each token of the name of example `index` is predicted by, [tokens, entries]."""
    logits, name = logits_of(context.reading, output), answer.names[index]
    row = row_of(example, index, f"{prefix_of(context.inputs)}input_ids")
    start, first, count = answer.texts[index].columns[-1], answer.texts[index].text.count - 1, logits.shape[1]
    places = [place_of(start + step, first + step, answer.width, count, context) for step in range(len(name))]
    return logits[row, places]


@dataclass(eq=False)
class ForcedNumbers(OfWholeOutput):
    """The log-probability of each example's name, and behind it that of its first token alone, whose relevance shows
    whether the model looks ahead. `numbers` [examples][1] are what was found, once the forward has run, and so are
    `answers`, if they are a list: the token that is likeliest after the text of each example."""

    answer: Answered
    context: Context
    numbers: list[list[Number]] = field(default_factory=list)
    answers: list[str] | None = None

    def totals(self, output: Any) -> tuple[Tensor, Tensor]:
        """[2] and [2, batch]: the whole name, its first token."""
        found = [
            by_token(output, self.answer, index, example, self.context)
            for index, example in enumerate(self.answer.given.examples)
        ]
        self.numbers = [[self.number(index, each.sum())] for index, each in enumerate(found)]
        if self.answers is not None:
            self.answers = [
                likeliest(output, self.answer, index, example, self.context)
                for index, example in enumerate(self.answer.given.examples)
            ]
        values = torch.stack([torch.stack([each.sum() for each in found]), torch.stack([each[0] for each in found])])
        return values.sum(1), values

    def number(self, index: int, value: Tensor) -> Number:
        """The number of one example, with each token as it reads after those before it."""
        text, name = self.answer.texts[index].text, self.answer.names[index]
        whole = readable_tokens(self.context.tokenizer, [*text.id_list(), *name])
        pieces = whole[text.count :]
        last = len(shown_positions(self.answer.texts[index], self.context)) - 1
        where = f"at position {last}, after '{whole[text.count - 1]}'"
        said = f"log-probability of {' + '.join(repr_of(piece) for piece in pieces)}, each given those before, {where}"
        return Number(value, said, "".join(pieces))

    def check_causal(self, relevance: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The relevance [1, batch, ...] of the names, without that of their first tokens alone.

        Raises InputError if the prediction of the first token of a name depends on the tokens after it.
        """
        prefix = prefix_of(self.context.inputs)
        ids = of_input(relevance, f"{prefix}input_ids")
        found = None if ids is None else relevance[ids]
        if found is not None:
            for index, (text, name) in enumerate(zip(self.answer.texts, self.answer.names, strict=True)):
                start = text.columns[-1] + 1
                row = row_of(self.answer.given.examples[index], index, f"{prefix}input_ids")
                own = found[1, row].abs()
                if bool((own[start : start + len(name) - 1] > AHEAD * own.max()).any()):
                    raise InputError(
                        f"{self.context.function}: {self.context.model_class} looks ahead, so it gives no "
                        "probability of a token given those before it, and a name of several tokens has none; give a name "
                        "of one token, or a function of the output"
                    )
        return {name: each[:1] for name, each in relevance.items()}


def repr_of(piece: str) -> str:
    """A token between quotes, as it is."""
    return f"'{piece}'"
