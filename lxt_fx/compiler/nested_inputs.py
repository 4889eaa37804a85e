"""Inputs that are lists, dicts or objects: whether a call gives what the graph was captured for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lxt_fx.base.errors import CallError
from lxt_fx.base.torch_internals import children_of, pytree
from lxt_fx.base.user_objects import same_but_for_tensors
from lxt_fx.passes.capture.called_by_leaf import leaf_names, leaf_values


def in_captured_order(bound: Mapping[str, Any], captured: pytree.TreeSpec) -> dict[str, Any]:
    """The inputs of a call with the keys of every dict in the order of the example's, in which the graph takes them."""
    _, spec = children_of(captured)
    return {name: _ordered(bound[name], part) for name, part in zip(spec.context, children_of(spec), strict=True)}


def by_leaf(bound: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs by the name of each leaf: those inside of lists and dicts, too."""
    return bound if all(isinstance(value, Tensor) for value in bound.values()) else leaf_values(bound)


def with_leaves_in(bound: Mapping[str, Any], leaves: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inputs with these leaves in their places, inside of lists and dicts, too."""
    if all(name in bound for name in leaves):
        return {**bound, **leaves}
    flat, spec = pytree.tree_flatten(dict(bound))
    placed = [leaves.get(name, value) for name, value in zip(leaf_names(bound), flat, strict=True)]
    found: dict[str, Any] = pytree.tree_unflatten(placed, spec)
    return found


def _ordered(value: Any, spec: pytree.TreeSpec) -> Any:
    parts = children_of(spec)
    if isinstance(value, Tensor) or type(value) is not spec.type:
        return value
    if isinstance(value, dict) and value.keys() == set(spec.context):
        return {name: _ordered(value[name], part) for name, part in zip(spec.context, parts, strict=True)}
    if type(value) in (list, tuple) and len(value) == len(parts):
        return type(value)(_ordered(item, part) for item, part in zip(value, parts, strict=True))
    return value


def checked_leaves(
    bound: Mapping[str, Any], captured: pytree.TreeSpec, constants: Mapping[str, Any], model_class: str
) -> Mapping[str, Any]:
    """The leaves of the inputs by name: those of nested inputs too.

    Raises CallError where a nested input has other parts than in the example, or other numbers, which the graph has as
    constants.
    """
    if all(isinstance(value, Tensor) for value in bound.values()):
        return bound
    given = pytree.tree_structure(((), dict(bound)))
    if not same_but_for_tensors(given, captured):
        raise CallError(
            f"{model_class}: the inputs are nested in another way than in the example, or hold other values that are no "
            f"tensors; given {given}, captured {captured}; transform the model again with inputs like these"
        )
    leaves = leaf_values(bound)
    for name, value in leaves.items():
        if isinstance(value, Tensor) is (name in constants):
            kind = "a tensor" if isinstance(value, Tensor) else "no tensor"
            raise CallError(f"{model_class}: {name} is {kind}, unlike in the example; transform the model again with it")
        if name in constants and not bool(constants[name] == value):
            raise CallError(
                f"{model_class}: {name}={constants[name]!r} is baked into the graph, and the call has {value!r}; transform "
                "the model again with it"
            )
    return leaves
