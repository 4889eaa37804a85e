"""Where a model has the values of places: found in its graph, and proved on an example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.fx import Node

from lxt_fx.attribution.place_axes import unit_axis
from lxt_fx.attribution.places import InsidePlace, places_at
from lxt_fx.attribution.watch import watch
from lxt_fx.base.errors import InputError
from lxt_fx.base.nodes import value
from lxt_fx.base.torch_internals import hooks_of
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.options import example_of
from lxt_fx.compiler.steered import steered
from lxt_fx.inside.steering.edits import Affine
from lxt_fx.inside.steering.hook_points import LAYOUTS, HookPoint, candidates, continues, heads_of, hookable, lies_as
from lxt_fx.inside.steering.model_hooks import HookedEdit, Recorded, hooks_on, others_paused, recorded
from lxt_fx.inside.steering.placed_edits import PlacedEdit, changes
from lxt_fx.inside.steering.text_positions import Chosen
from lxt_fx.passes.capture.capture import torch_state_restored
from lxt_fx.passes.capture.example import Example
from lxt_fx.passes.capture.settings import is_transformers
from lxt_fx.passes.verify import forward_difference

CLOSE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""The largest difference of the same value in the model and in the graph, relative to the largest element. Models in
float64 may cast norms to float32."""

_PROVED: WeakKeyDictionary[Explained, WeakKeyDictionary[nn.Module, dict[str, HookPoint]]] = WeakKeyDictionary()
"""The points by explained module, model and node. Those of a model do not depend on its weights."""


def hooked_edits(
    model: nn.Module,
    explained: Explained,
    edits: Sequence[PlacedEdit],
    chosen: Chosen,
    inputs: Mapping[str, Any] | tuple[Any, ...] | None,
) -> list[HookedEdit]:
    """Where the model has the value of each edit. Raises InputError where no module takes or returns it, and where the
    model does not answer as the steered graph does."""
    known = _PROVED.setdefault(explained, WeakKeyDictionary()).setdefault(model, {})
    asked = {edit.place.node: edit for edit in edits}
    if new := [edit for node, edit in asked.items() if node not in known]:
        known |= _proved(model, explained, new, inputs)
    for node, edit in asked.items():
        if not chosen.all and known[node].dims != len(edit.place.axes):
            raise InputError(
                f"steer: {edit.place.name} has examples and tokens in one dim at {known[node].path}, so positions of a "
                "text cannot be chosen there; leave positions out, or steer the explained module"
            )
    return [HookedEdit(edit, known[edit.place.node], heads_of(edit.place)) for edit in edits]


def _proved(
    model: nn.Module, explained: Explained, edits: Sequence[PlacedEdit], inputs: Mapping[str, Any] | tuple[Any, ...] | None
) -> dict[str, HookPoint]:
    """The points of these edits by node, proved on an example by the values there and by the effect of a change."""
    options = {edit.place.node: list(candidates(explained, edit.place)) for edit in edits}
    if none := [edit.place for edit in edits if not options[edit.place.node]]:
        raise InputError(_not_hookable(explained, none[0]))
    example = _example(model, explained, inputs)
    with torch_state_restored(), torch.no_grad(), others_paused():
        values = _values(explained, example, [edit.place for edit in edits])
        wanted = list(dict.fromkeys(each for found in options.values() for each in found))
        with recorded(model, [each for each in wanted if _has(model, each[0])]) as found:
            example.call(model)
        nodes = {node.name: node for node in explained.graph.nodes}
        points = {
            edit.place.node: _point(model, explained, edit.place, options[edit.place.node], values, found) for edit in edits
        }
        _check_effect(model, explained, example, edits, points, nodes)
    return points


def _example(model: nn.Module, explained: Explained, inputs: Mapping[str, Any] | tuple[Any, ...] | None) -> Example:
    """The inputs that are given, else those that a transformers model is captured on, without what it refuses."""
    if inputs is None and not is_transformers(model):
        raise InputError(
            f"steer: {type(model).__name__} is no transformers model, so an example to find its places by is unknown; give "
            "inputs=(x,), or inputs by name"
        )
    named = dict(inputs) if isinstance(inputs, Mapping) else {}
    example, record = example_of(model, inputs if isinstance(inputs, tuple) else (), named), explained.record
    return example.as_captured(record.called_with, record.optional) or example


