"""Edits by place, as a caller gives them: checked against the graph of an explained module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lxt_fx.attribution.place_axes import token_axis
from lxt_fx.attribution.places import InsidePlace, node_at, places_at
from lxt_fx.base.errors import CallError, InputError
from lxt_fx.base.nodes import value
from lxt_fx.compiler.explained import Explained
from lxt_fx.compiler.steered import Change
from lxt_fx.inside.steering.edits import Affine, Edit, affine
from lxt_fx.inside.steering.hook_points import apart
from lxt_fx.inside.steering.text_positions import Chosen

Edits = Mapping[str, Edit | Sequence[Edit]]
"""What is done at which place: one edit, or several that follow one another."""


@dataclass(frozen=True, slots=True, eq=False)
class PlacedEdit:
    """An edit in numbers, the place that it changes, and the axis of positions of that place."""

    place: InsidePlace
    affine: Affine
    tokens: int


def read_edits(given: Any, function: str) -> tuple[tuple[str, Edit], ...]:
    """The edits one by one, each with its place. Raises InputError, in the name of `function`, for anything else."""
    if not isinstance(given, Mapping):
        raise InputError(
            f"{function}: the edits are a dict from places to edits, such as "
            f'{{"mlp.3.neurons": lxt_fx.edits.scale(0, units=[17])}}, got {type(given).__name__}'
        )
    found = []
    for place, edits in given.items():
        several = (edits,) if isinstance(edits, Edit) else edits
        if not isinstance(several, (list, tuple)) or not all(isinstance(edit, Edit) for edit in several):
            raise InputError(
                f"{function}: what is done at {place!r} must be an edit of lxt_fx.edits (scale, add, clamp, ablate_mean), "
                f"or a list of them, got {edits!r}"
            )
        found += [(place, edit) for edit in several]
    if not found:
        raise InputError(f"{function}: there are no edits; name at least one place")
    return tuple(found)


def placed_edits(
    explained: Explained, edits: Sequence[tuple[str, Edit]], chosen: Chosen, function: str
) -> list[PlacedEdit]:
    """The edits at the places of this graph, in order. Raises UnknownNameError for a place that it does not have, with the
    nearest ones, and InputError where an edit or the positions do not fit a place."""
    found = []
    for name, edit in edits:
        for place in places_at(explained, name, function).values():
            place = place if chosen.all else apart(explained, place)
            node = node_at(explained, place)
            tokens = 0 if chosen.all else _axis_of_tokens(explained, place, function)
            found.append(PlacedEdit(place, affine(edit, place, value(node), function), tokens))
    return found


def changes(edits: Sequence[PlacedEdit], chosen: Chosen) -> list[Change]:
    """The edits as the compiler puts them into the graph."""
    return [
        Change(
            each.place.node, each.place.name, each.affine.factor, each.affine.shift, each.tokens,
            chosen.at, chosen.span, chosen.mask,
        )
        for each in edits
    ]  # fmt: skip


def check_same_graph(first: Explained, fitting: Explained, edits: Sequence[tuple[str, Edit]], function: str) -> None:
    """Raises CallError where a call needs a further graph, and a place is a node: another graph may have another value by
    that name."""
    nodes = [name for name, _ in edits if name.startswith("%")]
    if nodes and fitting.record.stages["canonical"].graph is not first.record.stages["canonical"].graph:
        raise CallError(
            f"{function}: this call of {first.record.model_class} needs another graph, in which {nodes[0]} may be another "
            "value; name the place by its standard name or its module"
        )


def _axis_of_tokens(explained: Explained, place: InsidePlace, function: str) -> int:
    if explained.record.positions is not None:
        raise InputError(
            f"{function}: the module computes the positions {list(explained.record.positions)} only, so other positions of "
            f"{place.name} may not be there; steer the module of transform(model) without positions"
        )
    axis = token_axis(place.axes)
    if axis is None or place.axes[0] != "batch":
        raise InputError(
            f"{function}: {place.name} has the axes {', '.join(place.axes)}, so positions of a text cannot be chosen "
            "there; leave positions out"
        )
    return axis
