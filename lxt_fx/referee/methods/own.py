"""Anybody's method: a function of the model, its inputs and the explained number."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.referee.case import Case, Subject
from lxt_fx.referee.contest import Explain

OwnFunction = Callable[[nn.Module, Mapping[str, Tensor], Callable[[Any], Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class OwnMethod:
    """`function(model, inputs, value)` returns the relevance of one case. `inputs` has the inputs of the model by name, for
    one example; the leaf among them (`inputs_embeds` [1, tokens, hidden], or the picture) requires a gradient. `value`
    takes the model's output and gives the explained number, [1]. Relevance has the shape of the leaf, or is one number a
    unit."""

    name: str
    function: OwnFunction

    def prepare(self, subject: Subject) -> Explain:
        """Each case is one call of the function."""

        def explain(case: Case) -> Tensor:
            with gradients_on():
                leaf = subject.leaf(case).requires_grad_(True)
                found = self.function(subject.model, subject.inputs(case, leaf), case.value)
            if not isinstance(found, Tensor):
                raise InputError(f"bench: {self.name} must return a tensor of relevance, got {type(found).__name__}")
            return found.detach()

        return explain


def own_method(given: OwnFunction | str) -> OwnMethod:
    """A method of a function, or of `package.module:name`.

    Raises InputError where there is no such function.
    """
    if not isinstance(given, str):
        return OwnMethod(getattr(given, "__name__", type(given).__name__), given)
    module, _, name = given.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"bench: no method {given!r} ({error}); give package.module:function, importable from here"
        ) from error
    if not callable(function):
        raise InputError(f"bench: {given!r} is no function but {type(function).__name__}")
    return OwnMethod(name, function)
