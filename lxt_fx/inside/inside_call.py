"""One call of an explained module with the values at places inside of it: what latent and conditional relevance read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.attributed import call_at_all_leaves
from lxt_fx.attribution.embeddings import as_called
from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.attribution.many_targets import Run, forward_run
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.attribution.tapped import tapped
from lxt_fx.attribution.target import TargetsLike
from lxt_fx.base.errors import InputError
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules
from lxt_fx.inputs.given import Given
from lxt_fx.inputs.tools import is_tokenizer
from lxt_fx.inside.laid_out import LaidOut, laid_out
from lxt_fx.inside.tokens import Tokens, tokens_of
from lxt_fx.tasks.asked import asked_of
from lxt_fx.tasks.explained_call import ExplainedCall, called_as, explained_call
from lxt_fx.tasks.reading import opened_with, read


@dataclass(frozen=True, slots=True, eq=False)
class InsideCall:
    """A call whose forward has run. `run` has its autograd graph, with the values at `places` in their order. `several`
    says whether a list of targets was given; `tokens` names the tokens of each text of the call. `layouts` say how the
    values hold the examples."""

    call: ExplainedCall
    leaves: LeafCall
    places: Mapping[str, InsidePlace]
    run: Run
    several: bool
    tokens: Tokens
    layouts: Mapping[str, LaidOut]

    @property
    def targets(self) -> int:
        """How many numbers of each example are explained."""
        return len(self.call.numbers.numbers[0])


def inside_call(
    model: nn.Module | Any,
    processor: Any,
    inputs: Any,
    target: TargetsLike | Sequence[TargetsLike],
    places: str | Sequence[str],
    function: str,
    *,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
) -> InsideCall:
    """Runs the forward of a call for these targets, which are what `explain` takes. A model is transformed on the inputs.

    Raises what `targeted_call` raises, and UnknownNameError for a place that there is not.
    """
    asked = targeted_call(model, processor, inputs, target, function, answer=answer, labels=labels, rules=rules)
    return inside_targeted(asked, places, function)


def inside_targeted(asked: TargetedCall, places: str | Sequence[str], function: str) -> InsideCall:
    """Runs the forward of a call whose targets are known. Raises UnknownNameError for a place that there is not."""
    call, leaves = asked.call, asked.leaves
    found = places_at(leaves.module, places, function)
    if not found:
        raise InputError(f"{function}: no place is asked for; lxt_fx.places(explained) lists them")
    run = forward_run(leaves, call.numbers, function, tapped(leaves.module, found))
    batches = {name: len(value) for name, value in call.context.inputs.items() if isinstance(value, Tensor) and value.dim()}
    layouts = {
        name: laid_out(place, value, call.given.examples, batches)
        for (name, place), value in zip(found.items(), run.inside, strict=True)
    }
    return InsideCall(call, leaves, found, run, asked.several, tokens_of(call, leaves.module), layouts)


@dataclass(frozen=True, slots=True, eq=False)
class TargetedCall:
    """A call with its targets, before its forward runs. `leaves` are all that it has; `targets` are so many for each
    example, and `several` says whether a list of them was given."""

    call: ExplainedCall
    leaves: LeafCall
    targets: int
    several: bool


def targeted_call(
    model: nn.Module | Any,
    processor: Any,
    inputs: Any,
    target: TargetsLike | Sequence[TargetsLike],
    function: str,
    *,
    answer: Any = None,
    labels: Sequence[str] | None = None,
    rules: Rules | None = None,
) -> TargetedCall:
    """The call for these targets, which are what `explain` takes. A model is transformed on the inputs.

    Raises InputError for inputs or targets that do not fit, for a module that answers at some positions only, and for
    examples of a batch that depend on one another.
    """
    if is_tokenizer(inputs):
        raise InputError(
            f"{function}: the inputs come second here, and the tokenizer by name: {function}(model, text, ..., "
            "processor=tokenizer)"
        )
    module, processor = opened_with(model, processor, function)
    given, tokenizer = read(module, processor, inputs, function, answer=answer, sampling_rate=None)
    explained = explained_on(module, given, function, rules)
    asked, several = asked_of(target, len(given.examples), given.batched, function)
    call = explained_call(explained, tokenizer, given, asked, labels, rules, function)
    if not call.apart and len(call.given.examples) > 1:
        raise InputError(
            f"{function}: the examples of this batch share inputs, so what is inside belongs to no single one; give them "
            "one at a time"
        )
    return TargetedCall(call, call_at_all_leaves(call.explained, call.inputs, function), len(asked[0]), several)


def explained_on(model: nn.Module, given: Given, function: str, rules: Rules | None) -> Explained:
    """The explained module itself, or the model transformed on these inputs with logits at all positions: behind the last
    attention a module for some positions computes these only, so it has no value at the others. Raises InputError for such
    a module."""
    explained = as_explained(model, (), as_called(model, called_as(model, given.inputs)), function, rules)
    if explained.record.positions is not None:
        raise InputError(
            f"{function}: this module was made to answer at the positions {list(explained.record.positions)} only, and "
            "computes what is behind its last attention at these alone; transform the model without positions=..."
        )
    return explained

