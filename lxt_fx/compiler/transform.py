"""`transform`: a module that explains itself, made from a model or put under another table. It captures further graphs for
calls that its first graph is not made for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.progress import lasting
from lxt_fx.base.torch_internals import pytree
from lxt_fx.base.user_objects import as_given
from lxt_fx.compiler.captured_model import CapturedModel, captured_model_of
from lxt_fx.compiler.captures import captured_from, captured_on
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.further_graphs import (
    BeyondGuards,
    OtherCalls,
    Recaptures,
    Source,
    give_further,
    without_omitted,
)
from lxt_fx.compiler.options import Options, Rules, table_named
from lxt_fx.compiler.other_numbers import under_numbers
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.ops.forms import Form, epsilon_of
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.opened_model import opened
from lxt_fx.passes.capture.signature import named_signature
from lxt_fx.passes.positions.asked_positions import Positions, positions_of, positions_to_select
from lxt_fx.passes.segments.recompute import Checkpoint, check_checkpoint
from lxt_fx.rule_table.table import RuleTable


@lasting
@torch.inference_mode(False)  # tensors made in inference mode could not be saved for a backward
def transform(
    model: nn.Module,
    args: tuple[Any, ...] = (),
    kwargs: dict[str, Any] | None = None,
    *,
    rules: Rules = "attnlrp",
    form: Form = "gradient",
    epsilon: float | None = None,
    strict: bool = True,
    dynamic: bool | Literal["recapture"] = True,
    positions: Positions | None = None,
    checkpoint: Checkpoint = None,
    progress: bool | None = None,
) -> Explained:
    """A GraphModule that computes what `model` computes and whose backward passes relevance.

    A transformers model needs no example: it is captured on `input_ids` ([batch, tokens]), `pixel_values`, `input_features`
    or `input_values` in the model's dtype, with dynamic batch size and, for text, dynamic length. Any other module needs
    example inputs, as it is called: `transform(net, (x,))`. The model does not change; its parameters are shared.

    Hooks on the model run while it is captured, and what they return becomes part of the graph. Calls of the explained
    module run the hooks that are put on its own submodules (docs/guide.md).

    The module is called as the model is, and gives what the model gives. Relevance is read at its leaves: float inputs, and
    the values that tokens are looked up as. `output, leaves = explained.with_leaves(input_ids=ids)` returns them. After
    `output.logits[0, -1, 42].backward()`, `leaf * leaf.grad` is the relevance of each element of the leaf. Summed over the
    hidden dimension it is the relevance of each token (AttnLRP, Achtibat et al. 2024, for `rules="attnlrp"`).

    With `form="explicit"` the backward passes relevance itself, by the equations of the papers: start it with
    `logit.backward(logit)` and read `leaf.grad`. It gives the same relevance and is slower; the fast form is tested against
    it. `epsilon` is added, with the sign of z, to the denominators of rules that have no epsilon of their own. None means 0
    in the fast form and 1e-6 in the explicit one.

    `rules` is a name in `lxt_fx.TABLES`, a RuleTable, or a composite: a dict from places (module classes, paths with `*`,
    ops, `%node`s) to rules, which are tried before those of `attnlrp`. With `strict=False` a node that no rule accepts uses
    its native gradient and is listed in `explained.record.unknown`. `dynamic=False` fixes all sizes to the example's.
    `dynamic="recapture"` leaves every size dynamic that can be. It captures the model again, instead of raising an error,
    if the graph is not valid for the inputs of a call (another length of a Mamba, another branch of an expert loop).

    `positions="last"` (or a position, or several; negative ones count from the end) gives logits [batch, len(positions),
    vocab] of these tokens only. What the other tokens need for keys and values is computed, all else is left out. Relevance
    is the same as without `positions`. "last" is the last column, which is right for a batch padded on the left. For
    padding on the right, give the position, or select from the whole output.

    `checkpoint` saves memory: "layers" cuts the graph into its layers, "sqrt" cuts n layers into segments of about sqrt(n),
    a number k into segments of k layers. The values inside a segment are not saved but computed again in the backward.
    Relevance is the same (docs/memory.md).

    Wrappers are opened: what `torch.compile`, DataParallel, DistributedDataParallel and PEFT (adapters) made of a model is
    explained as the model inside, and its modules have the names that they have there.

    A model that was transformed before and has not changed is not captured again. `model` may be an explained module: with
    example inputs, its graph is transformed under another table. Without any, the table may differ from its own in numbers
    only: another gamma, another epsilon of a rule, which takes a few milliseconds. `progress` is as in
    `lxt_fx.progress`, for this call.

    Raises InputError (arguments), UnknownNameError (table), CaptureError (no graph), NoRuleError (strict),
    ForwardMismatchError (the graph differs from the model) and GradientMismatchError (strict: capture lost a backward).
    """
    table = table_named(rules)
    check_checkpoint(checkpoint)
    options = Options(form, epsilon_of(form, epsilon, "transform"), strict, positions_of(positions), checkpoint)
    if dynamic not in (True, False, "recapture"):
        raise InputError(f'transform: dynamic must be True, False or "recapture", got {dynamic!r}')
    model = opened(model, "transform")
    if isinstance(model, Explained):
        options = replace(options, positions=positions_to_select(model.record.positions, options.positions))
        return _under_table(model, args, kwargs, table, options)
    source = captured_from(model, args, kwargs, dynamic=dynamic is not False)
    example = source.captured.example
    explained = compiled_by(source, table, options)

    def of_another_call(model: nn.Module, inputs: Mapping[str, Any]) -> Explained:
        args, kwargs = _arguments(example, inputs)
        return transform(
            model, args, kwargs, rules=table, form=form, epsilon=epsilon, strict=strict, dynamic=dynamic,
            positions=positions, checkpoint=checkpoint,
        )  # fmt: skip

    parameters = named_signature(model).parameters
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    explained._other_calls = OtherCalls(Source(model, of_another_call), frozenset(parameters), passes_on)

    @torch.inference_mode(False)
    def again(model: nn.Module, inputs: Mapping[str, Any]) -> Explained:
        # no input is optional here: a mask with padding says what a missing one does not
        other = replace(example, kwargs=pytree.tree_map(_detached, dict(inputs)), optional=())
        return compiled_by(captured_on(model, other, dynamic=True), table, options)

    if dynamic == "recapture":
        explained._recaptures = Recaptures(Source(model, again))
    elif explained.record.guards:
        explained._beyond_guards = BeyondGuards(Source(model, again))
    return explained


def _arguments(example: Example, inputs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of the model in a call with these inputs, and with the settings of the example that these say nothing
    about: those by position, and the others."""
    given = without_omitted({**example.constants, **inputs})
    given = {name: as_given(value) for name, value in given.items()}
    positional = list(itertools.takewhile(given.__contains__, example.positional))
    return tuple(given.pop(name) for name in positional), given


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _under_table(
    explained: Explained, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, table: RuleTable, options: Options
) -> Explained:
    explained._check_model()
    explained._refuse_steering("transform")
    found = None
    if explained._options is not None and replace(explained._options, positions=None) == options:  # none left to select
        found = under_numbers(explained, table)
    if found is None:
        found = compiled_by(_captured_again(explained, args, kwargs), table, options)
    settings = {name: explained.record.constants[name] for name in explained.record.to_repeat}

    def again(explained: Explained, inputs: Mapping[str, Any]) -> Explained:
        given = without_omitted({**settings, **inputs})
        return _under_table(explained, (), given, table, options)

    give_further(found, explained, Source(explained, again))
    return found


def _captured_again(explained: Explained, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> CapturedModel:
    if not args and not kwargs:
        if explained.record.table is None:
            raise InputError(
                "transform: this module was loaded from a file, which does not hold its model, and cannot be put under "
                "another table; transform the model under that table and save it too"
            )
        record = explained.record
        inputs = ", ".join(f"{name!r}: ..." for name in record.called_with if name not in record.optional)
        raise InputError(
            "transform: this module is already explained; to put its graph under another table (one that differs in more "
            "than numbers), give inputs on which the forward is verified: "
            f"transform(explained, kwargs={{{inputs}}}, rules=...)"
        )
    return captured_model_of(explained, args, kwargs or {})
