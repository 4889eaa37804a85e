"""The relevance at values inside the model, each in the shape of the value: what layer methods of other libraries give."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lxt_fx.attribution.leaf_relevance import leaf_relevance
from lxt_fx.attribution.non_finite import is_finite, raise_non_finite
from lxt_fx.attribution.places import places_at
from lxt_fx.attribution.watch import watch
from lxt_fx.base.errors import InputError
from lxt_fx.base.grad_mode import gradients_on
from lxt_fx.base.nodes import module_path
from lxt_fx.bridges.example_targets import Target, chosen, output_tensor
from lxt_fx.bridges.input_relevance import positional_call
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import Rules


def relevance_of_layers(
    model: nn.Module, args: tuple[Any, ...], layers: Sequence[str], target: Target, rules: Rules | None, function: str
) -> list[Tensor]:
    """The relevance at each of the `layers`, which are module paths or places, for the explained number of each example. It
    has the shape and the dtype of the value there. No parameter gets a gradient.

    Raises InputError for a target that does not fit or that depends on none of the layers, and for a layer without a single
    output.
    """
    with gradients_on():
        _, call = positional_call(model, args, rules, function)
        places = [_one_place(call.module, layer, function) for layer in layers]

        def total_in(output: Any) -> Tensor:
            return chosen(output_tensor(output, function), target, function).sum()

        with watch(call.called, *places) as inside:
            output = call.output()
        total, values = total_in(output), [inside[place].value for place in places]
        found = leaf_relevance(call.module, output, total, values) if total.requires_grad else None
        if found is None:
            raise InputError(f"{function}: the target does not depend on {', '.join(layers)}; give a layer before it")
        if not is_finite([total, *found]):
            said = f"{function}: an explained number, or its relevance,"
            raise_non_finite(call.module, call.bound, total_in, said)
    return [relevance.detach().to(value.dtype) for relevance, value in zip(found, values, strict=True)]


def _one_place(module: Explained, layer: str, function: str) -> str:
    """The one place that the name means. The module that looks tokens up is before the graph, and gives a leaf of it."""
    for front in module._fronts:
        (made,) = front.module.graph.output_node().all_input_nodes
        if module_path(made) == layer:
            return f"%{next(node.name for node in module.graph.nodes if node.target == front.leaf)}"
    found = list(places_at(module, layer, function))
    if len(found) != 1:
        raise InputError(f"{function}: {layer!r} means several places ({', '.join(found)}); give one of them")
    return found[0]
