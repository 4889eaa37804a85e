"""A module made from an explained one by an edit of its graph before its rules; rules are chosen anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch.fx import GraphModule

from lxt_fx.base.errors import InputError
from lxt_fx.compiler.captured_model import captured_model_of
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.further_graphs import OtherCalls, Source, give_further, without_omitted
from lxt_fx.compiler.options import example_of
from lxt_fx.compiler.pipeline import compiled_by
from lxt_fx.compiler.steered import check_steerable

Edit = Callable[[Explained, GraphModule], object]
"""Edits a copy of the canonical graph of an explained module. It leaves the values of the graph as they are."""


def check_editable(explained: Explained, function: str) -> None:
    """Raises InputError, in the name of `function`, for a module that was loaded from a file, CallError for one that is
    steered, and ModelChangedError."""
    check_steerable(explained, function)
    explained._refuse_steering(function)
    explained._check_model()


@torch.inference_mode(False)
def edited(
    explained: Explained, args: tuple[Any, ...], kwargs: Mapping[str, Any], edit: Edit, note: str
) -> Explained:
    """The module under its own table and options, with `edit` of its graph, and of each further graph that a call needs.

    The forward is compared with that of `explained` on the inputs given, else on those that `transform` makes for the
    model: `record.forward_difference`. The edit may change the gradient, so `record.gradient_difference` stays that of the
    graph before it, and in the certificate "the gradient before any rule was" goes on with `note`.

    To be called after `check_editable`. Raises InputError for a module whose table merged batch norms, and where there are
    no inputs; and what `transform` raises.
    """
    options, table = explained._options, explained.record.table
    assert options is not None and table is not None, "check_editable was called"
    if not args and not kwargs:
        kwargs = _example_inputs(explained)
    source = captured_model_of(explained, args, kwargs)
    fitting = source.model
    assert isinstance(fitting, Explained)
    edit(fitting, source.captured.gm)
    source = replace(source, proofs=[replace(proof, note=proof.note or note) for proof in source.proofs])
    found = compiled_by(source, table, replace(options, positions=None))  # they are selected already
    settings = {name: explained.record.constants[name] for name in explained.record.to_repeat}

    def again(explained: Explained, inputs: Mapping[str, Any]) -> Explained:
        return edited(explained, (), without_omitted({**settings, **inputs}), edit, note)

    give_further(found, explained, Source(explained, again))
    return found


def _example_inputs(explained: Explained) -> dict[str, Any]:
    """The inputs that `transform` makes for the model. Raises InputError for a model whose inputs are unknown."""
    other = explained._other_calls
    while isinstance(other, OtherCalls):
        model = other.again.model
        if not isinstance(model, Explained):
            example = example_of(model, (), None)
            way = example.as_captured(explained.record.called_with, ()) or example
            return dict(way.kwargs)
        other = model._other_calls
    raise InputError("the inputs of this module are unknown; give some: the forward is compared on them")
