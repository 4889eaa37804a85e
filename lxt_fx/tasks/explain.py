"""Explain what a model says of what a person gives it, whatever the model is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

from torch import Tensor, nn

from lxt_fx.attribution.attributed import Attributed, attributed, call_at_all_leaves, leaf_inputs
from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.readable_tokens import Tokenizer
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.progress import lasting, steps
from lxt_fx.compiler.options import Rules
from lxt_fx.inputs.given import Given, Place, part_of
from lxt_fx.results.explanation import Explanation
from lxt_fx.results.explanations import Explanations
from lxt_fx.results.part import Part
from lxt_fx.tasks.accounts import account_of
from lxt_fx.tasks.asked import asked_of
from lxt_fx.tasks.explained_call import ExplainedCall, explained_call
from lxt_fx.tasks.forced import ForcedNumbers
from lxt_fx.tasks.made_explanation import made_explanation
from lxt_fx.tasks.reading import opened_with, read, read_picture

FUNCTION = "explain"

One = str | Path | tuple[str, str] | list[int]
"""One input, as a type checker sees it: a text, a file, a pair of texts, the ids of a text. A list of dicts may be a chat,
and a tensor or dict may hold a batch."""

Several = list[str] | list[Path] | list[tuple[str, str]] | list[list[int]] | list[list[dict[str, Any]]] | list[Tensor]
"""Several inputs, as a type checker sees them."""


@overload
def explain(
    model: nn.Module | Any,
    processor: Any,
    inputs: One,
    target: TargetsLike | Sequence[TargetsLike] = None,
    *,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    sampling_rate: int | None = None,
    progress: bool | None = None,
) -> Explanation: ...


@overload
def explain(
    model: nn.Module | Any,
    processor: Any,
    inputs: Several,
    target: TargetsLike | Sequence[TargetsLike] = None,
    *,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    sampling_rate: int | None = None,
    progress: bool | None = None,
) -> Explanations: ...


@overload
def explain(
    model: nn.Module | Any,
    processor: Any,
    inputs: Any,
    target: TargetsLike | Sequence[TargetsLike] = None,
    *,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    sampling_rate: int | None = None,
    progress: bool | None = None,
) -> Explanation | Explanations: ...


@lasting
def explain(
    model: nn.Module | Any,
    processor: Any,
    inputs: Any,
    target: TargetsLike | Sequence[TargetsLike] = None,
    *,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
    sampling_rate: int | None = None,
    progress: bool | None = None,
) -> Explanation | Explanations:
    """How much each token, pixel or moment of `inputs` speaks for or against what the model says.

    `model` is a model of transformers, what `transform` made from one (to explain many inputs, transform once), or a
    pipeline. `processor` is its tokenizer or processor. `inputs` is what a person has: a text, a chat, a pair of texts,
    token ids, a picture, a sound, what the processor returned; or a list of these, and then there is one explanation for
    each.

    `target` chooses the number that is explained, by what the model is for:

    - None: what the model is most certain of. A language model is asked after the last token, a masked one at the first
      mask, a tagger at the last token that is not special; of a question answering model it is the score of the best
      answer, of a detector the surest box, of a segmentation the mean logit over the largest region, of speech recognition
      by frames the transcript, of classes of frames the surest, of a map of depths its mean, of an encoder without a head
      the cosine of two texts, of CLIP the score of image and text; of an encoder-decoder the next token, or all of the
      `answer` if one is given;
    - an index (a number of Python, numpy or torch) or a name (`" Paris"`, `"positive"`, a word of the answer or
      transcript); capital letters of a class do not matter;
    - two of them, `("Paris", "London")`: the first minus the second;
    - `Target.at(position, ...)`: at a position of the input's own text, which padding does not move; a box, a pixel `(row,
      column)`, a mask of pixels, a frame;
    - a name of several tokens, for a model that predicts the next token: the sum of their log-probabilities, each given the
      tokens before it. All of them but the last are appended to the text;
    - a function of the model's output that returns one number, for a list of inputs one for each of them, [inputs];
    - a list: several numbers of one input; for a list of inputs the target of each, which may be a list again.

    `answer` is what an encoder-decoder has said. `labels` names the classes if the model's config does not. `rules` is a
    name in `lxt_fx.TABLES` or a RuleTable; None means `attnlrp` for a model and its own table for an explained module. With
    `account=True` each explanation says what reached the inputs and what took the rest, which takes one more run for each.
    `chunk` numbers run backward at once. `progress` is as in `lxt_fx.progress`, for this call.

    Raises InputError for inputs or a target that do not fit the model, NonFiniteError where relevance is not finite, and
    what `transform` raises. The model does not change. """
    module, processor = opened_with(model, processor, FUNCTION)
    with gradients_on():
        given, tokenizer = read(module, processor, inputs, FUNCTION, answer=answer, sampling_rate=sampling_rate)
        return explanations_of(
            module, tokenizer, given, target, FUNCTION, labels=labels, rules=rules, account=account, chunk=chunk
        )


@lasting
def explain_image(
    model: nn.Module | Any,
    pixel_values: Any,
    target: TargetsLike | Sequence[TargetsLike] = None,
    *,
    processor: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    progress: bool | None = None,
) -> Explanation | Explanations:
    """How much each pixel speaks for or against what the model says of a picture: `explain` for pictures, without a
    processor where the pixels are normalised already, and for a model of any library.

    `pixel_values` is a float tensor as the model takes it, [channels, height, width] or [batch, channels, height, width],
    or, with a `processor` (an image processor of transformers, a transform of torchvision or timm), a picture of any kind
    that `explain` takes. It is the model's input `pixel_values`, else its first input; of an explained module the first
    image that relevance is read at. `target`, `labels`, `rules` and `progress` are as in `explain`, and so is what
    is raised.
    """
    function = "explain_image"
    module, processor = opened_with(model, processor, function)
    with gradients_on():
        given = read_picture(module, processor, pixel_values, function)
        return explanations_of(module, None, given, target, function, labels=labels, rules=rules)


def explanations_of(
    model: nn.Module,
    tokenizer: Tokenizer | None,
    given: Given,
    target: TargetsLike | Sequence[TargetsLike],
    function: str,
    *,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
    account: bool = False,
    chunk: int | None = None,
) -> Explanation | Explanations:
    """What `explain` returns, for inputs that are read already. Error messages name the `function`."""
    asked, several = asked_of(target, len(given.examples), given.batched, function)
    if account and len(asked[0]) > 1:
        raise InputError(f"{function}: account=True is for one number, got {len(asked[0])} targets; explain each alone")
    call = explained_call(model, tokenizer, given, asked, labels, rules, function)
    leaves = call_at_all_leaves(call.explained, call.inputs, function)
    found = attributed(leaves, call.numbers, function, chunk=chunk)
    explanations = explanations_from(call, leaves, found, several=several, account=account)
    return Explanations(explanations) if call.given.batched else explanations[0]


def explanations_from(
    call: ExplainedCall, leaves: LeafCall, found: Attributed, *, several: bool, account: bool = False
) -> list[Explanation]:
    """The explanation of each example of a call, from the relevance of its leaves. `several` says whether a list of targets
    was given, so that there is an axis of targets."""
    relevance = _by_example(found, call, len(call.numbers.numbers[0]))
    made_of = {leaf: name for leaf, (name, _) in leaf_inputs(leaves).items()}
    part = part_of if several else _only_part
    explanations = []
    for index, example in steps("explanations", enumerate(call.given.examples), len(call.given.examples)):
        own = account_of(call, made_of, index, 0) if account else None
        numbers = call.numbers.numbers[index]
        explanations.append(
            made_explanation(
                call.explained.record, call.context, example, numbers, relevance[index], part, found.seconds, own
            )
        )
    return explanations


def _by_example(found: Attributed, call: ExplainedCall, targets: int) -> list[Mapping[str, Tensor]]:
    """The relevance of the numbers of each example, [targets, batch, ...] of each input."""
    count, relevance = len(call.given.examples), found.relevance
    if isinstance(call.numbers, ForcedNumbers):
        relevance = call.numbers.check_causal(relevance)
    if call.apart:
        return [relevance] * count
    by_example = {name: each.reshape(targets, count, *each.shape[1:]) for name, each in relevance.items()}
    return [{name: each[:, index] for name, each in by_example.items()} for index in range(count)]


def _only_part(place: Place, relevance: Tensor) -> Part:
    """The part without the axis of targets, of which there is one."""
    part = part_of(place, relevance)
    units = None if part.units is None else part.units[0]
    return replace(part, axes=part.axes[1:], values=part.values[0], units=units)