def _values(explained: Explained, example: Example, wanted: Sequence[InsidePlace]) -> dict[str, Tensor]:
    """The values of places in the graph, by node."""
    with watch(explained, *(place.name for place in wanted)) as seen:
        args, kwargs = example.copied().arguments()
        explained(*args, **kwargs)
    return {place.node: seen[place.name].value for place in wanted}


def _point(
    model: nn.Module,
    explained: Explained,
    place: InsidePlace,
    options: Sequence[tuple[str, bool]],
    values: Mapping[str, Tensor],
    found: Recorded,
) -> HookPoint:
    """The nearest candidate that was called once and had the value of the place at just one of its tensors."""
    heads, wanted = heads_of(place), values[place.node]
    for path, entering in options:
        calls = found.get((path, entering), [])
        if len(calls) != 1:
            continue
        lies = {key: lies_as(tensor, wanted, heads, _close) for key, tensor in calls[0].items()}
        fits = [(key, layout) for key, layout in lies.items() if layout is not None]
        if len(fits) == 1:
            key, layout = fits[0]
            dims = LAYOUTS[layout].to_place(calls[0][key], heads).dim()
            return HookPoint(path, entering, key, layout, dims, continues(explained, place))
    raise InputError(_not_hookable(explained, place) + _of_this_model(model, explained, options))


def _check_effect(
    model: nn.Module,
    explained: Explained,
    example: Example,
    edits: Sequence[PlacedEdit],
    points: Mapping[str, HookPoint],
    nodes: Mapping[str, Node],
) -> None:
    """Raises InputError unless the model with other factors for all units at these places answers as the graph does."""
    draw = torch.Generator().manual_seed(0)
    tried = []
    for edit in edits:
        like, axis = value(nodes[edit.place.node]), unit_axis(edit.place.axes)
        size = [int(like.shape[axis]), *[1] * (like.dim() - 1 - axis)]
        factor = (0.5 + torch.rand(size, generator=draw, dtype=torch.float64)).to(like.device, like.dtype)
        tried.append(replace(edit, affine=Affine(factor, None)))
    args, kwargs = example.copied().arguments()
    fitting, bound = explained._prepared(args, kwargs)
    there = [replace(edit, place=places_at(fitting, edit.place.name, "steer")[edit.place.name]) for edit in tried]
    expected = fitting._called(steered(fitting, changes(there, Chosen()), "steer"), bound)
    hooked = [HookedEdit(edit, points[edit.place.node], heads_of(edit.place)) for edit in tried]
    with hooks_on(model, hooked, Chosen(), proves=True):
        difference = forward_difference(example.call(model), expected)
    if difference > CLOSE.get(value(nodes[edits[0].place.node]).dtype, 0.0):
        names = ", ".join(f"{edit.place.name} at {points[edit.place.node].path}" for edit in edits)
        raise InputError(
            f"steer: the model steered by hooks ({names}) differs from its steered graph by {difference:.1e} on an "
            "example, so the value has readers that the hooks do not reach; steer the explained module, whose graph shows "
            "all readers"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    if one.dtype is not other.dtype:
        return False
    return forward_difference(other, one) <= CLOSE.get(other.dtype, 0.0)


def _has(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def _not_hookable(explained: Explained, place: InsidePlace) -> str:
    could = ", ".join(_by_kind(hookable(explained))) or "none of the standard places"
    return (
        f"steer: no module of {explained.record.model_class} takes or returns the value of {place.name} (%{place.node}) "
        f"for all that reads it, so it cannot be steered by hooks; in this model these can: {could}, and the outputs of "
        "modules; or steer the explained module: steer(transform(model), ...)"
    )


def _of_this_model(model: nn.Module, explained: Explained, options: Sequence[tuple[str, bool]]) -> str:
    """What in the model itself may be in the way of the candidates, in a sentence; "" if nothing is."""
    paths = list(dict.fromkeys(path for path, _ in options))
    if missing := [path for path in paths if not _has(model, path)]:
        return f". {type(model).__name__} has no module {missing[0]}, and the {explained.record.model_class} has"
    hooks = {path: hooks_of(model.get_submodule(path)) for path in paths}
    if hooked := [path for path, found in hooks.items() if found.forward_pre or found.forward]:
        return f". {hooked[0]} has hooks that were there before the block; if they change the value, take them off"
    return ""


def _by_kind(names: Sequence[str]) -> list[str]:
    """The names with `*` for their numbers, each once."""
    return list(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))
