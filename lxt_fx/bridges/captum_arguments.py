"""Arguments as captum's methods take them: which are inputs, and why an option has no meaning for relevance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lxt_fx.base.errors import InputError

_BY_POSITION = (
    'relevance is read at inputs, such as encoded["input_ids"], and the other inputs of the model follow by position in '
    'additional_forward_args, in the order of its forward: (encoded["attention_mask"],), with None for one left out'
)


def given_inputs(inputs: object) -> tuple[Tensor, ...]:
    """The inputs at which relevance is read. Raises InputError for what is no tensor."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    for each in given:
        if not isinstance(each, Tensor):
            raise InputError(
                f"captum: inputs must be a tensor or a tuple of tensors, got {type(each).__name__}; {_BY_POSITION}"
            )
    return given


def further_inputs(additional: Any) -> tuple[Any, ...]:
    """The inputs behind them. Raises InputError for inputs by name."""
    if isinstance(additional, Mapping):
        raise InputError(
            f"captum: additional_forward_args must be a tuple, got {type(additional).__name__}; {_BY_POSITION}"
        )
    if additional is None:
        return ()
    return additional if isinstance(additional, tuple) else (additional,)


_STEPS = "it needs no baseline, and no steps: it is one backward. Leave it out"

_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("baselines", "n_steps", "method", "internal_batch_size"), _STEPS),
    "return_convergence_delta": "lxt_fx.audit(model, inputs, target) says how much of the number reached the inputs and "
    "what took the rest",
    "attribute_to_layer_input": "give the module before the layer, or the place: residual.i is what layer i reads",
    "grad_kwargs": "the backward is that of the rules",
    "num_trials": "nothing is drawn at random, so one trial is all",
}
"""What stands in the place of options of captum's methods."""


_TAKEN = "inputs, target and additional_forward_args, in which the other inputs of the model follow by position"


def refuse_options(options: Mapping[str, object], taken: str = _TAKEN) -> None:
    """Raises InputError for options of captum's methods that ask for something: with None or False they ask for nothing."""
    asked = [name for name, value in options.items() if name not in _INSTEAD or not (value is None or value is False)]
    if asked:
        said = dict.fromkeys(_INSTEAD.get(name, f"attribute takes {taken}") for name in asked)
        raise InputError(f"captum: relevance has no {', '.join(asked)}; {'; '.join(said)}")
