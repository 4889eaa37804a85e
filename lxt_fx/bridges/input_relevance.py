"""The relevance of the positional inputs of a call, each in the shape of the input: what other libraries ask for."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lxt_fx.attribution.as_explained import as_explained
from lxt_fx.attribution.attributed import attributed, call_at_all_leaves
from lxt_fx.attribution.leaf_call import LeafCall
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.bridges.example_targets import ExampleNumbers, Target
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules


def relevance_of_inputs(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    further: tuple[Any, ...],
    target: Target,
    rules: Rules | None,
    function: str,
) -> tuple[Tensor, ...]:
    """The relevance of each of the `inputs`, which are the first positional inputs of a call, for the explained number of
    each example. It has the shape, the device and, where that is floating-point, the dtype of the input; of token ids it is
    the relevance of each token, in float32 at least.

    Raises InputError for a target that does not fit, and for an input that carries no relevance.
    """
    with gradients_on():
        names, call = positional_call(model, (*inputs, *further), rules, function)
        found = attributed(call, ExampleNumbers(target, function), function, units=False).relevance
    answers = []
    for name, given in zip(names, inputs, strict=False):
        if name not in found:
            raise InputError(
                f"{function}: input {name!r} {list(given.shape)} carries no relevance; relevance is read at "
                f"{', '.join(found)}; give the others behind them (additional_forward_args in captum)"
            )
        relevance = found[name][0].to(given.device)
        if relevance.dim() == given.dim() + 1:  # of tokens, whose units are summed
            relevance = relevance.squeeze(-1)
        answers.append(relevance.to(given.dtype) if given.is_floating_point() else relevance)
    return tuple(answers)


def positional_call(
    model: nn.Module, args: tuple[Any, ...], rules: Rules | None, function: str
) -> tuple[list[str], LeafCall]:
    """The call with these positional inputs, and the name of each of them that is not None."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{function}: give the model itself or what lxt_fx.transform made of it, got {type(model).__name__}; a "
            "function around a model hides its ops, so write what it does as a torch.nn.Module, and choose the output by "
            "target="
        )
    explained: Explained = as_explained(model, args, {}, function, rules)
    named = explained._named(args, {})
    return list(named), call_at_all_leaves(explained, named, function)
